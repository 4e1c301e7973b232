"""Shards kept near a rank: each crosses the link once, whatever the cache holds is what the set has."""

from types import SimpleNamespace

import numpy as np
import pytest
from clusters import cluster_of
from test_scattering import SHARDS, arrays, packed

import isthmus
from isthmus.errors import ShardError
from isthmus.links.counted import CountedComm
from isthmus.shards.cache import ShardCache

ROW_NBYTES = 9 * 7 + 8
PLAN = [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9], [10, 11]]  # the first rank is the cloud's


@pytest.mark.ranks(4)
def test_an_epoch_fetches_what_the_cache_does_not_hold_and_no_more(comm, shared_folder):
    if comm is None:
        return
    shards = packed(comm, shared_folder / "set")
    whole, bounds = arrays(), np.cumsum([0, *shards.samples])
    sent = np.zeros(comm.size, np.int64)
    nbytes = ROW_NBYTES * np.array(shards.samples)
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 3))) as plain:
        tiers = plain.through(lambda comm, ranks: CountedComm(comm, sent, list(ranks)))
        seen = shards if comm.rank == 0 else None

        def scatter(plan, name, most):
            cache = ShardCache(shared_folder / name / f"rank{comm.rank}", int(most))
            sent[:] = 0
            local = isthmus.scatter_shards(
                tiers, seen, SimpleNamespace(shards_of_rank=plan), cache=cache
            )
            rows = [np.arange(bounds[k], bounds[k + 1]) for k in plan[comm.rank]]
            rows = np.concatenate([[], *rows]).astype(int)
            for key, values in local.arrays.items():
                np.testing.assert_array_equal(values, whole[key][rows])
            return local.received_nbytes, cache

        mine = PLAN[comm.rank]
        ours = nbytes[mine].sum() if comm.rank else 0
        two = 2 * nbytes.max()
        assert scatter(PLAN, "two", two)[0] == ours
        again, cache = scatter(PLAN, "two", two)
        assert again == (nbytes[mine][2:].sum() if comm.rank else 0)  # the first two stay
        assert len(list(cache.folder.glob("*.shard"))) == (min(2, len(mine)) if comm.rank else 0)

        scatter(PLAN, "all", 1e9)
        assert scatter(PLAN, "all", 1e9)[0] == 0
        words = sent.sum()  # manifests and lists of what is held
        turned = [PLAN[0], PLAN[2], PLAN[3], PLAN[1]]  # what a rank holds is another's of its site
        received, cache = scatter(turned, "all", 1e9)
        assert received == (nbytes[turned[comm.rank]].sum() if comm.rank else 0)
        if comm.rank == 0:
            assert abs(sent.sum() - words) < nbytes.min()  # the origin sends no shard
        if comm.rank == 2:
            path = max(cache.folder.glob("*.shard"), key=lambda each: each.stat().st_mtime_ns)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        comm.Barrier()
        received, cache = scatter(turned, "all", 1e9)
        assert received == (nbytes[turned[2][-1]] if comm.rank == 2 else 0)
        with pytest.raises(ShardError, match="cache_nbytes"):
            scatter(PLAN, "none", nbytes.min() - 1)
    assert len(PLAN[0] + PLAN[1] + PLAN[2] + PLAN[3]) == SHARDS


def test_a_disk_that_cannot_be_written_only_means_that_a_shard_is_fetched_again(tmp_path, monkeypatch):
    isthmus.pack_shards(arrays(), tmp_path / "set", SHARDS)
    shards = isthmus.ShardSet.open(tmp_path / "set")
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    places = {(0, name): value for name, value in shards.read(0).items()}
    assert not cache.load(shards.manifest, 0, places)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("isthmus.files.os.replace", full)
        assert not cache.keep(shards.manifest, 0, places)
    assert not list(cache.folder.iterdir())
    assert cache.keep(shards.manifest, 0, places)
    (path,) = cache.folder.iterdir()
    path.write_bytes(path.read_bytes() + b"x")
    assert not cache.load(shards.manifest, 0, places)
    assert not path.exists()
