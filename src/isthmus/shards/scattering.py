"""Shards to ranks, by plan: from a rank's own disk where it can, over MPI where it must."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Protocol

import numpy as np

from isthmus.errors import PolicyError, ShardError
from isthmus.links.agreement import broadcast_json, gather_json, require, together
from isthmus.shards.access import (
    Access,
    admitted,
    check_crossing,
    check_places,
    digest_of,
    readers_among,
)
from isthmus.shards.batches import LocalSamples
from isthmus.shards.cache import ShardCache, rows_of
from isthmus.shards.manifest import Manifest
from isthmus.shards.shard_file import PIECE_NBYTES, ShardSet, rows_of_piece

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers


class Placement(Protocol):
    """Where shards shall be; for the samples of one digest alone, where it has that as `data`."""

    @property
    def shards_of_rank(self) -> Sequence[Sequence[int]]:
        """The shards of each cluster rank."""


@dataclass(frozen=True)
class Delivery:
    """One shard: from the rank that reads it, or by the rank that needs it (`None`).

    cached: whether the source has it in its cache, and not in the folder.
    """

    shard: int
    source: int | None
    target: int
    cached: bool = False


def scatter_shards(
    tiers: "Tiers",
    shards: ShardSet | None,
    plan: Placement,
    piece_nbytes: int = PIECE_NBYTES,
    cache: ShardCache | None = None,
    *,
    keys: str | PathLike[str] | None = None,
    access: Access | None = None,
) -> LocalSamples:
    """Return this rank's LocalSamples, verified on arrival. Collective over `tiers.world`.

    shards: a ShardSet on ranks that see the folder, None elsewhere. plan: anything with
    `shards_of_rank`, the shards of each cluster rank. A rank that sees the folder reads its own
    files; for the others, ranks that see it read and send, in pieces of at most `piece_nbytes`, each
    array compared with the manifest's digest on both sides. A rank without shards gets arrays of no
    rows.
    cache: where a rank that does not see the folder keeps what it gets, on every rank or on none: what
    it has there, or another rank of its site, comes from there. Nothing of a sealed set is kept.
    Raises ShardError on every rank alike.
    keys: of a set with a policy, the folder of keys on each site's leader's host. Only ranks of sites
    that may read a shard read it, send it and get it; PolicyError on every rank alike where the plan, or
    who sees the folder, asks for anything else. access: what `admitted` gave this rank; None: ask it.
    """
    world = tiers.world
    sees = gather_json(world, shards is not None)
    require(
        world,
        any(sees),
        ShardError,
        "no rank sees the folder of shards; mend its path, or start a rank where the folder is",
    )
    table = broadcast_json(world, shards and shards.manifest.model_dump(mode="json"), sees.index(True))
    manifest = Manifest.of(table, "manifest")
    together(world, lambda: _check_plan(manifest, shards, plan, world.size))
    access = access or admitted(tiers, manifest, "manifest" if shards is None else shards.folder, keys)
    together(world, lambda: check_places(tiers, manifest, plan.shards_of_rank, "the plan"))
    if shards is not None:
        shards = ShardSet(shards.folder, manifest, access)
    mine = plan.shards_of_rank[world.rank]
    arrays = together(world, lambda: room_for(manifest, mine))
    places = places_of(manifest, mine, arrays)
    held: list[list[int]] = [[] for _ in sees]
    if manifest.sealed:
        cache = None
    if cache is not None:
        together(world, lambda: cache.check(manifest))
        held = gather_json(
            world, [] if sees[world.rank] else _held(tiers, cache, manifest, plan, places)
        )
    everything = together(world, lambda: list(_deliveries(tiers.cluster, manifest, plan, sees, held)))
    coming = {each.shard: each.source for each in everything if each.target == world.rank}
    coming = {shard: source for shard, source in coming.items() if source is not None}
    together(world, lambda: check_crossing(tiers, manifest, coming, world.rank))
    deliveries = [each for each in everything if world.rank in (each.source, each.target)]
    received = together(
        world, lambda: _deliver(world, shards, cache, manifest, access, deliveries, places, piece_nbytes)
    )
    if cache is not None and not sees[world.rank]:
        for shard in mine:
            if shard not in held[world.rank]:
                cache.keep(manifest, shard, places)
    return LocalSamples(arrays, received, tuple(mine), manifest, access=access)


def _held(tiers, cache, manifest, plan, places):
    """Return the shards of this rank's site that its cache holds, whole; its own are in their places."""
    found = []
    for rank in tiers.cluster.ranks_of_site(tiers.site_name):
        for shard in plan.shards_of_rank[rank]:
            into = places if rank == tiers.world.rank else rows_of(manifest, shard)
            if cache.load(manifest, shard, into):
                found.append(shard)
    return found


