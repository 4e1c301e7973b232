"""Samples of fewer shards than a rank has, or of more."""

from collections.abc import Collection

from isthmus.shards.batches import LocalSamples
from isthmus.shards.scattering import places_of, room_for


def some_of(local: LocalSamples, shards: Collection[int]) -> LocalSamples:
    """Return the samples of some of the shards that a rank holds; nothing of it came from elsewhere."""
    return _of(local, tuple(sorted(shards)), 0)


def without(local: LocalSamples, shards: Collection[int]) -> LocalSamples:
    """Return the samples of all other shards."""
    left = tuple(shard for shard in local.shards if shard not in shards)
    return _of(local, left, local.received_nbytes)


def merged(local: LocalSamples, more: LocalSamples) -> LocalSamples:
    """Return the samples of both, in the order of their shards."""
    mine = tuple(sorted([*local.shards, *more.shards]))
    arrays = room_for(local.manifest, mine)
    places = places_of(local.manifest, mine, arrays)
    for part in (local, more):
        for key, rows in places_of(part.manifest, part.shards, part.arrays).items():
            places[key][:] = rows
    received = local.received_nbytes + more.received_nbytes
    return LocalSamples(arrays, received, mine, local.manifest, local.scale, local.access)


def _of(local, shards, received_nbytes):
    arrays = room_for(local.manifest, shards)
    held = places_of(local.manifest, local.shards, local.arrays)
    for key, rows in places_of(local.manifest, shards, arrays).items():
        rows[:] = held[key]
    return LocalSamples(arrays, received_nbytes, shards, local.manifest, local.scale, local.access)
