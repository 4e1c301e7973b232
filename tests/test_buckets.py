"""Buckets: pieces of a vector that travel while the rest is computed."""

import itertools
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import example, given
from hypothesis import strategies as st
from patience import quickest

import isthmus
from isthmus.models import Convolutional, Perceptron
from isthmus.vectors import bucket_slices


def vector_of(rank, size, seed=0):
    return np.random.default_rng([seed, rank]).normal(size=size).astype("f4")


@given(st.lists(st.integers(0, 1000), max_size=12), st.integers(1, 20))
@example([0, 1], 1)
def test_buckets_cover_the_vector_from_its_end_and_cut_no_tensor(lengths, buckets):
    bounds = np.cumsum([0, *lengths]).tolist()
    tensors = [slice(first, last) for first, last in itertools.pairwise(bounds)]
    cut = bucket_slices(tensors, buckets)
    assert len(cut) <= max(buckets, 1) or sum(lengths) == 0
    assert [part.start for part in cut[:-1]] == [part.stop for part in cut[1:]]
    if tensors:
        assert (cut[0].stop, cut[-1].start) == (bounds[-1], 0)
    assert {part.start for part in cut} <= {tensor.start for tensor in tensors}


@pytest.mark.parametrize("model", [Perceptron(20, (7, 5), 3), Convolutional(12, 12, (2, 3), 4)])
def test_what_a_model_calls_ready_does_not_change_any_more(model):
    draw = np.random.default_rng(0)
    features, targets = draw.normal(size=(5, *model.inputs_shape)), draw.integers(0, 3, 5)
    gradient, seen = np.zeros(model.size, "f4"), []
    model.gradient(
        model.initial(0),
        features,
        targets,
        gradient,
        lambda first: seen.append((first, gradient[first:].copy())),
    )
    firsts = [first for first, _ in seen]
    assert firsts == sorted(firsts, reverse=True)
    assert firsts[-1] == 0
    assert len(firsts) > 1
    for first, part in seen:
        np.testing.assert_array_equal(part, gradient[first:])


