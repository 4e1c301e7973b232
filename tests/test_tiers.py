"""Communicators of a cluster, agreement between ranks, and paced links."""

import time

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.errors import ClusterError, PlanError, ShardError, ranks_in_words
from isthmus.links.agreement import broadcast_json, from_root, gather_json, require, together


@pytest.mark.ranks(5)
def test_the_communicators_are_those_of_the_file(comm):
    from mpi4py import MPI

    table = cluster_of(2, 2, 1)
    table["site"][1]["world_ranks"] = [4, 0]
    with isthmus.split_tiers(comm, isthmus.Cluster(table)) as tiers:
        expected = {1: 0, 2: 1, 4: 2, 0: 3, 3: 4}[comm.rank]
        assert tiers.world.rank == expected
        site = (0, 0, 1, 1, 2)[expected]
        assert tiers.site_name == f"site{site}"
        assert tiers.tier == ("cloud" if site == 0 else "edge")
        assert tiers.site.size == (2, 2, 1)[site]
        assert (tiers.leaders != MPI.COMM_NULL) == (expected in (0, 2, 4))
        if tiers.leaders != MPI.COMM_NULL:
            assert (tiers.leaders.rank, tiers.leaders.size) == (site, 3)
        mine, other = (tiers.cloud, tiers.edge) if site == 0 else (tiers.edge, tiers.cloud)
        assert mine.size == (2 if site == 0 else 3)
        assert other == MPI.COMM_NULL


@pytest.mark.ranks(3)
def test_a_job_of_the_wrong_size_is_refused_on_every_rank(comm):
    with pytest.raises(ClusterError, match="mpirun -n 4") as caught:
        isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2)))
    assert caught.value.everywhere


@pytest.mark.ranks(4)
def test_splitting_many_times_leaks_no_communicator(comm):
    cluster = isthmus.Cluster(cluster_of(2, 2))
    for _ in range(300):
        with isthmus.split_tiers(comm, cluster):
            pass


@pytest.mark.ranks(3)
def test_json_travels_from_any_root_and_to_all(comm):
    value = {"text": "é" * comm.rank, "numbers": [1.5, None, True]}
    for root in range(3):
        assert broadcast_json(comm, value, root)["text"] == "é" * root
    assert [item["text"] for item in gather_json(comm, value)] == ["", "é", "éé"]


@pytest.mark.ranks(3)
@pytest.mark.parametrize("culprits", [(0,), (2,), (1, 2), (0, 1, 2)])
def test_an_error_on_some_ranks_is_raised_on_all(comm, culprits):
    def make():
        if comm.rank in culprits:
            raise ShardError("broken")
        return comm.rank

    with pytest.raises(ShardError, match="broken") as caught:
        together(comm, make)
    assert caught.value.everywhere
    assert caught.value.ranks == list(culprits)
    assert (f"(on {ranks_in_words(culprits)})" in str(caught.value)) == (len(culprits) < 3)
    with pytest.raises(PlanError, match="no"):
        require(comm, comm.rank not in culprits, PlanError, "no")
    assert together(comm, lambda: comm.rank) == comm.rank
    require(comm, True, PlanError, "no")


@pytest.mark.ranks(3)
def test_an_error_of_the_root_is_raised_on_all(comm):
    def fail():
        raise PlanError("no plan")

    with pytest.raises(PlanError, match="no plan"):
        from_root(comm, fail, root=1)
    assert from_root(comm, lambda: [1, "a"], root=2) == [1, "a"]


def timed(comm, call):
    """Return seconds from the moment the first rank begins, by the machine's one clock."""
    starts = np.empty(comm.size)
    comm.Barrier()
    start = time.monotonic()
    call()
    end = time.monotonic()
    comm.Allgather(np.array([start]), starts)
    return end - starts.min()


@pytest.mark.ranks(4)
def test_a_paced_link_takes_at_least_its_time_and_carries_the_same_bytes(comm):
    """Lower bounds only: a busy machine may be late, a paced link must never be early."""
    table = cluster_of(2, 2, latency_seconds=0.02, bytes_per_second=1e6)
    with isthmus.split_tiers(comm, isthmus.Cluster(table)) as real:
        tiers, size = real.paced(), 5000
        vector = np.random.default_rng(comm.rank).normal(size=size).astype("f4")
        for algorithm in ("ring", "hierarchical"):
            plain = isthmus.Allreduce(real, size, algorithm)(vector)
            allreduce = isthmus.Allreduce(tiers, size, algorithm)
            paced = []
            seconds = timed(comm, lambda: paced.append(allreduce(vector)))  # noqa: B023
            assert paced[0].tobytes() == plain.tobytes()
            # A part goes round one and a half times in the ring: three crossings of a quarter.
            crossings, nbytes = (1, 4 * size) if algorithm == "hierarchical" else (3, size)
            assert seconds >= crossings * (0.02 + nbytes / 1e6)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("shared", [False, True])
def test_links_that_share_are_paced_as_one(comm, shared):
    """Two sites send 20 kB each to the hub over 1 MB/s: 20 ms side by side, 40 ms when shared."""
    name = {"shared": "uplink"} if shared else {}
    table = cluster_of(1, 1, 1, latency_seconds=0.0, bytes_per_second=1e6, **name)
    with isthmus.split_tiers(comm, isthmus.Cluster(table)) as real:
        leaders = real.paced().leaders
        message = np.zeros(20_000, "u1")

        def exchange():
            if leaders.rank == 0:
                inboxes = [np.empty_like(message) for _ in range(2)]
                requests = [leaders.Irecv(inbox, peer) for inbox, peer in zip(inboxes, (1, 2))]
                for request in requests:
                    request.Wait()
            else:
                leaders.Send(message, 0)

        seconds = timed(comm, exchange)
        assert leaders.rank or seconds >= (0.04 if shared else 0.02)
