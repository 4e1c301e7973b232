"""A chunk of a vector on its way over the tree of sites, and how a vector is cut into them."""

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from isthmus.collectives.messages import PIECE_NBYTES
from isthmus.compression.chunks import chunk_entries, site_chunk_entries
from isthmus.compression.compressor import Compressor
from isthmus.compression.dense import Dense
from isthmus.vectors import chunk_slices


@dataclass
class Encoded:
    """What a leader encodes of a chunk: a uint8 wire, and what the compressor keeps of it, before a
    call and after it, in turns."""

    wire: np.ndarray | None
    residuals: tuple = (None, None)
    states: tuple = (None, None)


@dataclass
class Chunk:
    """A piece of the vector that is encoded as one wire, and what it needs on its way.

    whole, pieces: slices of the vector; inside a site it travels in pieces. compressor: of its bucket.
    inboxes: other leader -> uint8, its wire; None where the chunk of the mean takes it in.
    own: what goes up, or is the sum of all at a lone hub's; told: the sum of all at one of two leaders
    at the top. Off the leaders there is none of these. plain: two sites exchange the vector itself, and
    each adds what came where its own is: `own` has no wire. ahead: how many of those before it may not
    have come back from above yet when it is sent there.
    from_below, from_above, sent: requests under way.
    """

    whole: slice
    pieces: list[slice]
    compressor: Compressor
    inboxes: dict[int, np.ndarray | None]
    wire_nbytes: int
    plain: bool = False
    ahead: int = 0
    own: Encoded | None = None
    told: Encoded | None = None
    from_below: list = ()
    from_above: list = ()
    sent: list = ()

    def inbox(self, peer, mean):
        """Return where the wire of a peer is received, uint8; mean: float32, of the whole vector."""
        inbox = self.inboxes[peer]
        return mean[self.whole].view(np.uint8)[: self.wire_nbytes] if inbox is None else inbox


def cut(size, buckets, chunk_nbytes, residence, peers, last, swaps, retells, window_nbytes):
    """Return the Chunks of each bucket of a vector, and the two memories in which they keep things.

    buckets: of each its slice, its compressor, and whether what its wires do not say is kept.
    chunk_nbytes: most bytes of a wire. residence: where arrays are made. peers: those of this leader,
    none off the leaders. last: that of them whose wire goes no further from here, or None. swaps: two
    sites exchange, and tell nobody; retells: they do, and tell others. window_nbytes: what may be sent
    up before the first of it has come back.
    """
    chunks, states, kept = [], [0], []
    for bucket, compressor, keeps in buckets:
        own, longest = compressor.piece(bucket), length(bucket)
        of_link = chunk_entries(own, longest, chunk_nbytes)
        of_site = site_chunk_entries(own, longest, chunk_nbytes)
        plain = swaps and own == Dense() and not keeps
        chunks.append([])
        for whole in chunk_slices(bucket.start, bucket.stop, of_link):
            nbytes = own.wire_nbytes(length(whole))
            room = functools.partial(residence.empty, nbytes, np.uint8)
            pieces = chunk_slices(whole.start, whole.stop, of_site)
            # Where something is kept the sum is made there, and its place in the mean is free.
            free = keeps and nbytes <= 4 * length(whole)
            inboxes = {peer: None if free and peer == last else room() for peer in peers}
            chunk = Chunk(whole, pieces, own, inboxes, nbytes, plain)
            if peers:
                chunk.own = Encoded(None if plain else room())
                chunk.told = Encoded(room()) if retells else None
            states.append(own.state_entries(length(whole)) if peers else 0)
            kept.append(keeps)
            chunks[-1].append(chunk)
    flat = [chunk for bucket in chunks for chunk in bucket]
    ends = np.cumsum([0] + [chunk.wire_nbytes for chunk in flat])
    for number, (chunk, end) in enumerate(zip(flat, ends[1:])):
        chunk.ahead = max(0, number - int(np.searchsorted(ends, end - window_nbytes)))
    residuals = size if peers and any(kept) else 0
    bounds = (residuals + np.cumsum(states)).tolist()
    memories = [residence.zeros((1 + retells) * bounds[-1], "f4") for _ in range(2)]
    for chunk, keeps, first, last in zip(flat, kept, bounds, bounds[1:]):
        for encoded, begin in zip((chunk.own, chunk.told), (0, bounds[-1])):
            if encoded is not None:
                parts = [memory[begin : begin + bounds[-1]] for memory in memories]
                if keeps:
                    encoded.residuals = tuple(part[chunk.whole] for part in parts)
                encoded.states = tuple(part[first:last] for part in parts)
    return chunks, memories


def stage_entries(chunks):
    """Return the float32 entries of a place for the longest wire that chunks of the mean take in."""
    taken = [chunk.wire_nbytes for chunk in chunks for inbox in chunk.inboxes.values() if inbox is None]
    return -(-max(taken, default=0) // 4)


def messages_at_once(chunks, peers, neighbours):
    """Return bytes -> how many messages of so many may be under way at once.

    All wires of a call, all pieces that are sent up or down the chain, and three that come there: of
    those from the right one is always on its way ahead.
    """
    found, pieces = Counter(), Counter(length(piece) for chunk in chunks for piece in chunk.pieces)
    for chunk in chunks if peers else ():
        for part in chunk_slices(0, chunk.wire_nbytes, PIECE_NBYTES):
            found[length(part)] += 2 * len(peers)
    for entries, times in pieces.items() if neighbours else ():
        found[4 * entries] += times + 3
    return found


def length(part):
    """Return how many entries a slice has."""
    return part.stop - part.start
