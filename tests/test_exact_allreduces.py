"""Ring, double tree, doubling, halving: the exact sum of integers, and the bytes of the formula."""

import itertools
import tracemalloc
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.collectives import (
    messages,
    ring_all_gather,
    ring_inbox_entries,
    ring_part,
    ring_reduce,
    ring_reduce_scatter,
)
from isthmus.collectives.doubling import Doubling
from isthmus.collectives.recursive import Recursive
from isthmus.collectives.ring import Ring
from isthmus.collectives.trading import AT_ONCE, Flow, trade
from isthmus.collectives.tree import DoubleTree
from isthmus.compression.chunks import WIRE_NBYTES
from isthmus.links.agreement import gather_json
from isthmus.links.counted import CountedComm
from isthmus.links.stage_clock import StageClock
from isthmus.timing.window import SLACK_SECONDS

KINDS = (Ring, DoubleTree, Doubling, Recursive)
SIZES = st.one_of(st.integers(0, 40), st.integers(0, 5000), st.integers(15_000, 150_000))
# All ranks try the same examples, and `together` fails on all or on none: so they shrink as one.
in_lockstep = settings(
    derandomize=True, max_examples=9, database=None, suppress_health_check=list(HealthCheck)
)


class SpyComm:
    """Notes the bytes of each message that it is given to send."""

    def __init__(self, comm):
        self.comm, self.rank, self.size, self.sent = comm, comm.rank, comm.size, []
        self.received = []

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        self.sent.append(buffer.nbytes)
        return self.comm.Isend(buffer, dest, tag)

    def Irecv(self, buffer, source, tag=0):  # noqa: N802
        self.received.append((buffer, source, tag))
        return self.comm.Irecv(buffer, source, tag)


def together(comm, problems):
    """Fail on all ranks if any rank has problems."""
    told = gather_json(comm, problems)
    assert not any(told), told


def integers(rank, size, seed):
    """float32 whose sum over a few ranks is exact in any order."""
    return np.random.default_rng([seed, rank]).integers(-(10**5), 10**5, size).astype("f4")


def exact_sum(comm, size, seed):
    return sum(integers(rank, size, seed).astype("i8") for rank in range(comm.size)).astype("f4")


def total_nbytes(kind, ranks, size):
    """Bytes that all ranks together send, from the literature."""
    core = 1 << (ranks.bit_length() - 1)
    if kind is Recursive:
        return 4 * size * (2 * (core - 1) + 2 * (ranks - core))
    if kind is Doubling:
        return 4 * size * (core * (core.bit_length() - 1) + 2 * (ranks - core))
    return 4 * size * 2 * (ranks - 1)


def problems_of(kind, comm, size, seed):
    """Run `kind` twice; return what is wrong, as seen by this rank."""
    sent = np.zeros(comm.size, "i8")
    exchange = kind(CountedComm(comm, sent, range(comm.size)), range(comm.size), size, StageClock())
    problems = []
    for call in (1, 2):
        vector = integers(comm.rank, size, seed + call)
        exchange(vector)
        if vector.tobytes() != exact_sum(comm, size, seed + call).tobytes():
            problems.append(f"{kind.__name__}, {size} entries, call {call}: the sum is wrong")
    predicted = Counter()
    for peer, nbytes in exchange.predicted():
        predicted[peer] += 2 * nbytes
    if [predicted[peer] for peer in range(comm.size)] != sent.tolist():
        problems.append(f"{kind.__name__}, {size}: sent {sent}, predicted {predicted}")
    if sum(gather_json(comm, int(sent.sum()))) != 2 * total_nbytes(kind, comm.size, size):
        problems.append(f"{kind.__name__}, {size}: not the bytes of the literature")
    return problems


def check(comm, size, seed):
    backwards = comm.Split(0, key=-comm.rank)
    together(
        comm,
        [
            problem
            for kind in KINDS
            for ordered in (comm, backwards)
            for problem in problems_of(kind, ordered, size, seed)
        ],
    )
    backwards.Free()


@pytest.mark.ranks(1)
@in_lockstep
@given(SIZES, st.integers(0, 99))
def test_one_rank_has_the_sum_and_sends_nothing(comm, size, seed):
    check(comm, size, seed)


@pytest.mark.ranks(2)
@in_lockstep
@given(SIZES, st.integers(0, 99))
def test_two_ranks_have_the_exact_sum_in_the_bytes_foretold(comm, size, seed):
    check(comm, size, seed)


@pytest.mark.ranks(3)
@in_lockstep
@given(SIZES, st.integers(0, 99))
def test_three_ranks_have_the_exact_sum_in_the_bytes_foretold(comm, size, seed):
    check(comm, size, seed)


@pytest.mark.ranks(4)
@in_lockstep
@given(SIZES, st.integers(0, 99))
def test_four_ranks_have_the_exact_sum_in_the_bytes_foretold(comm, size, seed):
    check(comm, size, seed)


