"""Shards from rank to rank while a run goes on: from the memory of who has them, verified on arrival."""

import numpy as np

from isthmus.errors import ShardError
from isthmus.links.agreement import together
from isthmus.shards.access import check_crossing, check_places, digest_of
from isthmus.shards.batches import LocalSamples
from isthmus.shards.scattering import PIECE_NBYTES, places_of, room_for
from isthmus.shards.shard_file import rows_of_piece


def move_shards(tiers, local, old, new, piece_nbytes=PIECE_NBYTES):
    """Return this rank's LocalSamples after shards went where they shall be.

    local: what `scatter_shards` or `move_shards` gave. old, new: int[shards], the rank of each shard
    before and after, the same on every rank. Only ranks that give and ranks that take exchange shards,
    in messages of at most `piece_nbytes`, each array compared with the manifest's digest on arrival;
    a byte from every rank then says whether all is well. The result is what `scatter_shards` would
    give for the new plan, byte for byte: the order of samples does not tell which way they came.
    While it lasts, a rank holds its samples twice. Raises ShardError on every rank alike, or PolicyError
    where a shard would go to a site that may not read it, and then `local` is as it was.
    """
    world, manifest = tiers.world, local.manifest
    mine = tuple(shard for shard, rank in enumerate(new) if rank == world.rank)
    given = sorted(shard for shard in local.shards if new[shard] != world.rank)
    taken = [shard for shard in mine if old[shard] != world.rank]
    if manifest.signatures is not None:
        places = [np.flatnonzero(np.asarray(new) == rank).tolist() for rank in range(world.size)]
        together(world, lambda: check_places(tiers, manifest, places, "moving shards"))
        sources = {shard: int(old[shard]) for shard in taken}
        together(world, lambda: check_crossing(tiers, manifest, sources, world.rank))
    arrays = together(world, lambda: room_for(manifest, mine))
    before, after = (
        places_of(manifest, shards, values)
        for shards, values in ((local.shards, local.arrays), (mine, arrays))
    )
    requests = [
        world.Irecv(piece, int(old[shard]))
        for shard, piece in _messages(manifest, taken, after, piece_nbytes)
    ]
    requests += [
        world.Isend(piece, int(new[shard]))
        for shard, piece in _messages(manifest, given, before, piece_nbytes)
    ]
    for shard in set(mine) & set(local.shards):
        for name in manifest.arrays:
            after[shard, name][:] = before[shard, name]
    for request in requests:
        request.Wait()
    together(world, lambda: _check(local, taken, after, old))
    received = sum(after[shard, name].nbytes for shard in taken for name in manifest.arrays)
    received += local.received_nbytes
    return LocalSamples(arrays, received, mine, manifest, local.scale, local.access)


def _messages(manifest, shards, places, piece_nbytes):
    """Yield (shard, bytes) of every piece of `shards`, ascending: the order that both ends have."""
    for shard in shards:
        for name, array in manifest.arrays.items():
            rows, place = rows_of_piece(array, piece_nbytes), places[shard, name]
            for first in range(0, len(place), rows):
                yield shard, place[first : first + rows].reshape(-1).view("u1")


def _check(local, taken, places, source):
    """Raise ShardError unless what arrived is what the manifest says."""
    manifest = local.manifest
    for shard in taken:
        for name, digest in manifest.shards[shard].arrays_sha256.items():
            place, found = places[shard, name], digest_of(manifest, local.access, shard, name)
            found.update(place.data if place.size else b"")
            if found.hexdigest() != digest:
                raise ShardError(
                    f"{manifest.shards[shard].file}: dataset {name!r} is not what the manifest says "
                    f"after its way from rank {source[shard]}; check that machine's memory and network"
                )