@pytest.mark.ranks(4)
@pytest.mark.parametrize("sites", [(4,), (2, 2), (1, 2, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    ("algorithm", "compressor"),
    [
        ("mpi", None),
        ("ring", None),
        ("tree", None),
        ("doubling", None),
        ("recursive", None),
        ("hierarchical", None),
        ("hierarchical", isthmus.Int8(block=64)),
        ("hierarchical", isthmus.Int4(block=4)),
        ("hierarchical", isthmus.Int8(block=64, rounding="stochastic")),
    ],
    ids=str,
)
def test_buckets_give_the_bits_of_the_whole(comm, sites, algorithm, compressor):
    """Cut at the grain, in any order: the same wires, so the same means and the same residuals."""
    size, cuts = 64 * 1000 + 5, [0, 64 * 10, 64 * 11, 64 * 700, 64 * 1000 + 5]
    buckets = [slice(first, last) for first, last in itertools.pairwise(cuts)]
    buckets = [buckets[number] for number in (3, 1, 0, 2)]
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
        whole = isthmus.Allreduce(tiers, size, algorithm, compressor)
        cut = isthmus.Allreduce(tiers, size, algorithm, compressor, buckets=buckets)
        for step in range(3):
            vector = vector_of(comm.rank, size, step)
            expected = whole(vector)
            for bucket in buckets:
                piece = vector[bucket].copy()
                cut.start(piece)
                piece[:] = np.nan  # the caller may use it again
            assert cut.finish().tobytes() == expected.tobytes()
        assert cut.residual.tobytes() == whole.residual.tobytes()
        each = {key: nbytes // 3 for key, nbytes in cut.sent_nbytes.items()}
        assert each == cut.predicted_nbytes()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    "compressor",
    [isthmus.TopK(0.1), isthmus.TopK(0.1, "threshold"), isthmus.LowRank(2, ((30, 20), (20,), (20, 10)))],
    ids=str,
)
def test_a_compressor_of_the_whole_sees_its_bucket(comm, compressor):
    """What is sent and what is kept add up to what was given, bucket by bucket."""
    size, buckets = 820, [slice(600, 820), slice(0, 600)]
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        allreduce = isthmus.Allreduce(tiers, size, compressor=compressor, buckets=buckets)
        given_sum, sent = np.zeros(size), np.zeros(size)
        for step in range(4):
            vector = vector_of(comm.rank, size, step)
            sent += 2 * allreduce(vector).astype("f8")
            given_sum += vector
        both, kept = np.empty((2, size)), np.empty((2, size))
        comm.Allgather(given_sum, both)
        comm.Allgather(allreduce.residual.astype("f8"), kept)
        np.testing.assert_allclose(sent + 2 * kept.sum(0), both.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    "buckets",
    [[], [slice(0, 5)], [slice(0, 6), slice(5, 10)], [slice(1, 10)], [slice(0, 5), slice(6, 10)]],
)
def test_buckets_that_do_not_cover_the_vector_once_are_refused(comm, buckets):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        with pytest.raises(ValueError, match="must cover the 10 entries once"):
            isthmus.Allreduce(tiers, 10, buckets=buckets)
        with pytest.raises(ValueError, match="cuts a tensor"):
            isthmus.Allreduce(
                tiers, 10, buckets=[slice(0, 5), slice(5, 10)], compressor=isthmus.LowRank(1, ((10,),))
            )


@pytest.mark.ranks(2)
def test_buckets_out_of_turn_are_refused(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        allreduce = isthmus.Allreduce(tiers, 10, buckets=[slice(4, 10), slice(0, 4)])
        with pytest.raises(ValueError, match="0 of 2 buckets are started"):
            allreduce.finish()
        allreduce.start(np.zeros(6, "f4"))
        with pytest.raises(ValueError, match="1 of 2 buckets are started"):
            allreduce.finish()
        allreduce.start(np.zeros(4, "f4"))
        with pytest.raises(ValueError, match="all 2 buckets are started"):
            allreduce.start(np.zeros(4, "f4"))
        assert allreduce.finish().tobytes() == bytes(40)
        for length in (4 if comm.rank else 6, 4):
            allreduce.start(np.zeros(length, "f4"))
        with pytest.raises(ValueError, match=r"shape \(6,\).*on rank 1"):
            allreduce.finish()


@pytest.mark.ranks(3)
@pytest.mark.parametrize("sites", [(1, 2), (1, 1, 1)])
def test_a_link_works_while_the_ranks_compute(comm, sites):
    """Half of the time on the link is hidden: less than the sum, and all of the overlap, not some."""
    cluster = isthmus.Cluster(cluster_of(*sites, latency_seconds=0.01, bytes_per_second=2e6))
    size, m, pause = 200_000, 8, 0.05  # 0.4 s a direction; 0.4 s of computing
    buckets = [slice(first, first + size // m) for first in range(0, size, size // m)]
    with isthmus.split_tiers(comm, cluster) as tiers:
        allreduce = isthmus.Allreduce(tiers.paced(), size, buckets=buckets)
        vector = vector_of(comm.rank, size)

        def step():
            for bucket in buckets:
                time.sleep(pause)
                allreduce.start(vector[bucket])
            allreduce.finish()

        # The last bucket's crossing (two past a hub) cannot be hidden, nor the latencies.
        crossings = 1 if len(sites) == 2 else 2
        most = m * pause + crossings * (0.05 + 0.01) * 1.1 + 0.1
        assert quickest(comm, step, most) < most


@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    "compressor",
    [
        None,
        isthmus.Dense("bfloat16"),
        isthmus.Int8(),
        isthmus.Int8(rounding="stochastic"),
        isthmus.Int4(),
        isthmus.OneBit(),
        isthmus.TopK(0.01, "threshold"),
        isthmus.TopK(0.01, "random"),
    ],
    ids=str,
)
def test_after_the_first_call_nothing_grows_with_the_vector_but_the_mean(comm, compressor):
    """The new array that is returned is all; a sparse wire may take a few times its own length."""
    size = 1_000_000
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        allreduce = isthmus.Allreduce(tiers, size, compressor=compressor)
        vector = vector_of(comm.rank, size)
        allreduce(vector)
        tracemalloc.start()
        allreduce(vector)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 4 * size <= peak < 1.15 * 4 * size


@pytest.mark.ranks(4)
@pytest.mark.parametrize("sites", [(2, 2), (1, 2, 1)])
def test_a_bucket_has_its_own_compressor_and_weights_travel_beside_the_vector(comm, sites):
    """The exact bucket says by what to divide, whatever the weights are; in pieces or whole."""
    size, counted = 3000, 8
    buckets = [slice(1008, size), slice(counted, 1008), slice(0, counted)]
    compressors = [isthmus.Int8(block=64), isthmus.TopK(0.1), None]
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
        allreduce = isthmus.Allreduce(tiers, size, compressor=compressors, weight=2, buckets=buckets)
        given, sent = np.zeros(size), np.zeros(size)
        for step, weights in enumerate(([2, 2, 2, 2], [5, 0, 1, 2], [0, 0, 3, 0])):
            vector = vector_of(comm.rank, size, step)
            vector[:counted] = 1
            allreduce.weigh(weights[comm.rank])
            allreduce.start([vector[1008:2000], vector[2000:]])
            for bucket in buckets[1:]:
                allreduce.start(vector[bucket])
            total = allreduce.finish()
            assert (total[:counted] == np.float32(sum(weights) / 8)).all()
            given += np.float32(weights[comm.rank] / 8) * vector.astype("f8")
            sent += total
        every, kept = np.empty((2, comm.size, size))
        comm.Allgather(given, every)
        comm.Allgather(allreduce.residual.astype("f8"), kept)
        np.testing.assert_allclose(sent + kept.sum(0), every.sum(0), rtol=1e-4, atol=1e-4)
        assert not allreduce.residual[:counted].any()
        once = allreduce.predicted_nbytes()
        assert allreduce.sent_nbytes == {way: 3 * nbytes for way, nbytes in once.items()}
        if len(sites) == 2 and comm.rank in (0, 2):
            lengths = [bucket.stop - bucket.start for bucket in buckets]
            wires = [
                compressor.wire_nbytes(length) for compressor, length in zip(compressors[:2], lengths)
            ]
            assert once["link"] == sum(wires) + 4 * counted
        again = isthmus.Allreduce(tiers, size, compressor=compressors, weight=2, buckets=buckets)
        again.load({name: array.copy() for name, array in allreduce.state().items()})
        vector = vector_of(comm.rank, size, 9)
        again.weigh(0 if comm.rank < 2 else 3)
        allreduce.weigh(0 if comm.rank < 2 else 3)
        assert again(vector).tobytes() == allreduce(vector).tobytes()

        with pytest.raises(ValueError, match="one for each of the 3 buckets, not 2"):
            isthmus.Allreduce(tiers, size, compressor=compressors[:2], buckets=buckets)
        with pytest.raises(ValueError, match="ranks ask for different allreduces"):
            other = compressors if comm.rank else [None, *compressors[1:]]
            isthmus.Allreduce(tiers, size, compressor=other, buckets=buckets)
        with pytest.raises(ValueError, match="exact float32"):
            isthmus.Allreduce(tiers, size, "ring", compressors, buckets=buckets)
        with pytest.raises(ValueError, match="weight must not be negative"):
            allreduce.weigh(-1)
        for part in buckets:
            allreduce.start([vector[part], vector[:1]] if comm.rank == 1 else vector[part])
        with pytest.raises(ValueError, match=r"2 pieces hold 1993 entries, not 1992 \(on rank 1\)"):
            allreduce.finish()


def test_a_gradient_from_another_thread_needs_an_mpi_that_takes_it():
    program = """
import threading, mpi4py
mpi4py.rc.thread_level = "funneled"
import numpy as np, isthmus
from clusters import cluster_of
from mpi4py import MPI
tiers = isthmus.split_tiers(MPI.COMM_WORLD, isthmus.Cluster(cluster_of(1)))
allreduce = isthmus.Allreduce(tiers, 3)
def start():
    try:
        allreduce.start(np.ones(3, "f4"))
    except isthmus.IsthmusError as problem:
        print(problem.exit_code, problem)
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(allreduce(np.ones(3, "f4")).tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith("15 MPI was started for one thread alone")
    assert done.stdout.endswith("[1.0, 1.0, 1.0]\n")