@pytest.mark.ranks(5)
@in_lockstep
@given(SIZES, st.integers(0, 99))
def test_five_ranks_have_the_exact_sum_in_the_bytes_foretold(comm, size, seed):
    check(comm, size, seed)


@pytest.mark.slow
@pytest.mark.ranks(8)
@pytest.mark.parametrize("ranks", [7, 8])
def test_seven_and_eight_ranks_have_the_exact_sum_in_the_bytes_foretold(comm, ranks):
    some = comm.Split(comm.rank < ranks, key=comm.rank)
    for size in (0, 1, ranks - 1, ranks + 1, 1000, 70_001) if comm.rank < ranks else ():
        check(some, size, seed=0)
    some.Free()


@pytest.mark.ranks(5)
@pytest.mark.parametrize("kind", KINDS)
def test_rounded_sums_are_the_same_bits_on_every_rank(comm, kind):
    for size in (3, 1000, 70_001):
        vector = np.random.default_rng(comm.rank).normal(size=size).astype("f4")
        kind(comm, range(comm.size), size, StageClock())(vector)
        assert len(set(gather_json(comm, vector.tobytes().hex()[: 10**6]))) == 1


@pytest.mark.ranks(3)
def test_two_chunks_that_arrive_at_a_time_have_each_its_place(comm):
    """What is received next must not overwrite what is being added, however fast it is."""
    spy, size = SpyComm(comm), 100_000
    DoubleTree(spy, range(comm.size), size, StageClock())(np.ones(size, "f4"))
    places = {}
    for buffer, *sender in spy.received:
        places.setdefault(tuple(sender), []).append(buffer)
    together(
        comm,
        [
            sender
            for sender, buffers in places.items()
            for one, other in itertools.pairwise(buffers)
            if np.shares_memory(one, other)
        ],
    )


@pytest.mark.ranks(3)
@pytest.mark.parametrize("algorithm", ["ring", "tree", "doubling", "recursive"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_number_of_one_rank_is_known_on_all(comm, algorithm, bad):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 1))) as tiers:
        allreduce = isthmus.Allreduce(tiers, 40_000, algorithm)
        for culprit in range(comm.size):
            vector = np.ones(40_000, "f4")
            allreduce(vector)
            assert allreduce.finite
            if comm.rank == culprit:
                vector[20_001] = bad
            allreduce(vector)
            assert not allreduce.finite


@pytest.mark.ranks(4)
def test_messages_in_a_tree_stay_under_the_eager_limit(comm):
    spy, size = SpyComm(comm), 100_001
    DoubleTree(spy, range(comm.size), size, StageClock())(np.ones(size, "f4"))
    assert max(spy.sent) <= 60 * 1024
    assert len(spy.sent) >= size / 2 // (15 * 1024)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("limit", [4, 64, 4096])
@pytest.mark.parametrize("size", [0, 1, 2, 1000, 1025])
def test_a_vector_over_the_limit_of_a_message_goes_in_pieces(comm, monkeypatch, limit, size):
    """The limit is lowered here, so that nobody needs 2 GiB to see that it is kept."""
    monkeypatch.setattr(messages, "PIECE_NBYTES", limit)
    for kind in (Ring, Doubling, Recursive):
        spy, vector = SpyComm(comm), integers(comm.rank, size, 0)
        exchange = kind(spy, range(comm.size), size, StageClock())
        exchange(vector)
        assert vector.tobytes() == exact_sum(comm, size, 0).tobytes()
        assert max(spy.sent, default=0) <= limit
        assert exchange.inbox.nbytes <= 2 * limit
        assert sum(spy.sent) == sum(nbytes for _, nbytes in exchange.predicted())


def test_a_message_is_far_from_what_mpi_can_count():
    assert messages.PIECE_NBYTES < 2**31


@pytest.mark.ranks(4)
@in_lockstep
@given(SIZES, st.integers(0, 3), st.sampled_from([64, 1 << 22]))
def test_the_parts_of_a_ring_work_by_themselves(comm, size, root, limit):
    before, messages.PIECE_NBYTES = messages.PIECE_NBYTES, limit if size < 5000 else 1 << 14
    whole, spy, problems = exact_sum(comm, size, 0), SpyComm(comm), []
    inbox = np.empty(ring_inbox_entries(size, comm.size), "f4")
    vector = integers(comm.rank, size, 0)
    ring_reduce(spy, vector, root, inbox=inbox)
    if comm.rank == root and vector.tobytes() != whole.tobytes():
        problems.append("the root has another sum")
    if sum(spy.sent) != (0 if comm.rank == root else 4 * size):
        problems.append(f"reduce sent {sum(spy.sent)}")

    vector, spy = integers(comm.rank, size, 0), SpyComm(comm)
    part = ring_reduce_scatter(spy, vector, inbox=inbox)
    own = ring_part(size, comm.size, comm.rank)
    if part.tobytes() != whole[own].tobytes() or (part.size and not np.shares_memory(part, vector)):
        problems.append("the part is another sum")
    if sum(spy.sent) != 4 * (size - part.size):
        problems.append(f"reduce-scatter sent {sum(spy.sent)}")

    vector, spy = np.full(size, np.nan, "f4"), SpyComm(comm)
    vector[own] = whole[own]
    ring_all_gather(spy, vector)
    if vector.tobytes() != whole.tobytes():
        problems.append("not everything was gathered")
    right = ring_part(size, comm.size, comm.rank + 1)
    if sum(spy.sent) != 4 * (size - (right.stop - right.start)):
        problems.append(f"all-gather sent {sum(spy.sent)}")
    messages.PIECE_NBYTES = before
    together(comm, problems)