def _deliver(world, shards, cache, manifest, access, deliveries, places, piece_nbytes):
    """Carry out this rank's share of the deliveries, in the order that all ranks have in common;
    return the bytes that came over MPI.

    A sender that meets a broken file says so to its receiver, and both go on with the next shard.
    """
    problem, received = None, 0
    for delivery in deliveries:
        try:
            if delivery.source is None:
                _read_own(shards, delivery.shard, places)
            elif delivery.source == world.rank:
                reader = _Cache(cache, manifest) if delivery.cached else shards
                _send(world, reader, delivery, piece_nbytes)
            else:
                received += _receive(world, manifest, access, delivery, places, piece_nbytes)
        except (ShardError, PolicyError) as caught:
            problem = problem or caught
    if problem is not None:
        raise problem
    return received


class _Cached:
    """A shard of the cache, as `_send` reads one."""

    def __init__(self, manifest, number, rows):
        self.arrays, self.rows, self.number, self.manifest = manifest.arrays, rows, number, manifest

    def pieces(self, name, piece_nbytes):
        """Yield the rows of one array, in pieces of at most so many bytes."""
        first = 0
        for count in _sizes(self.manifest, self.number, name, piece_nbytes):
            yield self.rows[self.number, name][first : first + count]
            first += count


@dataclass(frozen=True)
class _Cache:
    """What opens shards of a cache as a ShardSet opens those of a folder."""

    cache: ShardCache
    manifest: Manifest

    @contextmanager
    def opened(self, number):
        """Give one shard; ShardError where it went away since it was looked for."""
        rows = rows_of(self.manifest, number)
        if not self.cache.load(self.manifest, number, rows):
            raise ShardError(f"{self.cache.folder}: lost a shard meanwhile; start again")
        yield _Cached(self.manifest, number, rows)


def _read_own(shards, number, places):
    with shards.opened(number) as shard:
        for name in shard.arrays:
            first = 0
            for piece in shard.pieces(name):
                places[number, name][first : first + len(piece)] = piece
                first += len(piece)


def _send(world, shards, delivery, piece_nbytes):
    """Send a shard's arrays piece by piece; the next is read while the last is on its way.

    A byte goes ahead of each piece, and one comes after an array's last: whether all was well until
    then.
    """
    sent = None
    try:
        with shards.opened(delivery.shard) as shard:
            for name in shard.arrays:
                for piece in shard.pieces(name, piece_nbytes):
                    piece = np.ascontiguousarray(piece)
                    if sent is not None:
                        sent[0].Wait()
                    world.Send(np.ones(1, np.uint8), delivery.target)
                    sent = world.Isend(piece.reshape(-1).view(np.uint8), delivery.target), piece
                world.Send(np.ones(1, np.uint8), delivery.target)
    except (ShardError, PolicyError):
        world.Send(np.zeros(1, np.uint8), delivery.target)
        raise
    finally:
        if sent is not None:
            sent[0].Wait()


