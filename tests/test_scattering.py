"""Scattering: every rank gets its own samples, wherever the files are, or all get one error."""

import os
import tracemalloc
from types import SimpleNamespace

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from clusters import cluster_of
from patience import quickest

import isthmus
from isthmus.errors import ShardError
from isthmus.links.agreement import gather_json
from isthmus.planning.replanning import moving_seconds
from isthmus.shards.moving import move_shards

SAMPLES, SHARDS = 600, 12


def arrays():
    draw = np.random.default_rng(3)
    return {
        "features": draw.integers(0, 255, (SAMPLES, 9, 7), dtype="u1"),
        "targets": np.arange(SAMPLES, dtype="i8"),
    }


def packed(comm, folder):
    if comm.rank == 0:
        isthmus.pack_shards(arrays(), folder, SHARDS)
    comm.Barrier()
    return isthmus.ShardSet.open(folder)


def random_plan(ranks, seed):
    """Shards dealt at random; with few ranks some rank often gets nothing."""
    owner = np.random.default_rng(seed).integers(0, ranks, SHARDS)
    if seed % 2:
        owner[:] = owner[0]
    return SimpleNamespace(
        shards_of_rank=[np.flatnonzero(owner == rank).tolist() for rank in range(ranks)]
    )


def check(comm, folder):
    whole = arrays()
    shards = packed(comm, folder)
    bounds = np.cumsum([0, *shards.samples])
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(comm.size))) as tiers:
        for seed in range(4):
            plan = random_plan(comm.size, seed)
            blind = np.random.default_rng(seed + 50).random(comm.size) < (0.6 if seed else 0)
            blind[seed % comm.size] = False
            seen = None if blind[comm.rank] else shards
            local = isthmus.scatter_shards(tiers, seen, plan, piece_nbytes=1000)
            mine = plan.shards_of_rank[comm.rank]
            rows = np.concatenate(
                [np.empty(0, int), *(np.arange(bounds[s], bounds[s + 1]) for s in mine)]
            )
            assert local.samples == len(rows)
            for name, values in whole.items():
                np.testing.assert_array_equal(local.arrays[name], values[rows])
                assert local.arrays[name].dtype == values.dtype
            assert local.received_nbytes == (local.nbytes if blind[comm.rank] else 0)


@pytest.mark.ranks(1)
def test_one_rank_gets_everything(comm, shared_folder):
    check(comm, shared_folder)


@pytest.mark.ranks(2)
def test_two_ranks_get_their_own(comm, shared_folder):
    check(comm, shared_folder)


@pytest.mark.ranks(3)
def test_three_ranks_get_their_own(comm, shared_folder):
    check(comm, shared_folder)


@pytest.mark.ranks(4)
def test_four_ranks_get_their_own(comm, shared_folder):
    check(comm, shared_folder)


@pytest.mark.ranks(5)
def test_five_ranks_get_their_own(comm, shared_folder):
    check(comm, shared_folder)


def breaks(kind):
    """Return what to do to a packed folder so that shard 4 can no longer be delivered."""

    def act(folder):
        path = folder / "shard-00004.h5"
        content = bytearray(path.read_bytes())
        if kind == "missing":
            os.unlink(path)
        elif kind == "other numbers":
            with h5py.File(path, "r+") as file:
                file["features"][3] += 1
        elif kind == "cut":
            path.write_bytes(content[:300])
        else:
            content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
            path.write_bytes(content)

    return act


@pytest.mark.ranks(3)
@pytest.mark.parametrize("kind", ["missing", "cut", "zeroed", "other numbers"])
@pytest.mark.parametrize("blind", [(), (1,), (1, 2)])
def test_a_broken_shard_is_one_error_on_all_ranks(comm, shared_folder, kind, blind):
    """Also where one rank alone reads it, and others wait for what it reads."""
    shards = packed(comm, shared_folder)
    if comm.rank == 0:
        breaks(kind)(shared_folder)
    comm.Barrier()
    plan = SimpleNamespace(shards_of_rank=[[0, 1], [4, 5, 6], [2, 3, *range(7, SHARDS)]])
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(3))) as tiers:
        with pytest.raises(ShardError, match="shard-00004") as caught:
            isthmus.scatter_shards(tiers, None if comm.rank in blind else shards, plan, piece_nbytes=500)
        assert caught.value.everywhere
        assert len(set(gather_json(comm, str(caught.value)))) == 1
        assert "network" not in str(caught.value), "the file is to blame, not its way"


@pytest.mark.ranks(3)
@pytest.mark.parametrize(
    ("owners", "sees", "message"),
    [
        ([[0], [1], [2]], (), "no rank sees"),
        ([[0], [1]], (0,), "plan is for 2 ranks"),
        ([[0], [99], []], (0,), "names shard 99"),
    ],
)
def test_what_cannot_be_scattered_is_refused_by_all(comm, shared_folder, owners, sees, message):
    shards = packed(comm, shared_folder)
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(3))) as tiers:
        with pytest.raises(ShardError, match=message):
            isthmus.scatter_shards(
                tiers, shards if comm.rank in sees else None, SimpleNamespace(shards_of_rank=owners)
            )


@pytest.mark.ranks(2)
def test_ranks_that_see_different_sets_are_told(comm, shared_folder):
    folder = shared_folder / str(comm.rank)
    isthmus.pack_shards(arrays(), folder, SHARDS + comm.rank)
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2))) as tiers:
        with pytest.raises(ShardError, match="another set"):
            isthmus.scatter_shards(tiers, isthmus.ShardSet.open(folder), random_plan(2, 0))


