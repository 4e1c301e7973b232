"""The contract of communicators: a wrapper sees all that crosses links, and what it adds is counted."""

import ast
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.collectives.allreduce import Allreduce
from isthmus.links.agreement import broadcast_json, gather_json, together
from isthmus.links.comm import Wrapped, innermost
from isthmus.links.world import (
    all_gather,
    all_gather_rows,
    barrier,
    broadcast,
    gather,
    gather_rows,
    maximum,
)
from isthmus.registry import ALGORITHMS

ROOT = Path(__file__).parents[1]
EXTRA = 7
in_lockstep = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Longer(Wrapped):
    """Each message goes 7 bytes longer, and what left is counted here as MPI has it."""

    def __init__(self, comm, ranks, left, to):
        super().__init__(comm)
        self.ranks, self.left, self.to = ranks, left, to

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        longer = np.concatenate(
            [np.ascontiguousarray(buffer).reshape(-1).view(np.uint8), np.full(EXTRA, 99, np.uint8)]
        )
        self.left.append(longer.nbytes)
        self.to.append(self.ranks[dest])
        return Kept(self.comm.Isend(longer, dest, tag), longer)

    def Irecv(self, buffer, source, tag=0):  # noqa: N802
        longer = np.empty(buffer.nbytes + EXTRA, np.uint8)
        return Shorter(self.comm.Irecv(longer, source, tag), longer, buffer)

    def overhead_nbytes(self, nbytes, dest):
        return EXTRA + super().overhead_nbytes(nbytes + EXTRA, dest)


class Kept:
    def __init__(self, request, message):
        self.request, self.message = request, message

    def Wait(self):  # noqa: N802
        self.request.Wait()

    def Test(self):  # noqa: N802
        return self.request.Test()


class Shorter(Kept):
    def __init__(self, request, message, buffer):
        super().__init__(request, message)
        self.buffer = buffer

    def Wait(self):  # noqa: N802
        self.request.Wait()
        self._end()

    def Test(self):  # noqa: N802
        done = self.request.Test()
        if done:
            self._end()
        return done

    def _end(self):
        if self.buffer is not None:
            assert (self.message[-EXTRA:] == 99).all()
            self.buffer.reshape(-1).view(np.uint8)[:] = self.message[:-EXTRA]
            self.buffer = None


def longer(tiers):
    """Return the tiers with longer messages, the bytes of each as they leave, and to which rank."""
    left, to = [], []
    return tiers.through(lambda comm, ranks: Longer(comm, ranks, left, to)), left, to


@pytest.mark.ranks(4)
@pytest.mark.parametrize("sites", [(2, 2), (1, 2, 1)])
@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if row.own])
def test_what_a_wrapper_adds_is_counted_and_predicted_to_the_byte(comm, name, sites):
    compressor = isthmus.Int8(64) if ALGORITHMS[name].compresses else None
    size, plain = 50_000, np.random.default_rng(comm.rank).normal(size=50_000).astype("f4")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
        expected = Allreduce(tiers, size, name, compressor, chunk_nbytes=6000)(plain)
        wrapped, left, to = longer(tiers)
        allreduce = Allreduce(wrapped, size, name, compressor, chunk_nbytes=6000)
        left.clear(), to.clear()
        mean = allreduce(plain)
        counted = allreduce.sent_to_sites[:-1].tolist()
        by_site = np.bincount([tiers.cluster.site_of_rank[rank] for rank in to], left, len(sites))
        plain, more = (
            isthmus.predict_allreduce(
                cluster, size, algorithm=name, compressor=compressor, chunk_nbytes=6000
            ).seconds
            for cluster in (tiers.cluster, wrapped.cluster)
        )
    assert mean.tobytes() == expected.tobytes()
    rate = tiers.cluster.links[0].bytes_per_second
    assert EXTRA / rate * 0.99 < more - plain < EXTRA * len(tiers.cluster.sites) * 200 / rate
    assert counted == by_site.tolist() == allreduce.predicted_to_sites()[:-1].tolist()
    assert sum(counted) == sum(left)
    assert len(left) > 1 or comm.rank or name == "tree"


