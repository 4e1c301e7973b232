"""Changes that arrive one after another: by hand, in ranks of unlike speed, replayed, in whole jobs."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from test_rebalancing import lab, lines_of

import isthmus
from isthmus import staleness
from isthmus.errors import NonFiniteError, SettingsError, StoppedError
from isthmus.jobs.stopping import StopRequest
from isthmus.jobs.train import train
from isthmus.links.agreement import gather_json
from isthmus.pages.report import write_report
from isthmus.training.strategies.sums import Sums

SIZE, STEPS, WEIGHTS = 50, 24, [3.0, 5.0, 2.0, 2.0]


def pull(worker, place):
    """A change of dyadic numbers that differs between workers."""
    return (place - worker) * 0.5


def play(trace, initial=(8.0,), **arguments):
    """Return the first entry after each arrival."""
    strategy = isthmus.Buffered(**{"weight": staleness.Constant(), "arrivals": 1} | arguments)
    return [float(each[0]) for each in isthmus.serial_arrivals(strategy, pull, initial, trace)]


def test_arrivals_come_to_what_they_come_to_by_hand():
    trace = [(0, 0), (1, 0), (0, 1)]  # worker 0: 4, worker 1: 3.5 off the start, worker 0 again from 4
    assert play(trace) == [4.0, 0.5, -1.5]
    assert play(trace, weight=staleness.Polynomial(1.0)) == [4.0, 2.25, 1.25]
    assert play(trace, weight={"kind": "hinge", "a": 3.0, "b": 0.0}) == [4.0, 3.125, 2.625]
    assert play(trace, arrivals=2) == pytest.approx([8.0, 4.25, 4.25])
    # FedAsync: half of the way to where the worker is, 4 and 4.5 and 3: not by what it changed.
    assert play(trace, mixing=0.5) == [6.0, 5.25, 4.125]
    assert play(trace, bound=0, beyond="drop") == [4.0, 4.0, 2.0]


def test_the_vector_waits_where_a_change_that_comes_later_would_be_too_old():
    trace = [(0, 0), (0, 1), (1, 0), (0, 1)]
    eager = play([(0, 0), (0, 1), (1, 0), (0, 2)], bound=2)
    assert eager[1] == 2.0
    assert play(trace, bound=1)[:2] == [4.0, 4.0]
    with pytest.raises(ValueError, match=r"trace\[3\]: worker 0 cannot have started from version 3"):
        play([(0, 0), (0, 1), (1, 0), (0, 3)], bound=1)


def test_bound_0_is_synchronous_to_the_bit_whatever_the_order_and_the_number_of_arrivals():
    trace = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)]
    rounds = isthmus.serial_rounds(
        isthmus.Synchronous(),
        lambda worker, place, step: place - worker,
        [8.0, -2.0],
        [1, 1],
        3,
        local_steps=1,
        learning_rate=0.5,
    )
    for arrivals in (1, 2, 3):
        strategy = isthmus.Buffered(arrivals, bound=0)
        history = isthmus.serial_arrivals(strategy, pull, [8.0, -2.0], trace)
        np.testing.assert_array_equal(history[1::2], rounds)


@pytest.mark.parametrize("mixing", [None, 0.75])
def test_long_traces_are_what_an_oracle_of_their_own_says(mixing):
    """FedBuff as its paper writes it, with dicts and lists, of a trace that was expected."""
    strategy = isthmus.Buffered(2, busy=4, weight=staleness.Polynomial(0.5), bound=50, mixing=mixing)
    trace = strategy.expected([1.0, 1.3, 2.9, 7.0], changes=20).trace
    centres = np.random.default_rng(1).normal(size=(4, 3))
    versions, waiting, expected = [np.ones(3)], [], []
    for worker, version in trace:
        start = versions[version]
        delta = 0.3 * (start - centres[worker])
        weight = (1 + len(versions) - 1 - version) ** -0.5
        waiting.append(weight * (delta if mixing is None else versions[-1] - (start - delta)))
        if len(waiting) == 2:
            versions.append(versions[-1] - (mixing or 1) * np.mean(waiting, axis=0))
            waiting = []
        expected.append(versions[-1])
    history = isthmus.serial_arrivals(strategy, lambda w, x: 0.3 * (x - centres[w]), np.ones(3), trace)
    np.testing.assert_allclose(history, expected, rtol=1e-12)
    assert len(versions) == 41


def test_what_is_expected_is_arrivals_a_second_and_how_old_they_are():
    alike = isthmus.Buffered(arrivals=1, busy=4).expected([2.0] * 4)
    assert alike.arrivals_per_second == pytest.approx(2.0, rel=0.02)
    assert alike.staleness == pytest.approx(3.0)  # the others' arrivals
    slow = isthmus.Buffered(arrivals=2, busy=3, bound=100).expected([1.0, 1.0, 10.0])
    assert slow.arrivals_per_second == pytest.approx(2.1, rel=0.03)
    assert slow.moves_per_second == pytest.approx(1.05, rel=0.03)
    assert slow.staleness_of_worker[2] == pytest.approx(10.0, abs=0.6)
    held = isthmus.Buffered(arrivals=2, busy=3, bound=2).expected([1.0, 1.0, 10.0])
    assert max(held.staleness_of_worker) <= 2
    assert held.arrivals_per_second < 1
    one = isthmus.Buffered(arrivals=2, busy=1).expected([1.0, 1.0, 10.0])
    assert one.arrivals_per_second == pytest.approx(3 / 12, rel=0.03)
    assert one.staleness < 1
    dropped = isthmus.Buffered(arrivals=1, bound=3, beyond="drop").expected([1.0, 1.0, 10.0])
    assert dropped.dropped == pytest.approx(0.1 / 2.1, rel=0.1)


def test_stale_gradients_converge_below_the_rate_that_is_told_and_not_above():
    for stale in (0, 1, 3, 8):
        for times, converges in ((0.95, True), (1.05, False)):
            rate, history = times * staleness.largest_rate(stale), [1.0] * (stale + 1)
            for _ in range(3000):
                history.append(history[-1] - rate * history[-1 - stale])
            assert (abs(history[-1]) < 1) == converges, (stale, times)
    strategy = isthmus.Buffered(arrivals=1, busy=8)
    assert strategy.outlook([1.0, 1.0])[1] is None
    told, warning = strategy.outlook([1.0] * 6)
    assert "6 changes a second are expected, 5.00 versions old" in told
    assert "2 cos(s pi / (2 s + 1))" in warning
    assert isthmus.Buffered(arrivals=1, busy=8, bound=1).outlook([1.0] * 6)[1] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bound": -1}, "bound must not be negative"),
        ({"arrivals": 0}, "arrivals must be at least 1"),
        ({"busy": 0}, "busy must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"beyond": "stop"}, "beyond must be one of wait, drop"),
        ({"mixing": 0}, "mixing must be greater than 0"),
        ({"mixing": 1.5}, "mixing must be at most 1"),
        ({"weight": "linear"}, "kind of weight must be one of constant, polynomial, hinge"),
        ({"weight": {"kind": "hinge", "c": 1}}, "takes a, b; there is no 'c'"),
        ({"weight": staleness.Constant}, "weight must be one of isthmus.staleness"),
        ({"weight": {"kind": "polynomial", "a": -1}}, "a must not be negative"),
    ],
)
def test_arguments_that_make_no_sense_are_one_line(arguments, words):
    with pytest.raises(ValueError, match=words):
        isthmus.Buffered(**arguments)


def test_traces_and_changes_that_make_no_sense_are_told():
    for trace, words in (
        ([(0, 1)], "cannot have started from version 1"),
        ([(0, 0), (0, 1), (0, 0)], "had started from 1 before"),
        ([(-1, 0)], "worker must not be negative"),
    ):
        with pytest.raises(ValueError, match=words):
            play(trace)
    strategy = isthmus.Buffered()
    with pytest.raises(NonFiniteError, match="worker 0 is not finite"):
        isthmus.serial_arrivals(strategy, lambda w, x: np.inf, [1.0], [(0, 0)])
    with pytest.raises(ValueError, match="must return 1 entries"):
        isthmus.serial_arrivals(strategy, lambda w, x: [1, 2], [1.0], [(0, 0)])
    with pytest.raises(ValueError, match="play it by serial_arrivals"):
        isthmus.serial_rounds(
            strategy, lambda w, x, s: x, [1.0], [1, 1], 2, local_steps=1, learning_rate=0.1
        )


def slope(rank, place, step):
    draw = np.random.default_rng([rank, step]).normal(size=SIZE).astype("f4")
    return place * np.float32(0.3 + 0.1 * rank) + draw


def serial(strategy, lines):
    """Return what workers of one rank each come to that arrive as `lines` tell."""
    walked, meetings = [0] * 4, [0, *(line["step"] for line in lines)]
    arrivals = [(*arrival, number) for number, line in enumerate(lines) for arrival in line["arrivals"]]
    segments, done = iter(arrivals), [[0] * 4 for _ in lines]

    def change(worker, start):
        place, segment = start.copy(), next(segments)[2]
        length = meetings[segment + 1] - meetings[segment]
        for _ in range(min(strategy.every, length - done[segment][worker] % length)):
            place += slope(worker, place, walked[worker]) * np.float32(-0.1)
            done[segment][worker] += 1
            walked[worker] += 1
        return start - place

    trace = [each[:2] for each in arrivals]
    start = np.linspace(-1, 1, SIZE, dtype="f4")
    return isthmus.serial_arrivals(strategy, change, start, trace, weights=WEIGHTS, ends=True)[-1]


class Walk:
    """A loop over steps as a user writes it, of one rank; its last site is slow."""

    def __init__(self, tiers, strategy, lines=None, meetings=(10, 17), **arguments):
        self.rank, self.lines = tiers.world.rank, []
        self.strategy = strategy
        self.slow = tiers.site_index == len(tiers.cluster.sites) - 1
        self.member = strategy.join(Sums(tiers, SIZE, WEIGHTS[self.rank], **arguments), STEPS)
        self.member.meet(lambda step: step in meetings)
        if lines is not None:
            self.member.replay(lines)
        self.place = np.linspace(-1, 1, SIZE, dtype="f4")
        self.member.begin(self.place)
        self.kept, self.finite = {}, {}

    def go_on(self, spoilt_after=None):
        member = self.member
        while member.step < STEPS:
            member.before_step(self.place)
            time.sleep(0.008 if self.slow else 0.0005)
            mean = member.gradients(slope(self.rank, self.place, member.walked))
            self.place += mean * np.float32(-0.1)
            if member.step == spoilt_after:
                self.place[3] = np.inf
            member.after_step(self.place)
            if member.together:
                state = {name: array.copy() for name, array in member.state().items()}
                self.kept[member.step], self.finite[member.step] = (
                    (state, self.place.copy()),
                    member.finite,
                )
                self.lines += [{"step": member.step} | line for line in member.told().values()]
        return self.place


@pytest.mark.slow
@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    ("strategy", "sites", "arguments"),
    [
        (isthmus.Buffered(arrivals=2, busy=3), (1, 2, 1), {"compressor": isthmus.Int8(block=4)}),
        (
            isthmus.Buffered(arrivals=2, busy=3, bound=3, mixing=0.75, every=2),
            (1, 1, 1, 1),
            {"chunk_nbytes": 16},
        ),
        (
            isthmus.Buffered(arrivals=3, busy=4, bound=1, beyond="drop"),
            (1, 1, 1, 1),
            {"compressor": isthmus.TopK(0.1, bits=4)},
        ),
        (isthmus.Buffered(arrivals=1, busy=1), (2, 2), {"compressor": isthmus.LowRank(1)}),
    ],
)
def test_ranks_end_with_the_bits_of_their_own_trace_and_of_a_resume(comm, strategy, sites, arguments):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
        walk = Walk(tiers, strategy, **arguments)
        place = walk.go_on()
        assert walk.member.agreed
        assert gather_json(tiers.world, place.tolist()) == [place.tolist()] * 4
        assert (walk.member.predicted_to_sites() == walk.member.sent_to_sites).all()
        assert [line["step"] for line in walk.lines] == [10, 17, STEPS]
        lengths = {1: (10, 7, 7), 2: (5, 4, 4)}[strategy.every]
        sent = [len(line["arrivals"]) for line in walk.lines]
        assert sent == [len(sites) * each for each in lengths]
        walked = np.sum([line["steps_of_site"] for line in walk.lines], axis=0)
        assert walked[tiers.site_index] == walk.member.walked
        if strategy.busy == len(sites) and strategy.bound > 1:  # who is slow makes fewer changes
            assert walked[-1] < STEPS < max(walked)
        again = Walk(tiers, strategy, walk.lines, **arguments)
        assert again.go_on().tobytes() == place.tobytes()
        assert again.lines == walk.lines
        resumed = Walk(tiers, strategy, walk.lines, **arguments)
        resumed.member.load(walk.kept[10][0])
        resumed.place[:] = walk.kept[10][1]
        assert resumed.go_on().tobytes() == place.tobytes()
        assert (resumed.member.predicted_to_sites() == resumed.member.sent_to_sites).all()
        if "compressor" not in arguments:  # then it is what the serial engine makes of the trace
            np.testing.assert_array_equal(place, serial(strategy, walk.lines))
        locked = Walk(tiers, replace(strategy, bound=0, beyond="wait"))  # whatever comes first
        again = Walk(tiers, locked.strategy)
        assert locked.go_on().tobytes() == again.go_on().tobytes()
        assert locked.member.walked == STEPS
        spoilt = Walk(tiers, strategy, **arguments)
        assert np.isfinite(spoilt.go_on(spoilt_after=10 if tiers.site_index == 1 else None)).all()
        assert spoilt.finite == {10: True, 17: False, STEPS: True}  # told where all meet
        assert [line["lost"] for line in spoilt.lines] == [0, 1, 0]
        with pytest.raises(ValueError, match="not of this run's strategy"):
            Walk(tiers, strategy, [line | {"arrivals": line["arrivals"][::-1]} for line in walk.lines])


def quiet(line, passing=False):
    pass


@pytest.mark.slow
@pytest.mark.ranks(3)
def test_a_job_of_three_sites_is_replayed_resumed_and_told_right(comm, shared_folder, monkeypatch):
    path = lab(comm, shared_folder, sites=(1, 1, 1), plan={"replan": False})
    text = path.read_text() if comm.rank == 0 else ""

    def run(strategy, **options):
        if comm.rank == 0:
            path.write_text(tomli_w.dumps({"strategy": {"kind": "buffered"} | strategy}) + text)
        comm.Barrier()
        return train(comm, path, quiet, **options)

    monkeypatch.setattr(
        "isthmus.jobs.making.hold_seconds",
        lambda tiers, settings: lambda samples: [1e-3, 2e-3, 8e-3][tiers.world.rank],
    )
    settings = {"arrivals": 2, "every": 3}
    live = run(settings)
    replay = {"name": "again", "replay": live["folder"]}
    with monkeypatch.context() as patched:  # told to stop after step 25: it does where all meet
        patched.setattr(StopRequest, "told", lambda self, step: step > 25)
        with pytest.raises(StoppedError, match="after step 30"):
            run(settings, **replay)
    again = run(settings, **replay)
    for key in ("parameter_hash", "loss", "accuracy", "links"):
        assert again[key] == live[key], key
    wire, dense = isthmus.Int8(16).wire_nbytes(163), 4 * 163
    # Epochs of 10 steps, one of them with a checkpoint in its middle; 3 steps a change.
    changes, meetings = 5 * 4 + 2 * 2, 7
    lines = lines_of(live, "arrivals")
    made = np.bincount([site for line in lines for site, _ in line["arrivals"]]).tolist()
    assert sum(made) == 3 * changes
    assert made[2] < changes < made[0]
    for link in live["links"]:
        source, target = int(link["source"][-1]), int(link["target"][-1])
        away = (made[target] - meetings) * wire + meetings * dense + 8 * made[target]
        assert link["sent_nbytes"] == (made[source] * wire if source else away)
        assert link["sent_nbytes"] == link["predicted_nbytes"]
    with pytest.raises(SettingsError, match=r"cannot be replayed: its settings differ in \[strategy\]"):
        run({"arrivals": 3, "every": 3}, replay=live["folder"])
    text = text.replace("replan = false", "pinned = { 0 = 'site2' }")
    with pytest.raises(SettingsError, match="cannot be replayed: its ranks held other samples"):
        with monkeypatch.context() as patched:
            patched.setattr("isthmus.jobs.replaying.SAME", ())
            run(settings, replay=live["folder"])
    text = text.replace("pinned = { 0 = 'site2' }", "replan = true")
    with pytest.raises(SettingsError, match="cannot be replayed: plan.replan = true moves shards"):
        run(settings, replay=live["folder"])
    if comm.rank == 0:
        assert [line["step"] for line in lines] == [10, 20, 30, 35, 40, 50, 60]
        assert sum(sum(line["steps_of_site"]) for line in lines) == pytest.approx(3 * 60, abs=3 * 7)
        assert lines_of(again, "arrivals") == lines
        assert len(lines_of(live, "evaluation")) == 6
        assert len(lines_of(live, "step")) == 60
        exchanged = [line["step"] for line in lines_of(live, "step") if line["exchanged"]]
        assert exchanged[:10] == [3, 6, 9, 10, 13, 16, 19, 20, 23, 26]
        page = write_report(Path(live["folder"])).read_text()
        for words in ("buffered", "changes a second are expected", "versions old", "own samples"):
            assert words in page, words
