"""Shards that nobody holds any more, given to ranks that are left, who keep all that they have."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from isthmus.links.agreement import gather_json, ranks_where, together
from isthmus.shards.access import able_to_hold
from isthmus.shards.batches import LocalSamples
from isthmus.shards.copies import some_of
from isthmus.shards.scattering import places_of, room_for, scatter_shards
from isthmus.shards.shard_file import ShardSet

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers


class Adopted(NamedTuple):
    """A rank's samples, the shards of each rank, and those that nobody could read."""

    local: LocalSamples
    shards_of_rank: list[list[int]]
    never: list[int]


class _Orphans(NamedTuple):
    shards_of_rank: list[list[int]]


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
    up. Collective.
    """
    world, manifest = tiers.world, local.manifest
    assert manifest is not None
    shards = together(world, lambda: _seen(folder, manifest))
    seeing = ranks_where(world, shards is not None)
    placed = {
        shard: rank
        for shard, rank in (placed or {}).items()
        if seeing and rank in able_to_hold(tiers, manifest, shard, seeing)
    }
    if not placed.keys().isdisjoint(local.shards):
        local = without(local, placed)
    held = [list(shards) for shards in gather_json(world, list(local.shards))]
    samples = [shard.samples for shard in manifest.shards]
    orphans = sorted({*range(len(samples))} - {shard for each in held for shard in each})
    local, copied = _with_copies(world, local, orphans)
    held = [sorted([*old, *new]) for old, new in zip(held, copied)]
    orphans = sorted({*orphans} - {shard for each in copied for shard in each})
    given: list[list[int]] = [[] for _ in held]
    if seeing:
        load = np.array([sum(samples[shard] for shard in each) for each in held], float)
        for shard in sorted(orphans, key=lambda shard: (-samples[shard], shard)):
            able = able_to_hold(tiers, manifest, shard, seeing)
            ranks = [rank for rank in able if may_hold(shard, rank)]
            ranks = [placed[shard]] if shard in placed else ranks
            if ranks:
                rank = min(ranks, key=lambda rank: ((load[rank] + samples[shard]) / rates[rank], rank))
                load[rank] += samples[shard]
                given[rank].append(shard)
    found = [sorted(each) for each in given]
    never = sorted({*orphans} - {shard for each in found for shard in each})
    if any(found):
        adopted = scatter_shards(tiers, shards, _Orphans(found), access=local.access)
        copies, local = local.copies, merged(local, adopted)
        local.copies = copies
    return Adopted(local, [sorted([*old, *new]) for old, new in zip(held, found)], never)


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


def merged(local: LocalSamples, adopted: LocalSamples) -> LocalSamples:
    """Return the samples of both, in the order of their shards."""
    mine = tuple(sorted([*local.shards, *adopted.shards]))
    arrays = room_for(local.manifest, mine)
    places = places_of(local.manifest, mine, arrays)
    for part in (local, adopted):
        for key, rows in places_of(part.manifest, part.shards, part.arrays).items():
            places[key][:] = rows
    received = local.received_nbytes + adopted.received_nbytes
    return LocalSamples(arrays, received, mine, local.manifest, local.scale, local.access)


def without(local: LocalSamples, shards: Collection[int]) -> LocalSamples:
    """Return the samples of all other shards."""
    mine = tuple(shard for shard in local.shards if shard not in shards)
    arrays = room_for(local.manifest, mine)
    kept = places_of(local.manifest, local.shards, local.arrays)
    for key, rows in places_of(local.manifest, mine, arrays).items():
        rows[:] = kept[key]
    return LocalSamples(arrays, local.received_nbytes, mine, local.manifest, local.scale, local.access)


def _seen(folder, manifest):
    """Return the set in `folder`; None where this rank does not see it, or another one is there now."""
    if not Path(folder).is_dir():
        return None
    shards = ShardSet.open(folder)
    return shards if shards.manifest == manifest else None