@pytest.mark.ranks(2)
def test_mpis_own_algorithm_is_refused_where_it_would_go_past_a_wrapper(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        wrapped, *_ = longer(tiers)
        with pytest.raises(ValueError, match='"mpi" cannot be used on these links: Longer has no Allr'):
            Allreduce(wrapped, 5, "mpi")


@pytest.mark.ranks(4)
@pytest.mark.parametrize("sites", [(4,), (2, 2), (1, 2, 1), (1, 1, 1, 1)])
@in_lockstep
@given(
    rows=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    root=st.integers(0, 3),
    dtype=st.sampled_from(["u1", "f4", "f8"]),
    shape=st.sampled_from([(), (2,), (0,)]),
)
def test_all_ranks_learn_what_each_has_through_whatever_wraps_the_links(
    comm, sites, rows, root, dtype, shape
):
    cluster = isthmus.Cluster(cluster_of(*sites))
    arrays = [
        np.random.default_rng(rank).integers(0, 200, (count, *shape)).astype(dtype)
        for rank, count in enumerate(rows)
    ]
    with isthmus.split_tiers(comm, cluster) as tiers:
        wrapped, left, to = longer(tiers)
        for world in (comm, tiers.world, wrapped.world):
            given, came = arrays[world.rank], arrays[root].copy()
            if world.rank != root:
                came = np.zeros_like(came)
            broadcast(world, came, root)
            assert came.tobytes() == arrays[root].tobytes()
            for found in (all_gather_rows(world, given), gather_rows(world, given, root)):
                if found is not None:
                    assert [each.shape for each in found] == [each.shape for each in arrays]
                    assert [each.tobytes() for each in found] == [each.tobytes() for each in arrays]
            assert (found is None) == (world.rank != root)
            alike = np.full((2, *shape), world.rank, dtype)
            for found in (all_gather(world, alike), gather(world, alike, root)):
                assert (
                    found is None
                    or [
                        (each == rank).all() and each.shape == alike.shape
                        for rank, each in enumerate(found)
                    ]
                    == [True] * 4
                )
            assert maximum(world, [world.rank, -world.rank]).tolist() == [3, 0]
            barrier(world)
        assert all(cluster.site_of_rank[rank] != tiers.site_index for rank in to)
        assert bool(left) == (wrapped.world.leaders is not None)


@pytest.mark.ranks(4)
def test_agreement_goes_through_what_wraps_the_links(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 1, 1))) as tiers:
        wrapped, left, _ = longer(tiers)
        assert gather_json(wrapped.world, comm.rank * "é") == [rank * "é" for rank in range(4)]
        assert broadcast_json(wrapped.world, {"root": comm.rank}, 2) == {"root": 2}

        def fail():
            raise isthmus.IsthmusError("no")

        with pytest.raises(isthmus.IsthmusError, match=r"no \(on rank 3\)"):
            together(wrapped.world, fail if comm.rank == 3 else lambda: None)
        assert bool(left) == (wrapped.world.leaders is not None)
        assert innermost(wrapped.world) == innermost(tiers.world)


COLLECTIVES = {
    "Bcast",
    "Gather",
    "Gatherv",
    "Allgather",
    "Allgatherv",
    "Scatter",
    "Scatterv",
    "Reduce",
    "Allreduce",
    "Reduce_scatter",
    "Alltoall",
    "Alltoallv",
    "Scan",
    "Barrier",
    "Ibarrier",
    "Sendrecv",
    "Ibcast",
    "Iallreduce",
    "Iallgather",
    "Neighbor_alltoall",
}
INSIDE_SITES = {"links/world.py"}  # MPI's own on a site's communicator
PLAYED = {"links/in_process.py"}  # threads that stand for ranks: methods of its own
MPI_ITSELF = {"collectives/of_mpi.py", "links/on_device.py", "links/traced.py"}  # "mpi"


def test_no_collective_of_mpi_crosses_sites():
    """All ranks' doings are in `links.world`, on the verbs; MPI's collectives stay inside a site."""
    for path in sorted((ROOT / "src/isthmus").rglob("*.py")):
        name = str(path.relative_to(ROOT / "src/isthmus"))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in COLLECTIVES:
                where = f"{path}:{node.lineno} {ast.unparse(node)}"
                if name in INSIDE_SITES:
                    assert ast.unparse(node.value) in ("site", "world.site"), where
                elif name in PLAYED:
                    assert ast.unparse(node.value) == "self", where
                else:
                    assert name in MPI_ITSELF, where
                    assert node.attr == "Allreduce", where


@pytest.mark.parametrize("nbytes", [7, 28])
def test_the_time_model_knows_what_wrappers_add_to_each_message(nbytes):
    """Int8 in chunks over one link: so many more bytes a chunk, at the link's rate."""
    cluster = isthmus.Cluster(cluster_of(1, 1, latency_seconds=0.01, bytes_per_second=1e6))
    size, compressor = 50_000, isthmus.Int8(250)
    predicted = [
        isthmus.predict_allreduce(
            each,
            size,
            algorithm="hierarchical",
            compressor=compressor,
            chunk_nbytes=compressor.wire_nbytes(5000),
        ).links_seconds
        for each in (cluster, cluster.with_overhead(nbytes))
    ]
    assert predicted[1] - predicted[0] == pytest.approx(10 * nbytes / 1e6, rel=1e-9)
    assert cluster.with_overhead(3).with_overhead(4).overhead_nbytes == 7
    assert cluster.overhead_nbytes == 0