def _receive(world, manifest, access, delivery, places, piece_nbytes):
    """Receive a shard's arrays straight into their places; return their bytes.

    What arrives wrong is told after all that is on its way has come; a sender that has failed sends
    no more of this shard.
    """
    shard, changed, received = manifest.shards[delivery.shard], [], 0
    for name in manifest.arrays:
        digest = digest_of(manifest, access, delivery.shard, name)
        well, first = np.zeros(1, np.uint8), 0
        for rows in [*_sizes(manifest, delivery.shard, name, piece_nbytes), 0]:
            world.Recv(well, delivery.source)
            if not well[0]:
                raise ShardError(
                    f"{shard.file}: rank {delivery.source} could not read it; fetch the "
                    "file there again, or pack again"
                )
            if rows:
                piece = places[delivery.shard, name][first : first + rows]
                world.Recv(piece.reshape(-1).view(np.uint8), delivery.source)
                digest.update(piece.data if piece.size else b"")
                first += rows
                received += piece.nbytes
        if digest.hexdigest() != shard.arrays_sha256[name]:
            changed.append(name)
    if changed:
        raise ShardError(
            f"{shard.file}: dataset {changed[0]!r} is not what the manifest says after its "
            f"way from rank {delivery.source}; check that machine's memory and network"
        )
    return received


def _sizes(manifest, shard, name, piece_nbytes):
    """Return the rows of each piece of array `name` of a shard."""
    rows = rows_of_piece(manifest.arrays[name], piece_nbytes)
    samples = manifest.shards[shard].samples
    return [min(rows, samples - first) for first in range(0, samples, rows)]


def _deliveries(cluster, manifest, plan, sees, held):
    """Yield every delivery, in one order for all ranks; readers take turns in sending.

    held: the shards that each rank has in its cache: what the target has is no delivery, and what
    another rank of its site has is from there. Only ranks of sites that may read a shard send it:
    PolicyError where none of them sees the folder.
    """
    site_of_rank = cluster.site_of_rank
    turn = -1
    for target, shards in enumerate(plan.shards_of_rank):
        turn += not sees[target]
        mates = [rank for rank, site in enumerate(site_of_rank) if site == site_of_rank[target]]
        for shard in shards:
            if shard in held[target]:
                continue
            if sees[target]:
                yield Delivery(shard, None, target)
                continue
            mate = next((rank for rank in mates if shard in held[rank]), None)
            if mate is None:
                able = [rank for rank, can in enumerate(sees) if can]
                able = readers_among(cluster, manifest, shard, able, target)
                yield Delivery(shard, able[turn % len(able)], target)
            else:
                yield Delivery(shard, mate, target, cached=True)


def room_for(manifest, mine):
    """Return name -> empty array with a row for each sample of the shards `mine`."""
    rows = sum(manifest.shards[shard].samples for shard in mine)
    try:
        return {
            name: np.empty((rows, *array.shape), array.dtype) for name, array in manifest.arrays.items()
        }
    except (MemoryError, ValueError):
        raise ShardError(
            f"{rows} samples do not fit in this rank's memory; set storage_nbytes of "
            "its site in the cluster file"
        ) from None


def places_of(manifest, mine, arrays):
    """Return (shard, name) -> the rows of `arrays` where that shard goes."""
    places, first = {}, 0
    for shard in mine:
        last = first + manifest.shards[shard].samples
        for name, values in arrays.items():
            places[shard, name] = values[first:last]
        first = last
    return places


def _check_plan(manifest, shards, plan, ranks):
    if len(plan.shards_of_rank) != ranks:
        raise ShardError(
            f"the plan is for {len(plan.shards_of_rank)} ranks, this job has {ranks}; plan again"
        )
    for mine in plan.shards_of_rank:
        for shard in mine:
            if not 0 <= shard < len(manifest.shards):
                raise ShardError(
                    f"the plan names shard {shard}, the set has shards 0 to "
                    f"{len(manifest.shards) - 1}; plan again"
                )
    made_for = getattr(plan, "data", None)
    if made_for not in (None, manifest.digest):
        raise ShardError(
            f"the plan was made for other samples (SHA-256 {made_for:.12}, not "
            f"{manifest.digest:.12}); plan again"
        )
    if shards is not None and shards.manifest != manifest:
        raise ShardError(
            f"{shards.folder}: holds another set than the other ranks see; copy one set to all of them"
        )
