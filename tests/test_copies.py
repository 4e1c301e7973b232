"""Shards on a second rank: who has them, and who goes on with them where nobody sees the folder."""

import numpy as np
import pytest
from clusters import cluster_of
from test_resuming import pack, settings

import isthmus
from isthmus.errors import SettingsError
from isthmus.jobs.settings import RunSettings
from isthmus.links.agreement import from_root, gather_json
from isthmus.shards.adopting import adopt_shards
from isthmus.shards.copies import copy_shards, second_ranks
from isthmus.shards.scattering import scatter_shards


class Plan:
    shards_of_rank = ([0, 1], [2, 3], [4, 5])


@pytest.mark.ranks(3)
def test_who_has_a_copy_goes_on_where_nobody_sees_the_folder(comm, shared_folder):
    from_root(comm, lambda: pack(shared_folder, "train"))
    shards = isthmus.ShardSet.open(shared_folder / "data/train")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 1))) as tiers:
        seen = shards if comm.rank == 2 else None
        local = scatter_shards(tiers, seen, Plan)
        local.copies, told = copy_shards(tiers, seen, local, lambda shard, rank: shard != 3)
        of_shard = 20 * (8 * 4 + 1)
        assert told == (
            f"copies: 5 of 6 shards on a second rank, {5 * of_shard:,} bytes, 5 of them at another "
            f"site; {2 * of_shard:,} bytes came from other ranks"
        )
        assert gather_json(comm, list(local.copies.shards)) == [[4], [5], [0, 1, 2]]
        if comm.rank == 1:  # it is gone, and its copies with it
            local = _nothing_of(local)
        found = adopt_shards(tiers, local, shared_folder / "nowhere", [1.0, 1.0, 1.0])
        assert found.never == [3]
        assert found.shards_of_rank == [[0, 1], [], [2, 4, 5]]
        assert gather_json(comm, list(found.local.shards)) == found.shards_of_rank
        if comm.rank == 2:
            rows = np.concatenate([np.arange(40, 60), np.arange(80, 120)])
            expected = np.arange(120 * 8, dtype="f4").reshape(120, 8)[rows]
            np.testing.assert_array_equal(found.local.arrays["features"], expected)
            assert found.local.copies.shards == (0, 1)
        # It comes back: who has its shards gives them up, and what had its copy there gets another one.
        local = _nothing_of(local) if comm.rank == 1 else found.local
        found = adopt_shards(
            tiers, local, shared_folder / "nowhere", [1.0, 1.0, 1.0], placed={2: 1, 3: 1}
        )
        assert found.never == [3]
        assert found.shards_of_rank == [[0, 1], [2], [4, 5]]
        assert gather_json(comm, list(found.local.shards)) == found.shards_of_rank
        copies, told = copy_shards(tiers, None, found.local, lambda shard, rank: True)
        assert gather_json(comm, list(copies.shards)) == [[4], [5], [0, 1, 2]]
        assert told.startswith(f"copies: 5 of 6 shards on a second rank, {5 * of_shard:,} bytes, 5 of")
        assert told.endswith(f"; {of_shard:,} bytes came from other ranks")
        if comm.rank == 1:
            rows = np.arange(120 * 8, dtype="f4").reshape(120, 8)
            np.testing.assert_array_equal(found.local.arrays["features"], rows[40:60])
            np.testing.assert_array_equal(copies.arrays["features"], rows[100:])
            assert found.local.received_nbytes == of_shard


def _nothing_of(local):
    """Return no samples, of the set that `local` is of."""
    arrays = {name: array[:0] for name, array in local.arrays.items()}
    return type(local)(arrays, 0, (), local.manifest)


def test_copies_go_where_there_is_room_and_leave(tmp_path):
    pack(tmp_path, "train")
    manifest = isthmus.ShardSet.open(tmp_path / "data/train").manifest
    table = cluster_of(2, 2)
    table["site"][1]["storage_nbytes"] = 3 * 20 * 33
    cluster = isthmus.Cluster(table)
    held = [[0, 1], [2], [3], [4, 5]]
    made = second_ranks(manifest, held, cluster, lambda shard: range(4))
    assert made.shards_of_rank == [[4], [3, 5], [0, 1], [2]]
    assert made.nbytes == [20 * 33] * 6
    alone = second_ranks(manifest, held, cluster, lambda shard: [2])
    assert alone.shards_of_rank == [[], [], [0, 1], []]  # no more has room
    path = settings(tmp_path, data={"copies": 2})
    with pytest.raises(SettingsError, match=r"data.copies = 2 needs recovery.survive = true"):
        RunSettings.from_toml(path)