@pytest.mark.ranks(1)
def test_a_ring_of_one_has_everything(comm):
    vector = np.arange(5, dtype="f4")
    ring_reduce(comm, vector)
    assert ring_reduce_scatter(comm, vector).tobytes() == np.arange(5, dtype="f4").tobytes()
    ring_all_gather(comm, vector)
    assert vector.tobytes() == np.arange(5, dtype="f4").tobytes()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda comm: ring_reduce(comm, np.zeros(3)), "float32 of one dimension, not float64"),
        (lambda comm: ring_reduce_scatter(comm, np.zeros((2, 2), "f4")), r"shape \(2, 2\)"),
        (lambda comm: ring_all_gather(comm, np.zeros(8, "f4")[::2]), "contiguous"),
        (lambda comm: ring_reduce(comm, np.zeros(3, "f4"), root=2), "ranks 0 to 1, not 2"),
        (lambda comm: ring_reduce(comm, np.zeros(3, "f4"), root=-1), "ranks 0 to 1, not -1"),
        (
            lambda comm: ring_reduce(comm, np.zeros(3, "f4"), inbox=np.zeros(5, "f4")),
            "6 entries or more",
        ),
        (lambda comm: ring_reduce_scatter(comm, np.zeros(3, "f4"), inbox=np.zeros(9)), "not float64"),
    ],
)
def test_a_ring_refuses_what_it_cannot_sum(comm, call, message):
    with pytest.raises(ValueError, match=message):
        call(comm)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("kind", KINDS)
def test_after_the_first_call_no_buffer_is_made(comm, kind):
    size = 1_000_000
    exchange, vector = kind(comm, range(comm.size), size, StageClock()), np.ones(size, "f4")
    exchange(vector)
    tracemalloc.start()
    exchange(vector)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert vector[0] == 9


@pytest.mark.ranks(3)
def test_a_ring_with_an_inbox_makes_no_buffer(comm):
    vector, inbox = np.ones(1_000_000, "f4"), np.empty(ring_inbox_entries(1_000_000, comm.size), "f4")
    ring_reduce_scatter(comm, vector, inbox=inbox)
    tracemalloc.start()
    ring_reduce_scatter(comm, vector, inbox=inbox)
    ring_all_gather(comm, vector)
    ring_reduce(comm, vector, inbox=inbox)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


class Mirror:
    """What is sent comes back, in order; it knows how many messages were under way at once."""

    def __init__(self):
        self.under_way, self.most, self.nbytes = [], 0, []

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        self.under_way.append(buffer.copy())
        self.nbytes.append(buffer.nbytes)
        self.most = max(self.most, len(self.under_way))
        return SimpleNamespace(Wait=lambda: None)

    def Irecv(self, buffer, source, tag=0):  # noqa: N802
        return SimpleNamespace(Wait=lambda: np.copyto(buffer, self.under_way.pop(0)))


@pytest.mark.parametrize("adds", [True, False])
def test_no_more_messages_are_under_way_than_a_flow_lets(adds):
    cluster = isthmus.Cluster(cluster_of(2, 2, latency_seconds=0.01, bytes_per_second=12.5e6))
    flow = Flow.between(cluster, 0, 1)
    window = 12.5e6 * (0.02 + SLACK_SECONDS) + 2 * WIRE_NBYTES
    assert window / 2 < flow.nbytes * flow.ahead <= window
    assert Flow.between(cluster, 1, 1) == AT_ONCE
    for most, (nbytes, ahead) in {3: (400, 3), 10: (400, 99), 1: (None, None)}.items():
        given, taken, mirror = np.arange(1000, dtype="f4"), np.ones(1000, "f4"), Mirror()
        flow = Flow(nbytes, ahead)
        trade(mirror, given, 0, taken, 0, flow, flow, np.empty(2000, "f4") if adds else None)
        np.testing.assert_array_equal(taken, given + adds)
        assert (mirror.most, sum(mirror.nbytes)) == (most, given.nbytes)