@pytest.mark.ranks(2)
def test_a_rank_holds_its_samples_and_at_most_two_pieces(comm, shared_folder):
    """32 MB from one rank to the other in pieces of 1 MB: counted by tracemalloc."""
    if comm.rank == 0:
        values = np.random.default_rng(0).integers(0, 255, (32, 1 << 20), dtype="u1")
        isthmus.pack_shards({"features": values}, shared_folder, 2, "none")
    comm.Barrier()
    shards = isthmus.ShardSet.open(shared_folder) if comm.rank == 0 else None
    plan = SimpleNamespace(shards_of_rank=[[], [0, 1]])
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2))) as tiers:
        isthmus.scatter_shards(tiers, shards, plan, piece_nbytes=1 << 20)  # imports and caches
        tracemalloc.start()
        local = isthmus.scatter_shards(tiers, shards, plan, piece_nbytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= local.nbytes + (2 << 20) + 300_000


@pytest.mark.ranks(4)
@pytest.mark.parametrize("paced", [False, True])
def test_shards_that_move_leave_what_scattering_would_have_given(comm, shared_folder, paced):
    """From plan to plan, from memory alone; what is moved is the union of what there was."""
    shards = packed(comm, shared_folder / "set")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        tiers = tiers.paced() if paced else tiers
        plans = [random_plan(comm.size, seed) for seed in range(6)]
        places = [np.argsort(np.concatenate(plan.shards_of_rank)).astype(int) for plan in plans]
        places = [
            np.repeat(range(4), list(map(len, plan.shards_of_rank)))[place]
            for plan, place in zip(plans, places)
        ]
        local = isthmus.scatter_shards(tiers, shards, plans[0])
        for plan, old, new in zip(plans[1:], places, places[1:]):
            before = local.received_nbytes
            local = move_shards(tiers, local, old, new, piece_nbytes=1000)
            fresh = isthmus.scatter_shards(tiers, shards, plan)
            assert local.shards == fresh.shards
            for name, values in fresh.arrays.items():
                assert local.arrays[name].tobytes() == values.tobytes()
            arrived = [shards.nbytes[shard] for shard in local.shards if old[shard] != comm.rank]
            assert local.received_nbytes - before == sum(arrived)
        everyone = np.sort(np.concatenate(comm.allgather(local.arrays["targets"])))
        np.testing.assert_array_equal(everyone, np.arange(SAMPLES))


@pytest.mark.ranks(3)
def test_a_shard_that_is_damaged_on_its_way_is_an_error_on_all_ranks(comm, shared_folder):
    shards = packed(comm, shared_folder / "set")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 1))) as tiers:
        plan = SimpleNamespace(shards_of_rank=[list(range(SHARDS)), [], []])
        local = isthmus.scatter_shards(tiers, shards, plan)
        if comm.rank == 0:
            local.arrays["features"][-1] ^= 1
        new = np.zeros(SHARDS, int)
        new[-1] = 2
        with pytest.raises(ShardError, match=r"after its way from rank 0; .*on rank 2") as caught:
            move_shards(tiers, local, np.zeros(SHARDS, int), new)
        assert caught.value.everywhere
        assert local.samples == (SAMPLES if comm.rank == 0 else 0)


@pytest.mark.ranks(4)
def test_only_ranks_that_give_and_take_exchange_shards(comm, shared_folder):
    shards = packed(comm, shared_folder / "set")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        old = np.arange(SHARDS) % 4
        plan = SimpleNamespace(shards_of_rank=[np.flatnonzero(old == rank) for rank in range(4)])
        local = isthmus.scatter_shards(tiers, shards, plan)
        new, peers = old.copy(), []
        new[[3, 7]] = 1

        class Watched:
            def __getattr__(self, name):
                return getattr(tiers.world, name)

            def Isend(self, buffer, dest):  # noqa: N802
                peers.append(("to", dest))
                return tiers.world.Isend(buffer, dest)

            def Irecv(self, buffer, source):  # noqa: N802
                peers.append(("from", source))
                return tiers.world.Irecv(buffer, source)

        move_shards(SimpleNamespace(world=Watched()), local, old, new)
    assert peers == {1: [("from", 3)] * 4, 3: [("to", 1)] * 4}.get(comm.rank, [])


@pytest.mark.ranks(4)
def test_moving_over_paced_links_takes_what_is_predicted(comm, shared_folder):
    """Both ways at once over a slow link, and beyond the hub to a third site."""
    shards = packed(comm, shared_folder / "set")
    table = cluster_of(2, 1, 1, bytes_per_second=2e4, latency_seconds=0.02)
    with isthmus.split_tiers(comm, isthmus.Cluster(table)) as tiers:
        tiers = tiers.paced()
        old = np.arange(SHARDS) % 4
        new = old.copy()
        new[[0, 4, 2, 3]] = 2, 2, 1, 2
        plan = SimpleNamespace(shards_of_rank=[np.flatnonzero(old == rank) for rank in range(4)])
        local = isthmus.scatter_shards(tiers, shards, plan)
        predicted = moving_seconds(tiers.cluster, shards.nbytes, old, new)
        assert predicted == pytest.approx(0.04 + 3 * shards.nbytes[0] / 2e4)
        most = 1.25 * predicted + 0.1
        seconds = quickest(comm, lambda: move_shards(tiers, local, old, new), most)
        assert 0.9 * predicted < seconds < most
