"""The exchange that compiled code makes: bits, bytes and errors of the one that Python makes."""

import hashlib
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mpi4py import MPI
from test_allreduce import SpyComm, splits

import isthmus
from isthmus.collectives import native, native_doubling, of_mpi
from isthmus.collectives.doubling import Doubling
from isthmus.collectives.hierarchical import Hierarchical
from isthmus.collectives.native import Native
from isthmus.collectives.native_doubling import NativeDoubling
from isthmus.collectives.of_mpi import NativeOfMPI, OfMPI
from isthmus.links import native_mpi
from isthmus.links.agreement import gather_json

# All ranks try the same examples, and fail together.
in_lockstep = settings(
    derandomize=True, max_examples=12, database=None, suppress_health_check=list(HealthCheck)
)
COMPRESSORS = (
    None,
    isthmus.Dense(),
    isthmus.Int8(),
    isthmus.Int8(block=64),
    isthmus.Int8(block=100, rounding="stochastic"),
)
SIZES = st.one_of(st.integers(0, 300), st.integers(0, 20_000), st.just(1_000_000))  # three windows


def outcome(tiers, kind, size, **wish):
    """Return what three calls give by an exchange of `kind`, digested, and the bytes that were sent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "Native", kind)
        allreduce = isthmus.Allreduce(tiers, size, weight=1.0 + tiers.world.rank, **wish)
    assert type(allreduce._exchange) is kind
    said = hashlib.sha256()
    for step in range(3):
        vector = np.random.default_rng([step, tiers.world.rank]).normal(size=size).astype("f4")
        if step == 1 and size > 2 and tiers.world.rank == tiers.world.size - 1:
            vector[size // 2] = np.nan
        at_once = step == 2 and len(allreduce.buckets) == 1
        for number, bucket in enumerate([] if at_once else allreduce.buckets):
            middle = (bucket.start + bucket.stop) // 2
            pieces = [vector[bucket.start : middle], vector[middle : bucket.stop]]
            allreduce.start(pieces if number else vector[bucket])
            if step:  # the first time no more is sent than the window
                allreduce.advance()
        mean = allreduce(vector) if at_once else allreduce.finish()
        said.update(mean.tobytes() + allreduce.residual.tobytes())
        said.update(bytes([allreduce.finite]))
    assert {*allreduce.stage_seconds.values()} - {0.0} or size == 0
    predicted = 3 * allreduce.predicted_to_sites()
    assert allreduce.sent_to_sites.tolist() == predicted.tolist()
    return said.hexdigest(), predicted.tolist()


def check_same(comm):
    tiers_of = {}
    for sites in splits(comm.size):
        tiers_of[sites] = isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites)))

    @in_lockstep
    @given(
        st.sampled_from(sorted(tiers_of)),
        st.sampled_from(COMPRESSORS),
        st.booleans(),
        SIZES,
        st.integers(1, 4),
        st.sampled_from([600, 5000, 60 * 1024, 2**23]),
    )
    @example(min(tiers_of), None, False, 2_500_000, 1, 2**25)  # wires of several messages
    @example(min(tiers_of), isthmus.Int8(), True, 70_001, 2, 60 * 1024)
    @example(min(tiers_of), COMPRESSORS[-1], True, 70_001, 2, 5000)
    def same(sites, compressor, feedback, size, buckets, chunk_nbytes):
        cuts = [size * number // buckets for number in range(buckets + 1)]
        wish = {
            "compressor": compressor,
            "error_feedback": feedback,
            "buckets": [slice(*ends) for ends in itertools.pairwise(cuts)][::-1],
            "chunk_nbytes": chunk_nbytes,
        }
        ours, theirs = (outcome(tiers_of[sites], kind, size, **wish) for kind in (Native, Hierarchical))
        told = gather_json(comm, [ours == theirs, ours[0]])
        assert all(equal for equal, _ in told), told

    same()
    for tiers in tiers_of.values():
        with tiers:
            pass


# One test a number of ranks, so that each runs in one mpirun with the others of its number.
@pytest.mark.ranks(1)
def test_one_rank(comm):
    check_same(comm)


@pytest.mark.ranks(2)
def test_two_ranks(comm):
    check_same(comm)


@pytest.mark.ranks(3)
def test_three_ranks(comm):
    check_same(comm)


@pytest.mark.ranks(4)
def test_four_ranks(comm):
    check_same(comm)


@pytest.mark.ranks(5)
def test_five_ranks(comm):
    check_same(comm)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("kind", [Native, Hierarchical])
def test_sums_that_are_under_way_at_once_do_not_mix(comm, kind, monkeypatch):
    """The hub ends the later one first, and so sends it down first."""
    monkeypatch.setattr(native, "Native", kind)
    vectors = [np.full(20_000, value, "f4") for value in (comm.rank, 10 * comm.rank)]
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1, 1))) as tiers:
        early, late = (isthmus.Allreduce(tiers, 20_000, chunk_nbytes=4000) for _ in vectors)
        for _ in range(2):
            for allreduce, vector in zip((early, late), vectors):
                allreduce.start(vector)
            means = [allreduce.finish() for allreduce in (late, early)]
            np.testing.assert_allclose(means, [[10.0] * 20_000, [1.0] * 20_000], rtol=1e-6)


@pytest.mark.ranks(2)
def test_compiled_code_and_python_understand_each_other_and_it_is_used_where_it_can_be(
    comm, monkeypatch
):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        vector = np.random.default_rng(comm.rank).normal(size=50_000).astype("f4")
        expected = isthmus.Allreduce(tiers, vector.size, compressor=isthmus.Int8())(vector)
        strided = np.repeat(vector, 2)[::2]
        wrapped = replace(tiers, leaders=SpyComm(tiers.leaders)) if comm.rank else tiers
        mixed = isthmus.Allreduce(wrapped, vector.size, compressor=isthmus.Int8())
        assert type(mixed._exchange) is (Hierarchical if comm.rank else Native)
        assert mixed(strided).tobytes() == expected.tobytes()
        for seen, compressor in ((tiers.paced(), None), (tiers, isthmus.OneBit())):
            today = isthmus.Allreduce(seen, 10, compressor=compressor)
            assert type(today._exchange) is Hierarchical
        monkeypatch.setattr(native_mpi, "FUNCTIONS", (*native_mpi.FUNCTIONS, "MPI_Nowhere"))
        native_mpi.addresses.cache_clear()
        assert "MPI_Nowhere" in native_mpi.why_not()
        today = isthmus.Allreduce(tiers, vector.size, compressor=isthmus.Int8())
        assert type(today._exchange) is Hierarchical
        assert today(vector).tobytes() == expected.tobytes()
        native_mpi.addresses.cache_clear()


@pytest.mark.ranks(2)
def test_a_thread_that_waits_leaves_the_core_to_what_computes(comm):
    """Its bits are those of the main thread; where the other rank is late, it hardly runs meanwhile."""
    vector, seconds = np.random.default_rng(comm.rank).normal(size=50_000).astype("f4"), 1.0
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        first, second = (isthmus.Allreduce(tiers, vector.size, compressor=isthmus.Int8()) for _ in "ab")
        expected = [first(vector).tobytes() for _ in range(2)]

        def sum_up():
            second.start(vector)
            before = time.thread_time()
            return second.finish().tobytes(), time.thread_time() - before

        with ThreadPoolExecutor(1) as beside:
            for step, wanted in enumerate(expected):
                if step == comm.rank:
                    time.sleep(seconds)
                mean, busy_seconds = beside.submit(sum_up).result()
                assert mean == wanted
                assert step == comm.rank or busy_seconds < seconds / 4


BY_PYTHON_OR_NOT = {
    "doubling": (native_doubling, Doubling, NativeDoubling),
    "mpi": (of_mpi, OfMPI, NativeOfMPI),
}


def summed(tiers, size, algorithm, compiled):
    """Return what three calls give, by compiled code or by Python, and the bytes sent."""
    module, *kinds = BY_PYTHON_OR_NOT[algorithm]
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(module, "PIECE_NBYTES", -1)
        allreduce = isthmus.Allreduce(tiers, size, algorithm, weight=1.0 + tiers.world.rank)
    assert type(allreduce._exchange) is kinds[compiled]
    said = hashlib.sha256()
    for step in range(3):
        vector = np.random.default_rng([step, tiers.world.rank]).normal(size=size).astype("f4")
        if step == 1 and size > 2 and tiers.world.rank == tiers.world.size - 1:
            vector[size // 2] = np.inf
        if step == 2:
            allreduce.start([vector[: size // 2], vector[size // 2 :]])
        said.update((allreduce.finish() if step == 2 else allreduce(vector)).tobytes())
        said.update(bytes([allreduce.finite]))
        assert allreduce.finite == (step != 1 or size <= 2)
    assert allreduce.sent_to_sites.tolist() == (3 * allreduce.predicted_to_sites()).tolist()
    return said.hexdigest(), allreduce.sent_to_sites.tolist()


@pytest.mark.ranks(5)
@pytest.mark.parametrize("algorithm", BY_PYTHON_OR_NOT)
def test_compiled_code_has_the_bits_of_python_and_goes_together_with_it(comm, algorithm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 3))) as tiers:
        for size in (0, 1, 2, 250, 70_001):
            ours = summed(tiers, size, algorithm, compiled=True)
            assert ours == summed(tiers, size, algorithm, compiled=False)
            mixed = summed(tiers, size, algorithm, compiled=comm.rank % 2 == 1)
            assert gather_json(comm, [ours[0], mixed[0]]) == [[ours[0], ours[0]]] * comm.size
        if algorithm == "doubling":  # that MPI's own messages cannot be held back is refused
            strange = isthmus.Allreduce(tiers.paced(), 10, algorithm)
            assert type(strange._exchange) is Doubling


@pytest.mark.ranks(2)
@pytest.mark.parametrize("algorithm", ["doubling", "hierarchical", "mpi"])
def test_what_is_not_fit_for_one_compiled_call_has_the_same_bits_without_it(
    comm, algorithm, monkeypatch
):
    plain = np.arange(10, dtype="f4") / 3
    frozen, strided = plain.copy(), np.repeat(plain, 2)[::2]
    frozen.flags.writeable = False
    wrong = np.zeros(10 if comm.rank else 11, "f4")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        allreduce = isthmus.Allreduce(tiers, 10, algorithm)
        allreduce(plain)  # the first vector tells where all are
        at_once, calls = allreduce._at_once, []
        monkeypatch.setattr(allreduce, "_at_once", lambda *given: calls.append(1) or at_once(*given))
        expected = allreduce(plain).tobytes()
        assert calls == [1]
        one, other = allreduce.stage_seconds, allreduce.total_seconds
        assert 0 < sum(one.values()) < sum(other.values())
        with pytest.raises(ValueError, match=r"shape \(10,\)"):
            allreduce(wrong)
        with ThreadPoolExecutor(1) as beside:
            found = [allreduce(strided), allreduce(frozen), beside.submit(allreduce, plain).result()]
        assert len(calls) == 1 + (comm.rank > 0)
        found += [allreduce(plain)]
        assert {mean.tobytes() for mean in found} == {expected}
        assert allreduce.calls == 7


@pytest.mark.ranks(2)
@pytest.mark.parametrize("kind", [Native, Hierarchical])
def test_an_error_of_mpi_is_the_same_exception(comm, kind, monkeypatch):
    """A message that is too long for its place, from a neighbour that has gone another way."""
    monkeypatch.setattr(native, "Native", kind)
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        allreduce = isthmus.Allreduce(tiers, 10)
        if tiers.world.rank:
            own = np.empty(10, "f4")
            tiers.leaders.Recv(own.view("u1"), 0, allreduce._tag)
            tiers.leaders.Send(np.zeros(41, "u1"), 0, allreduce._tag)
        else:
            with pytest.raises(MPI.Exception) as raised:
                allreduce(np.zeros(10, "f4"))
            assert raised.value.Get_error_class() == MPI.ERR_TRUNCATE
