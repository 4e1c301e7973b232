"""From where shards can come while a run goes on: who sees their folder, and who has them in memory."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from isthmus.links.agreement import gather_json, ranks_where
from isthmus.shards.access import able_to_hold
from isthmus.shards.batches import LocalSamples
from isthmus.shards.moving import move_shards
from isthmus.shards.scattering import room_for, scatter_shards
from isthmus.shards.shard_file import ShardSet
from isthmus.shards.subsets import merged, some_of

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers


class _Places(NamedTuple):
    shards_of_rank: list[list[int]]


class Providers:
    """Who can give a shard to whom. Collective to make.

    shards: the set, where this rank sees it. local: its samples, and its copies of others'.
    """

    def __init__(self, tiers: "Tiers", shards: ShardSet | None, local: LocalSamples):
        self.tiers, self.shards, self.local, self.copies = tiers, shards, local, local.copies
        self.seeing = ranks_where(tiers.world, shards is not None)
        copied = () if self.copies is None else self.copies.shards
        self._held = gather_json(tiers.world, sorted([*local.shards, *copied]))

    def able(self, shard: int) -> list[int]:
        """Return the ranks that may have a shard and can get it."""
        able = {*self._by_folder(shard)}.union(*(self._by(rank, shard) for rank in self._holders(shard)))
        return sorted(able)

    def bring(self, rank_of: Mapping[int, int]) -> LocalSamples:
        """Return the shards that come to this rank, verified on arrival, as `rank_of` says for all.

        They are read from the folder where that is seen, else they come from the memory of who has them
        and keeps them. Each rank is `able`. Collective.
        """
        tiers, local, manifest = self.tiers, self.local, self.local.manifest
        assert manifest is not None
        world, read = tiers.world, _Places([[] for _ in self._held])
        old, new = np.full((2, len(manifest.shards)), -1)
        for shard, rank in sorted(rank_of.items()):
            if rank in self._by_folder(shard):
                read.shards_of_rank[rank].append(shard)
            else:
                new[shard] = rank
                old[shard] = next(each for each in self._holders(shard) if rank in self._by(each, shard))
        found = LocalSamples(room_for(manifest, ()), 0, (), manifest, local.scale, local.access)
        if any(read.shards_of_rank):
            found = scatter_shards(tiers, self.shards, read, access=local.access)
        if (new >= 0).any():
            given = self._some(np.flatnonzero(old == world.rank).tolist())
            found = merged(found, move_shards(tiers, given, old, new))
        return found

    def _some(self, shards):
        """Return some of what this rank has."""
        mine = some_of(self.local, [shard for shard in shards if shard in self.local.shards])
        if len(mine.shards) == len(shards):
            return mine
        return merged(mine, some_of(self.copies, [each for each in shards if each not in mine.shards]))

    def _by_folder(self, shard):
        return self.seeing and able_to_hold(self.tiers, self.local.manifest, shard, self.seeing)

    def _by(self, holder, shard):
        return able_to_hold(self.tiers, self.local.manifest, shard, [holder])

    def _holders(self, shard):
        return [rank for rank, shards in enumerate(self._held) if shard in shards]
