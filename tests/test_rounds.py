"""Strategies of rounds, played without ranks: what they do step by step, and what others get wrong."""

import json
import math
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus import outer
from isthmus.errors import NonFiniteError, SettingsError
from isthmus.jobs.choosing import settle
from isthmus.jobs.settings import RunSettings
from isthmus.timing.simulation import simulate
from isthmus.timing.step import exchange_seconds, predict_step
from isthmus.training.strategies.strategy import Exchange, rhythm

ROOT = Path(__file__).resolve().parents[1]
ORACLES = json.loads((ROOT / "tests/oracles/streaming_diloco_histories.json").read_text())


def pulls(worker, place, step):
    """A gradient of dyadic numbers that differs between workers and steps."""
    return (place - worker) * [0.5, 0.25][worker] + 0.25 * (step % 3)


def play(strategy, steps, gradient=pulls, initial=(1.0, 2.0, -4.0), weights=(1, 3), **options):
    """Return the vector that all have in common after each of `steps` steps."""
    options = {"local_steps": 1, "learning_rate": 0.5} | options
    return isthmus.serial_rounds(
        strategy, gradient, np.array(initial), weights, steps // options["local_steps"], **options
    )


@pytest.mark.parametrize("case", ORACLES)
def test_streaming_goes_as_a_public_projects_histories(case):
    """Of two workers that agree, each of whose two entries is a fragment."""
    strategy = isthmus.Streaming(
        case["fragments"],
        case["sync_every"],
        case["fragment_sync_delay"],
        case["fragment_update_alpha"],
        outer=outer.Momentum(case["outer_lr"], case["outer_momentum"]),
    )
    seen = []

    def gradient(worker, place, step):
        seen.append(place.copy())
        return case["gradient"]

    start = np.full(case["fragments"], float(case["initial"]))
    anchors = [start] + isthmus.serial_rounds(
        strategy, gradient, start, [1, 1], 16, local_steps=1, learning_rate=case["inner_lr"]
    )
    for fragment, history in case["global_history"].items():
        for step, value in history:
            assert anchors[step][int(fragment)] == value, (fragment, step)
    for fragment, history in enumerate(case["history"]):
        assert [place[fragment] for place in seen[::2]] == history


def test_rounds_of_one_step_and_averages_are_synchronous_to_the_bit():
    every_step = play(isthmus.Synchronous(), 9)
    np.testing.assert_array_equal(play(isthmus.LocalSteps(every=1), 9), every_step)
    np.testing.assert_array_equal(play(isthmus.LocalSteps(every=4, after=20), 9), every_step)
    mixed = play(isthmus.LocalSteps(every=4, after=5), 9)
    np.testing.assert_array_equal(mixed[:5], every_step[:5])
    assert (mixed[8] != every_step[8]).all()


def test_the_first_exchange_is_after_a_whole_round_and_the_last_step_ends_with_one():
    assert list(isthmus.LocalSteps(every=4).exchanges(10)) == [Exchange(4), Exchange(8), Exchange(10)]
    assert list(isthmus.LocalSteps(every=4).exchanges(8)) == [Exchange(4), Exchange(8)]
    late = isthmus.LocalSteps(every=4, late=2).exchanges(10)
    assert list(late) == [Exchange(4, late=2), Exchange(10)]  # that of 8 would come back with the end
    after = isthmus.LocalSteps(every=4, after=2).exchanges(7)
    assert list(after) == [
        Exchange(1, bucketed=True),
        Exchange(2, bucketed=True),
        Exchange(6),
        Exchange(7),
    ]
    turns = list(islice(isthmus.Streaming(3, every=8, late=1).exchanges(math.inf), 6))
    assert [each.step + each.late for each in turns] == [2, 5, 8, 10, 13, 16]
    assert [each.part for each in turns] == [0, 1, 2, 0, 1, 2]
    *_, last = isthmus.Streaming(3, every=8, late=1).exchanges(20)
    assert last == Exchange(20)
    start = np.array([1.0, 2.0, -4.0])
    history = play(isthmus.LocalSteps(every=4), 8)
    np.testing.assert_array_equal(history[:3], [start] * 3)
    assert (history[3] != start).all()


