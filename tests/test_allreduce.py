"""Allreduce: the right mean, the same bits everywhere, the bytes that were foretold."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.collectives import allreduce as front
from isthmus.errors import NoDeviceError
from isthmus.links.agreement import gather_json
from isthmus.links.on_device import Host

SIZES = (0, 1, 2, 3, 7, 255, 1000, 70_001)
EXACT = (
    ("mpi", None),
    ("ring", None),
    ("tree", None),
    ("doubling", None),
    ("recursive", None),
    ("hierarchical", None),
)
LOSSY = (
    isthmus.Dense("float16"),
    isthmus.Dense("bfloat16"),
    isthmus.Int8(),
    isthmus.Int8(block=64, rounding="stochastic"),
    isthmus.OneBit(),
    isthmus.TopK(0.1),
    isthmus.TopK(0.1, "threshold"),
    isthmus.TopK(0.1, "random"),
    isthmus.TopK(0.1, bits=2),
    isthmus.LowRank(),
)


def splits(ranks):
    """Return ways to make sites of `ranks` ranks: one site, two, three, one a rank."""
    ways = {(ranks,), (1,) * ranks}
    if ranks > 1:
        ways |= {(1, ranks - 1), (ranks - 1, 1)}
    if ranks > 2:
        ways |= {(1, 1, ranks - 2)}
    return sorted(ways)


def vector_of(rank, size, seed=0):
    return np.random.default_rng([seed, rank]).normal(size=size).astype("f4")


def digests(comm, vector):
    return set(gather_json(comm, hashlib.sha256(vector.tobytes()).hexdigest()))


def check_exact(comm):
    for sites in splits(comm.size):
        with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
            for algorithm, compressor in EXACT:
                for size in SIZES:
                    weight = 1.0 + tiers.world.rank
                    allreduce = isthmus.Allreduce(tiers, size, algorithm, compressor, weight=weight)
                    vector = vector_of(tiers.world.rank, size)
                    kept = vector.copy()
                    mean = allreduce(vector)
                    whole = sum(range(1, comm.size + 1))
                    true = sum(
                        (r + 1) / whole * vector_of(r, size).astype("f8") for r in range(comm.size)
                    )
                    np.testing.assert_allclose(mean, true, rtol=1e-5, atol=1e-6)
                    np.testing.assert_array_equal(vector, kept)
                    assert len(digests(comm, mean)) == 1
                    assert digests(comm, allreduce(vector)) == digests(comm, mean)


def check_lossy(comm):
    """Given == sent + kept, over several steps; replicas equal; bytes as predicted."""
    for sites in splits(comm.size):
        with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
            for compressor in LOSSY:
                for size in (0, 1, 300, 70_001):
                    allreduce = isthmus.Allreduce(tiers, size, compressor=compressor)
                    given, sent = np.zeros(size), np.zeros(size)
                    for step in range(3):
                        mean = allreduce(vector_of(tiers.world.rank, size, step))
                        assert len(digests(comm, mean)) == 1
                        sent += mean
                        given += np.mean([vector_of(r, size, step) for r in range(comm.size)], 0)
                    kept = np.empty(size)
                    comm.Allreduce(allreduce.residual.astype("f8"), kept)
                    np.testing.assert_allclose(given, sent + kept, atol=2e-5)
                    counted = {kind: 3 * n for kind, n in allreduce.predicted_nbytes().items()}
                    assert allreduce.sent_nbytes == counted


def check_bytes(comm):
    for sites in splits(comm.size):
        with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
            for algorithm, compressor in (*EXACT, ("hierarchical", isthmus.Int8())):
                for size in SIZES:
                    allreduce = isthmus.Allreduce(tiers, size, algorithm, compressor)
                    allreduce(vector_of(comm.rank, size))
                    assert allreduce.sent_nbytes == allreduce.predicted_nbytes()


# One test a number of ranks, so that each runs in one mpirun with the others of its number.
@pytest.mark.ranks(1)
def test_one_rank(comm):
    check_exact(comm), check_lossy(comm), check_bytes(comm)


@pytest.mark.ranks(2)
def test_two_ranks(comm):
    check_exact(comm), check_lossy(comm), check_bytes(comm)


@pytest.mark.ranks(3)
def test_three_ranks(comm):
    check_exact(comm), check_lossy(comm), check_bytes(comm)


@pytest.mark.ranks(4)
def test_four_ranks(comm):
    check_exact(comm), check_lossy(comm), check_bytes(comm)


@pytest.mark.ranks(5)
def test_five_ranks(comm):
    check_exact(comm), check_lossy(comm), check_bytes(comm)


@pytest.mark.ranks(4)
def test_interleaved_ranks_give_the_same_bits_as_ranks_in_order(comm):
    """Rank order is free: the answer depends on who is in which site, not on the numbering."""
    table = cluster_of(2, 2)
    results = []
    for places in ([0, 1], [2, 3]), ([0, 2], [1, 3]), ([3, 1], [0, 2]), ([3, 2], [1, 0]):
        for site, ranks in zip(table["site"], places):
            site["world_ranks"] = ranks
        with isthmus.split_tiers(comm, isthmus.Cluster(table)) as tiers:
            for algorithm, compressor in EXACT[1:] + (("hierarchical", isthmus.Int8()),):
                allreduce = isthmus.Allreduce(tiers, 1000, algorithm, compressor)
                mean = allreduce(vector_of(tiers.world.rank, 1000))
                results.append((algorithm, str(compressor), digests(comm, mean)))
    for first in results[: len(results) // 4]:
        assert [r for r in results if r[:2] == first[:2]] == [first] * 4


class SpyComm:
    """Stands where the leaders' communicator stood and notes the bytes that it is given."""

    def __init__(self, comm):
        self.comm, self.rank, self.size, self.sent = comm, comm.rank, comm.size, []

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        self.sent.append(buffer.nbytes)
        return self.comm.Isend(buffer, dest, tag)


