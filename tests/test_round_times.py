"""What rounds take, by formula: against events that are played one by one, and against all there is."""

import heapq
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import isthmus
from isthmus.jobs.arriving import seconds_of_changes
from isthmus.jobs.plan import make_plan
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.simulate import simulate_file, simulation_words
from isthmus.timing.rounds import late_round_seconds, unequal_steps

ROOT = Path(__file__).resolve().parents[1]
SECONDS = st.floats(0.01, 10.0)


def played_round(steps, step_seconds, exchange_seconds, late):
    """Return the seconds of the 20th round of a site that steps, sends, and waits for what is due."""
    now, under_way, ends = 0.0, None, []
    for step in itertools.count(1):
        now += step_seconds
        if under_way and step == under_way[0]:
            now, under_way = max(now, under_way[1]), None
            ends.append(now)
        if step % steps == 0:
            under_way = step + late, now + exchange_seconds
            if late == 0:
                now, under_way = under_way[1], None
                ends.append(now)
        if len(ends) > 20:
            return ends[20] - ends[19]


@given(st.integers(1, 8), SECONDS, st.floats(0, 30), st.integers(0, 8))
def test_a_late_exchange_takes_what_steps_do_not_hide_of_it(steps, step_seconds, exchange, late):
    late = min(late, steps)
    found = late_round_seconds(steps, step_seconds, exchange, late)
    assert found == pytest.approx(played_round(steps, step_seconds, exchange, late), rel=1e-9)
    all_hidden = late_round_seconds(steps, step_seconds, exchange, steps)
    assert all_hidden == pytest.approx(max(steps * step_seconds, exchange))


def played_arrivals(seconds, arrivals, changes):
    """Return (arrivals a second, mean staleness) of workers who begin again at once."""
    due = [(each, worker, 0) for worker, each in enumerate(seconds)]
    version, waiting, stale, times = 0, 0, [], []
    heapq.heapify(due)
    while len(stale) < changes:
        now, worker, began = heapq.heappop(due)
        stale.append(version - began)
        times.append(now)
        waiting += 1
        if waiting == arrivals:
            version, waiting = version + 1, 0
        heapq.heappush(due, (now + seconds[worker], worker, version))
    half = changes // 2
    return (changes - half) / (times[-1] - times[half - 1]), np.mean(stale[half:])


@pytest.mark.parametrize("arrivals", [1, 2, 3])
@pytest.mark.parametrize("seconds", [[1.0, 1.0, 4.1], [0.31, 0.5, 0.97, 2.2, 3.3], [2.0]])
def test_changes_of_workers_that_wait_for_nobody_arrive_at_their_rates_and_this_old(seconds, arrivals):
    """Each of n at its own rate; while one makes a change the others make n - 1 on average."""
    rate, stale = played_arrivals(seconds, arrivals, 8000)
    strategy = isthmus.Buffered(arrivals, busy=5, bound=10**6)
    expected = strategy.expected(seconds, 1000)
    for found in (rate, expected.arrivals_per_second, arrivals * expected.moves_per_second):
        assert found == pytest.approx(sum(1 / each for each in seconds), rel=0.02)
    for found in (stale, expected.staleness):
        assert found == pytest.approx((len(seconds) - 1) / arrivals, abs=0.05)
    epoch, changes = strategy.expected_epoch(seconds, 500), 500 * len(seconds)
    assert 0 <= epoch.seconds - changes / rate <= 1.02 * max(seconds)  # all wait for the last
    assert sum(epoch.walks) == pytest.approx(len(seconds))
    shares = np.array(epoch.walks) * seconds
    assert shares == pytest.approx(np.full(len(seconds), shares.mean()), rel=0.02)


SITES = st.lists(st.tuples(st.floats(1, 1000), st.floats(0, 0.5)), min_size=1, max_size=4)


@given(SITES, st.floats(1, 1000), st.integers(1, 4))
def test_unequal_steps_are_the_best_of_all_numbers_of_steps(sites, samples, steps):
    rates, fixed = map(np.array, zip(*sites))
    found = unequal_steps(rates, fixed, samples, steps)
    total = steps * len(sites)
    assert sum(found.steps) == total
    each = fixed + samples / total / rates
    best = min(
        max(np.array(counts) * each)
        for counts in itertools.product(range(total + 1), repeat=len(sites))
        if sum(counts) == total
    )
    assert found.seconds == pytest.approx(best)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: late_round_seconds(4, 1.0, 1.0, 5), "late must be at most 4, the steps of a round"),
        (lambda: isthmus.Buffered().expected([1.0, 0.0]), "a positive number for each worker"),
        (lambda: isthmus.Buffered().expected([]), "a positive number for each worker"),
        (lambda: unequal_steps([1.0], [0.0, 0.0], 1, 1), "must have a number for each site"),
    ],
)
def test_rounds_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


@pytest.mark.parametrize(
    ("strategy", "fixed", "words"),
    [
        (
            '{ kind = "local_steps", every = 8 }',
            0.05,
            "unequal numbers of steps a round (cloud 15, edge 1)",
        ),
        ('{ kind = "local_steps", every = 8 }', 0.0, None),
        ('{ kind = "synchronous" }', 0.2, None),
        ('{ kind = "buffered", arrivals = 1 }', 0.0, "versions old on average"),
        ('{ kind = "buffered", arrivals = 1, weight = "constant" }', 0.1, "2 cos(s pi / (2 s + 1))"),
    ],
)
def test_a_plan_says_what_unequal_steps_would_save_and_what_is_expected_of_arrivals(
    tmp_path, strategy, fixed, words
):
    """An edge whose steps take 50 ms whatever their samples makes one while the cloud makes fifteen."""
    table = isthmus.Cluster.from_toml(ROOT / "experiments/two_sites.toml").to_table()
    for site in table["site"]:
        del site["network"]  # sums inside sites cost nothing
    table["site"][1]["fixed_seconds"] = fixed
    isthmus.Cluster(table).to_toml(tmp_path / "two.toml")
    text = (ROOT / "experiments/fashion_two_sites.toml").read_text()
    text = text.replace("two_sites.toml", "two.toml").replace("../data", f"{ROOT}/data")
    (tmp_path / "run.toml").write_text(f"strategy = {strategy}\n{text}")
    plan, cluster, advice = make_plan(tmp_path / "run.toml")
    said = [line for line in advice if "unequal" in line or "versions old" in line]
    assert bool(said) == bool(words)
    assert words is None or any(words in line for line in said)
    assert plan.epoch_seconds == pytest.approx(plan.steps * sum(plan.terms.values()))
    if (
        "buffered" in strategy and not fixed
    ):  # what it takes at the rates at which sites make their changes
        settings = RunSettings.from_toml(tmp_path / "run.toml")
        each = seconds_of_changes(settings, cluster, plan)
        link = 2 * 0.01 + 2 * isthmus.Int8(256).wire_nbytes(101770) / 12.5e6  # and half a step
        assert each[1] - each[0] == pytest.approx(link + each[0] / 2, rel=0.05)
        at_rates = 2 * plan.steps / sum(1 / seconds for seconds in each)
        assert at_rates < plan.epoch_seconds < at_rates + each[1] + 0.05
        assert "walk their own samples" in plan.sentences[-1]
        options = {"steps": 4, "local_steps": None, "buckets": 1, "stragglers": "0", "seed": 0}
        told = simulate_file(
            tmp_path / "run.toml", **options, size=0, batch_size=0, edge_sites=0, output=None
        )
        assert plan.sentences[-1] in simulation_words(told)[-1]
