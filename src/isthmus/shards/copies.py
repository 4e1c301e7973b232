"""Shards on a second rank, so that they are still there where nobody sees the folder they came from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isthmus.links.agreement import gather_json
from isthmus.shards.batches import LocalSamples
from isthmus.shards.manifest import Manifest
from isthmus.shards.providers import Providers
from isthmus.shards.shard_file import ShardSet
from isthmus.shards.subsets import merged

if TYPE_CHECKING:
    from isthmus.cluster.cluster import Cluster
    from isthmus.links.tiers import Tiers


@dataclass(frozen=True)
class SecondRanks:
    """Which rank has a copy of which shards; nbytes: of each shard."""

    shards_of_rank: list[list[int]]
    nbytes: list[int]

    def in_words(self, rank_of_shard: Sequence[int], cluster: "Cluster") -> str:
        """Return how many shards have a copy, of how many bytes, and how many at another site."""
        site = cluster.site_of_rank
        placed = [(shard, rank) for rank, shards in enumerate(self.shards_of_rank) for shard in shards]
        away = sum(site[rank] != site[rank_of_shard[shard]] for shard, rank in placed)
        return (
            f"copies: {len(placed)} of {len(self.nbytes)} shards on a second rank, "
            f"{sum(self.nbytes[shard] for shard, _ in placed):,} bytes, {away} of them at another site"
        )


def second_ranks(
    manifest: Manifest,
    shards_of_rank: Sequence[Sequence[int]],
    cluster: "Cluster",
    able: Callable[[int], Sequence[int]],
    copied: Sequence[Sequence[int]] | None = None,
) -> SecondRanks:
    """Return where copies are: at another site before the same, and there at who has least to hold.

    able(shard): the ranks that may have it. copied: the shards of which each rank has a copy already.
    Nothing beyond a rank's `storage_nbytes` is given to it, and a shard that nobody else may have, or
    has room for, has no copy.
    """
    of_sample = sum(array.sample_nbytes for array in manifest.arrays.values())
    nbytes = [shard.samples * of_sample for shard in manifest.shards]
    made = [list(each) for each in copied or [()] * len(shards_of_rank)]
    held = [
        sum(nbytes[shard] for shard in [*shards, *more]) for shards, more in zip(shards_of_rank, made)
    ]
    room = [cluster.sites[site].storage_nbytes for site in cluster.site_of_rank]
    owners = {shard: rank for rank, shards in enumerate(shards_of_rank) for shard in shards}
    for shard in {shard for shards in made for shard in shards}:
        owners.pop(shard, None)
    for shard in sorted(owners, key=lambda shard: (-nbytes[shard], shard)):
        owner, site = owners[shard], cluster.site_of_rank
        ranks = [
            rank for rank in able(shard) if rank != owner and held[rank] + nbytes[shard] <= room[rank]
        ]
        if ranks:
            rank = min(ranks, key=lambda rank: (site[rank] == site[owner], held[rank], rank))
            held[rank] += nbytes[shard]
            made[rank].append(shard)
    return SecondRanks([sorted(each) for each in made], nbytes)


def copy_shards(
    tiers: "Tiers", shards: ShardSet | None, local: LocalSamples, may_hold: Callable[[int, int], bool]
) -> tuple[LocalSamples, str]:
    """Return this rank's copies of what other ranks hold, and what was done, in words. Collective.

    Those that there are already stay, and shards without one get one. shards: the set, where this rank
    sees it. may_hold(shard, rank): whether it may have that.
    """
    world, cluster, manifest, copies = tiers.world, tiers.cluster, local.manifest, local.copies
    assert manifest is not None
    held = [list(each) for each in gather_json(world, list(local.shards))]
    there = gather_json(world, [] if copies is None else list(copies.shards))
    providers = Providers(tiers, shards, local)
    plan = second_ranks(
        manifest,
        held,
        cluster,
        lambda shard: [rank for rank in providers.able(shard) if may_hold(shard, rank)],
        there,
    )
    new = {
        shard: rank
        for rank, shards in enumerate(plan.shards_of_rank)
        for shard in shards
        if shard not in there[rank]
    }
    made = providers.bring(new)
    came = sum(gather_json(world, made.received_nbytes))
    owner = np.zeros(len(manifest.shards), int)
    for rank, each in enumerate(held):
        owner[each] = rank
    told = f"{plan.in_words(owner.tolist(), cluster)}; {came:,} bytes came from other ranks"
    return made if copies is None else merged(copies, made), told