@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    ("compressor", "bytes_an_entry"),
    [
        (None, 4.05),
        (isthmus.Dense("float16"), 2.02),
        (isthmus.Int8(), 1.03),
        (isthmus.OneBit(), 0.135),
        (isthmus.TopK(0.01), 0.0601),
        (isthmus.TopK(0.01, "random"), 0.0401),
        (isthmus.TopK(0.02, bits=2), 0.0254),
        (isthmus.LowRank(2, [(100, 1000)]), 0.0881),
    ],
)
def test_only_the_wire_crosses_the_link(comm, compressor, bytes_an_entry):
    size = 100_000
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        spy = None if tiers.site.rank else SpyComm(tiers.leaders)
        seen = replace(tiers, leaders=spy) if spy else tiers
        allreduce = isthmus.Allreduce(seen, size, compressor=compressor)
        allreduce(vector_of(comm.rank, size))
        assert allreduce.sent_nbytes["link"] == (sum(spy.sent) if spy else 0)
        assert allreduce.sent_nbytes["link"] <= bytes_an_entry * size


@pytest.mark.ranks(4)
@pytest.mark.parametrize("sites", [(4,), (2, 2), (1, 2, 1)])
@pytest.mark.parametrize(
    "compressor",
    [
        None,
        isthmus.Int8(),
        isthmus.OneBit(),
        isthmus.TopK(0.01),
        isthmus.TopK(0.01, "threshold"),
        isthmus.TopK(0.01, "random"),
        isthmus.LowRank(),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_number_anywhere_is_known_everywhere(comm, sites, compressor, bad):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
        allreduce = isthmus.Allreduce(tiers, 5000, compressor=compressor)
        allreduce(vector_of(comm.rank, 5000))
        assert allreduce.finite
        before = allreduce.memory.copy()
        for culprit in range(comm.size):
            vector = vector_of(comm.rank, 5000, seed=1)
            if comm.rank == culprit:
                vector[4321] = bad
            allreduce(vector)
            assert not allreduce.finite
            assert allreduce.memory.tobytes() == before.tobytes()
        assert np.isfinite(allreduce(vector_of(comm.rank, 5000))).all()


@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    ("arguments", "rank", "other", "expected"),
    [
        ({}, 2, {"size": 11}, "ranks ask for different"),
        ({"algorithm": "star"}, 0, {}, "'star'"),
        ({"size": -1}, 0, {}, "negative"),
        ({"algorithm": "ring", "compressor": isthmus.Int8()}, 0, {}, 'needs algorithm = "hierarchical"'),
        ({"algorithm": "tree", "compressor": isthmus.Int8()}, 0, {}, 'needs algorithm = "hierarchical"'),
        ({"algorithm": "ring"}, 0, {"algorithm": "recursive"}, "ranks ask for different"),
        ({}, 1, {"compressor": isthmus.Int8(64)}, "ranks ask for different"),
        ({}, 1, {"error_feedback": False}, "ranks ask for different"),
        ({}, 3, {"weight": -1.0}, "weight must not be negative"),
        ({}, 3, {"weight": float("nan")}, "weight must be finite"),
        ({"weight": 0.0}, 0, {}, "weights of all ranks are 0"),
    ],
)
def test_what_is_wrong_on_one_rank_is_an_error_on_all(comm, arguments, rank, other, expected):
    arguments = {"size": 10, **arguments, **(other if comm.rank == rank else {})}
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        with pytest.raises(ValueError, match=expected):
            isthmus.Allreduce(tiers, **arguments)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("vector", [np.zeros(10), np.zeros(9, "f4"), np.zeros((2, 5), "f4")])
def test_a_vector_of_another_shape_or_dtype_is_refused(comm, vector):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        allreduce = isthmus.Allreduce(tiers, 10)
        with pytest.raises(ValueError, match="float32 of shape"):
            allreduce(vector)


def no_room(*_):
    raise MemoryError("1 GB")


@pytest.mark.ranks(3)
@pytest.mark.parametrize("algorithm", ["hierarchical", "mpi", "ring", "tree", "doubling", "recursive"])
def test_no_room_for_a_mean_is_an_error_on_all_and_the_next_call_may_be_right(
    comm, monkeypatch, algorithm
):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 2))) as tiers:
        for buckets in (None, [slice(500, 900), slice(0, 500)]):
            allreduce = isthmus.Allreduce(tiers, 900, algorithm, buckets=buckets)
            for _ in range(3):  # the first and others
                with monkeypatch.context() as patch:
                    if tiers.world.rank == 1:
                        patch.setattr(Host, "empty", staticmethod(no_room))
                        patch.setattr(front, "room_at_once", lambda *_: None)
                    with pytest.raises(NoDeviceError, match=r"out of memory.*1 GB.*on rank 1\)$"):
                        allreduce(vector_of(comm.rank, 900))
                assert not allreduce.finite
                assert np.abs(allreduce(np.ones(900, "f4")) - 1).max() < 1e-6