def test_an_outer_optimiser_moves_only_the_fragment_that_was_exchanged():
    """Momentum would go on moving the others."""
    strategy = isthmus.Streaming(3, every=6, late=0, mixing=0, outer=outer.Nesterov(0.5, 0.5))
    history = [np.array([1.0, 2.0, -4.0]), *play(strategy, 18)]
    moved = [np.flatnonzero(now != before).tolist() for before, now in pairwise(history)]
    assert moved == [[], [0], [], [1], [], [2]] * 3


def test_what_was_learnt_while_an_exchange_was_under_way_is_kept():
    """One worker of constant slope goes on as if there were no exchanges; its anchor follows late."""
    history = play(isthmus.LocalSteps(every=4, late=2), 12, lambda *_: 1.0, [0.0], [1], learning_rate=1)
    assert [vector[0] for vector in history] == [0, 0, 0, 0, 0, -4, -4, -4, -4, -8, -8, -8]
    closed = play(
        isthmus.LocalSteps(every=4, late=2), 12, lambda *_: 1.0, [0.0], [1], learning_rate=1, ends=True
    )
    assert closed[-1][0] == -12


@pytest.mark.parametrize(
    ("chosen", "by_hand"),
    [
        (outer.Average(), lambda x, g, m, v: (x - g, m, v)),
        (outer.SparseLoCo(0.75, 0.5), lambda x, g, m, v: (x - 0.5 * g, m, v)),
        (outer.Momentum(0.5, 0.75), lambda x, g, m, v: (x - 0.5 * (0.75 * m + g), 0.75 * m + g, v)),
        (
            outer.Nesterov(0.7, 0.9),
            lambda x, g, m, v: (x - 0.7 * (g + 0.9 * (0.9 * m + g)), 0.9 * m + g, v),
        ),
        (
            outer.Adam(0.1, 0.9, 0.99, 0.01),
            lambda x, g, m, v: adaptive(x, 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g),
        ),
        (outer.Adagrad(0.1, 0.9, 0.01), lambda x, g, m, v: adaptive(x, 0.9 * m + 0.1 * g, v + g * g)),
        (
            outer.Yogi(0.1, 0.9, 0.99, 0.01),
            lambda x, g, m, v: adaptive(
                x, 0.9 * m + 0.1 * g, v - 0.01 * g * g * math.copysign(1, v - g * g)
            ),
        ),
    ],
)
def test_outer_optimisers_are_the_papers(chosen, by_hand):
    """Reddi et al.'s Algorithm 2 begins with v = tau^2 and corrects no bias; float64 stays float64."""
    anchor, changes = np.array([0.5, -2.0]), [[0.25, 3.0], [-1.0, 0.125], [0.5, -0.5]]
    kept = chosen.begin(anchor)
    state = [(x, 0.0, 0.01**2) for x in anchor]
    for change in changes:
        chosen.move(anchor, np.array(change), kept)
        state = [by_hand(x, g, m, v) for (x, m, v), g in zip(state, change)]
        np.testing.assert_allclose(anchor, [x for x, _, _ in state], rtol=1e-14)
    single = anchor.astype("f4")
    chosen.move(single, np.array(changes[0], "f4"), chosen.begin(single))
    assert single.dtype == np.float32


def adaptive(x, m, v):
    return x - 0.1 * m / (math.sqrt(v) + 0.01), m, v


def test_workers_of_a_group_are_one_and_weigh_by_their_samples():
    def slopes(worker, place, step):
        return [1.0, 3.0, 10.0][worker] + place

    apart = play(isthmus.LocalSteps(every=3), 6, slopes, weights=[1, 3, 4], groups=["a", "a", "b"])
    one = play(
        isthmus.LocalSteps(every=3), 6, lambda worker, x, _: [2.5, 10.0][worker] + x, weights=[4, 4]
    )
    np.testing.assert_allclose(apart, one, rtol=1e-15)
    listed = play(isthmus.LocalSteps(every=3), 6, slopes, weights=[1, 3, 4], groups=[[0, 1], [2]])
    np.testing.assert_array_equal(listed, apart)
    idle = play(isthmus.LocalSteps(every=3), 6, slopes, weights=[0, 0, 4], groups=["a", "a", "b"])
    np.testing.assert_array_equal(
        idle, play(isthmus.LocalSteps(every=3), 6, lambda _, x, k: slopes(2, x, k), weights=[4])
    )


