"""Shards that nobody holds any more, given to ranks that are left, who keep all that they have."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from isthmus.links.agreement import gather_json, together
from isthmus.shards.batches import LocalSamples
from isthmus.shards.providers import Providers
from isthmus.shards.shard_file import ShardSet
from isthmus.shards.subsets import merged, some_of, without

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers


class Adopted(NamedTuple):
    """A rank's samples, the shards of each rank, those that nobody could read, and the set, where this
    rank sees it."""

    local: LocalSamples
    shards_of_rank: list[list[int]]
    never: list[int]
    shards: ShardSet | None


def adopt_shards(
    tiers: "Tiers",
    local: LocalSamples,
    folder: str | Path,
    rates: Sequence[float],
    may_hold: Callable[[int, int], bool] = lambda shard, rank: True,
    placed: Mapping[int, int] | None = None,
) -> Adopted:
    """Give shards that no rank holds to who has a copy, else to those that are done soonest, read by who
    sees `folder`.

    rates: samples per second of each rank. may_hold(shard, rank): whether it may have that; what a set's
    policy forbids nobody may. placed: which rank some shards belong to; others that hold them give them
    up, and keep them as copies where there are copies: who belongs to a shard reads it, or gets it from
    them. Collective.
    """
    world, manifest = tiers.world, local.manifest
    assert manifest is not None
    shards = together(world, lambda: _seen(folder, manifest))
    providers = Providers(tiers, shards, local)
    placed = {shard: rank for shard, rank in (placed or {}).items() if rank in providers.able(shard)}
    if given_up := sorted(placed.keys() & {*local.shards}):
        copies, kept = local.copies, some_of(local, given_up)
        local = without(local, given_up)
        local.copies = None if copies is None else merged(copies, kept)
    held = [list(shards) for shards in gather_json(world, list(local.shards))]
    samples = [shard.samples for shard in manifest.shards]
    orphans = sorted({*range(len(samples))} - {shard for each in held for shard in each})
    local, copied = _with_copies(world, local, [shard for shard in orphans if shard not in placed])
    held = [sorted([*old, *new]) for old, new in zip(held, copied)]
    orphans = sorted({*orphans} - {shard for each in copied for shard in each})
    load = np.array([sum(samples[shard] for shard in each) for each in held], float)
    given: dict[int, int] = {}
    for shard in sorted(orphans, key=lambda shard: (-samples[shard], shard)):
        ranks = [rank for rank in providers.able(shard) if may_hold(shard, rank)]
        ranks = [placed[shard]] if shard in placed else ranks
        if ranks:
            rank = min(ranks, key=lambda rank: ((load[rank] + samples[shard]) / rates[rank], rank))
            load[rank] += samples[shard]
            given[shard] = rank
            held[rank] = sorted([*held[rank], shard])
    if given:
        adopted = providers.bring(given)
        copies, local = local.copies, merged(local, adopted)
        local.copies = copies
    never = [shard for shard in orphans if shard not in given]
    return Adopted(local, held, never, shards)


def _with_copies(world, local, orphans):
    """Return this rank's samples with its copies of `orphans`, and the shards that each rank so has.

    The first that has a copy takes it. Collective.
    """
    copies = local.copies
    there = gather_json(world, [] if copies is None else list(copies.shards))
    given = [[] for _ in there]
    for shard in orphans:
        ranks = [rank for rank, shards in enumerate(there) if shard in shards]
        if ranks:
            given[ranks[0]].append(shard)
    if mine := given[world.rank]:
        local = merged(local, some_of(copies, mine))
        local.copies = some_of(copies, [shard for shard in copies.shards if shard not in mine])
    return local, given


def _seen(folder, manifest):
    """Return the set in `folder`; None where this rank does not see it, or another one is there now."""
    if not Path(folder).is_dir():
        return None
    shards = ShardSet.open(folder)
    return shards if shards.manifest == manifest else None