@pytest.mark.ranks(2)
@pytest.mark.parametrize("algorithm", ["hierarchical", "mpi", "ring", "tree", "doubling", "recursive"])
def test_what_is_wrong_where_there_are_no_entries_is_an_error_on_all(comm, algorithm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        allreduce = isthmus.Allreduce(tiers, 0, algorithm)
        with pytest.raises(ValueError, match=r"float32 of shape \(0,\).*on rank 1\)$"):
            allreduce(np.zeros(0, "f8" if comm.rank else "f4"))
        assert allreduce(np.zeros(0, "f4")).size == 0
        allreduce = isthmus.Allreduce(tiers, 9, algorithm, buckets=[slice(0, 9), slice(9, 9)])
        allreduce.start(np.ones(9, "f4"))
        allreduce.start(np.zeros(0, "f8" if comm.rank else "f4"))
        before = allreduce.memory.copy()
        with pytest.raises(ValueError, match=r"float32 of shape \(0,\).*on rank 1\)$"):
            allreduce.finish()
        assert (allreduce.memory == before).all()


@pytest.mark.ranks(2)
def test_what_goes_wrong_after_the_last_bucket_is_told_with_the_next_vector(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        allreduce, vector = isthmus.Allreduce(tiers, 9), np.ones(9, "f4")
        allreduce.start(vector)
        if comm.rank:
            allreduce.fail(ValueError("too late"))
        assert (allreduce.finish() == 1).all()
        with pytest.raises(ValueError, match=r"too late \(on rank 1\)$"):
            allreduce(vector)
        assert (allreduce(vector) == 1).all()


@pytest.mark.ranks(2)
def test_a_vector_that_is_too_long_for_mpi_is_refused_before_any_room_is_made(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        with pytest.raises(ValueError, match='"mpi" takes .* 2,147,483,647 entries at most.*"ring"'):
            isthmus.Allreduce(tiers, 1 << 31, "mpi")


@pytest.mark.ranks(3)
def test_weights_that_are_refused_change_nothing(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1, 1))) as tiers:
        with pytest.raises(
            ValueError, match=r"add up to infinity, the largest is 1e\+308: give smaller"
        ):
            isthmus.Allreduce(tiers, 9, weight=1e308)
        combine = isthmus.RobustMean("median", faulty=1)
        for allreduce in (isthmus.Allreduce(tiers, 9), isthmus.Allreduce(tiers, 9, combine=combine)):
            before = allreduce.total_weight, allreduce.share
            with pytest.raises(ValueError, match="infinity"):
                allreduce.reweigh(1e308)
            assert (allreduce.total_weight, allreduce.share) == before
        with pytest.raises(ValueError, match="all weights of site 'site1' are 0"):
            allreduce.reweigh(0 if tiers.world.rank == 1 else 7)
        assert (allreduce.total_weight, allreduce.share) == before


@pytest.mark.ranks(2)
def test_two_sites_round_independently(comm):
    """Stochastic errors of one and the same vector, sent by both sites, are not the same errors."""
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        vector = vector_of(0, 100_000)
        mean = isthmus.Allreduce(
            tiers, vector.size, error_feedback=False, compressor=isthmus.Int8(rounding="stochastic")
        )(vector)
        alone = np.empty_like(vector)
        wire = np.empty(isthmus.Int8().wire_nbytes(vector.size), "u1")
        isthmus.Int8(rounding="stochastic").encode(vector, wire, key=99)
        isthmus.Int8().decode(wire, alone)
        # Two independent errors average to half the variance of one.
        assert np.var(mean - vector) == pytest.approx(np.var(alone - vector) / 2, rel=0.05)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("sites", [(1, 3), (2, 2), (1, 1, 2), (1, 1, 1, 1)])
def test_the_error_of_the_sum_is_one_quantisation(comm, sites):
    """NMSE of int8 on Gaussian vectors: one quantisation between two sites, two past a hub."""
    size = 200_000
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
        mean = isthmus.Allreduce(tiers, size, compressor=isthmus.Int8(), error_feedback=False)(
            vector_of(comm.rank, size)
        )
        true = np.mean([vector_of(r, size).astype("f8") for r in range(comm.size)], 0)
        nmse = ((mean - true) ** 2).sum() / (true**2).sum()
        assert nmse <= (5.2e-5 if len(sites) == 2 else 2 * 5.2e-5)