def test_longer_rounds_are_told_at_their_ends_and_float32_stays():
    strategy = isthmus.LocalSteps(every=4, outer=outer.Nesterov(0.7, 0.9))
    by_step, by_round = play(strategy, 12), play(strategy, 12, local_steps=4)
    np.testing.assert_array_equal(by_round, by_step[3::4])
    assert play(strategy, 4, initial=np.ones(2, "f4"))[-1].dtype == np.float32
    assert play(strategy, 4, initial=[1, 2])[-1].dtype == np.float64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: isthmus.LocalSteps(every=0), "every must be at least 1, not 0"),
        (lambda: isthmus.LocalSteps(every=2.5), "every must be a whole number, not 2.5"),
        (lambda: isthmus.LocalSteps(every=4, late=4), "late must be less than every"),
        (lambda: isthmus.LocalSteps(late=-1), "late must not be negative|late must be 0 or more"),
        (lambda: isthmus.LocalSteps(outer="nadam"), "kind of outer must be one of average, momentum"),
        (lambda: isthmus.LocalSteps(outer=outer.Average), "must be an outer optimiser, as in"),
        (
            lambda: isthmus.LocalSteps(outer={"kind": "adam", "b3": 1}),
            "takes learning_rate, b1, b2, tau",
        ),
        (lambda: outer.Nesterov(0.7, 1.0), "momentum must be less than 1, not 1"),
        (lambda: outer.SparseLoCo(1.0), "decay must be less than 1, not 1"),
        (lambda: play(isthmus.LocalSteps(outer="sparse_loco"), 2), "give a compressor, as in"),
        (lambda: outer.Adam(0), "learning_rate must be greater than 0"),
        (lambda: isthmus.Streaming(8, every=4), "every must be 8 or more"),
        (lambda: isthmus.Streaming(2, every=6, late=3), "late must be less than 3, the steps from"),
        (lambda: isthmus.Streaming(2, every=6, late=0, mixing=2), "mixing must be at most 1"),
        (lambda: play(isthmus.Streaming(4, 8, 0), 2), "fragments must be at most 3, the number of"),
        (lambda: play(isthmus.LocalSteps("auto"), 2), "give a number of steps"),
        (lambda: play(isthmus.LocalSteps(), 2, weights=[0, 0]), "weights must hold a positive number"),
        (lambda: play(isthmus.LocalSteps(), 2, groups=[0]), "the group of each of the 2 workers"),
        (lambda: play(isthmus.LocalSteps(), 2, lambda *_: [1, 2]), "gradient must return 3 entries"),
    ],
)
def test_what_makes_no_sense_is_told_before_the_first_step(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_is_not_finite_is_told():
    with pytest.raises(NonFiniteError, match="step 2: a gradient"):
        play(isthmus.LocalSteps(every=8), 8, lambda worker, x, step: np.nan if step == 2 else x)
    with pytest.raises(NonFiniteError, match="step 7: what workers exchange"):
        play(isthmus.LocalSteps(every=8), 8, lambda worker, x, step: 1e308)


def test_the_rhythm_of_a_strategy_is_that_between_two_exchanges():
    assert rhythm(isthmus.Synchronous()) == {
        "exchanges_per_step": 1,
        "exchanged_share": 1,
        "late_steps": 0,
        "site_sums_per_step": 0,
    }
    rounds = {
        "exchanges_per_step": 1 / 16,
        "exchanged_share": 1,
        "late_steps": 3,
        "site_sums_per_step": 1,
    }
    assert rhythm(isthmus.LocalSteps(16, late=3)) == rounds
    assert rhythm(isthmus.LocalSteps(16, after=1000, late=3)) == rounds
    turns = rhythm(isthmus.Streaming(4, every=64, late=5))
    assert turns == rounds | {"exchanges_per_step": 1 / 64, "exchanged_share": 1 / 4, "late_steps": 5}


@pytest.mark.parametrize(
    ("exchange", "late", "differ", "every"),
    [
        (1.0, 0, False, 9),
        (0.0, 0, False, 1),
        (1.0, 0, True, 4),
        (100.0, 0, None, 64),
        (3.0, 2, False, 9),
    ],
)
def test_auto_takes_the_shortest_round_that_leaves_a_tenth_to_the_links(exchange, late, differ, every):
    strategy = isthmus.LocalSteps("auto", late=late)
    found, why = strategy.settled(1.0, exchange, differ)
    assert found == replace(strategy, every=every)
    assert f"every = {every}: a step computes 1e+03 ms" in why
    assert ("other classes" in why) == bool(differ)
    assert strategy.leaves_open
    assert not found.leaves_open


def test_what_is_late_is_hidden_by_the_steps_that_are_made_meanwhile():
    """A round takes max(H c, x): the time model and the simulation agree."""
    cluster = isthmus.Cluster(cluster_of(1, 1, bytes_per_second=1e6, latency_seconds=0.01))
    for late, hidden in ((0, 0.0), (2, 0.2), (6, 1.0)):
        beat = rhythm(isthmus.LocalSteps(8, late=late))
        workload = isthmus.Workload(100_000, 150, **beat)
        terms = predict_step(cluster, [100, 50], workload)
        at_once = replace(workload, late_steps=0)
        exchange = exchange_seconds(cluster, 0.1, workload)
        links = 8 * predict_step(cluster, [100, 50], at_once)["links"]
        round_seconds = 0.8 + exchange - min(links, hidden)
        assert 8 * sum(terms.values()) == pytest.approx(round_seconds)
        made = simulate(cluster, workload, [100, 50], steps=80, local_steps=8)
        assert made.sync_seconds[5] == pytest.approx(round_seconds, rel=1e-3), late


def settings_of(folder, strategy):
    """Return the demo's settings with another strategy, a line of TOML."""
    path = folder / "run.toml"
    text = (ROOT / "experiments/fashion_two_sites.toml").read_text()
    path.write_text(
        f"strategy = {strategy}\n" + text.replace('"two_sites', f'"{ROOT}/experiments/two_sites')
    )
    return RunSettings.from_toml(path)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ('{ kind = "local_steps", every = 0 }', "every must be at least 1, not 0"),
        ('{ kind = "local_steps", every = 4, late = 9 }', "late must be less than every"),
        ('{ kind = "local_steps", outer = "nestrov" }', "kind of outer must be one of average"),
        ('{ kind = "buffered", bound = -1 }', "bound must not be negative"),
        ('{ kind = "buffered", every = 0 }', "every must be at least 1, not 0"),
        ('{ kind = "streaming", every = 0 }', "every must be at least 1, not 0"),
        ('{ kind = "streaming", fragments = 200000, every = 2000000 }', "at most 101770, the number of"),
    ],
)
def test_settings_that_make_no_sense_are_told_in_a_line(tmp_path, strategy, words):
    with pytest.raises(SettingsError, match=words) as told:
        settings_of(tmp_path, strategy).workload()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("lacks", [{"error_feedback": False}, {"compressor": None}])
def test_a_run_that_keeps_nothing_has_nothing_that_could_decay(tmp_path, lacks):
    settings = settings_of(tmp_path, '{ kind = "streaming", outer = "sparse_loco" }')
    assert settings.workload().size == 101770
    allreduce = settings.allreduce.model_copy(update=lacks)
    with pytest.raises(SettingsError, match=r"\[strategy\]: outer SparseLoCo goes by what wires leave"):
        settings.model_copy(update={"allreduce": allreduce}).workload()


def test_settings_leave_the_length_of_rounds_to_the_planner(tmp_path):
    settings = settings_of(tmp_path, '{ kind = "local_steps", every = "auto", outer = "nesterov" }')
    settled, why = settle(settings, settings.read_cluster())
    every = settled.strategy.arguments["every"]
    assert settled.make_strategy() == isthmus.LocalSteps(every, outer.Nesterov(0.7, 0.9))
    assert why.startswith(f"every = {every}: a step computes 10.9 ms and an exchange takes ")
    step = settled.workload()
    assert 1 < every < 64
    assert step.exchanges_per_step == pytest.approx(1 / every)
    assert RunSettings.from_json(settled.to_json(), "run.json") == settled
    assert settle(settled, settings.read_cluster()) == (settled, None)
