"""Hierarchical allreduce: exact inside a site, one compressed crossing each way between sites.

    inside a site      the ranks form a chain; chunk by chunk each adds its own to what came from the
                       right and passes it to the left, so the first rank, the leader, has the sum
    between two sites  the leaders exchange the wires of their sums, both ways at once, and both add
                       the same two decoded vectors
    between more       the leaders send to the hub; the hub adds, encodes the sum once, and sends
                       that wire to all; the hub, too, keeps what the wire says, not what it had
    inside a site      the result goes down the chain, chunk by chunk

A chunk travels on as soon as it is there, so while one is on a link the next is being reduced. A
bucket is a run of chunks: `start` takes it as far as the link and returns, so that the rest of the
vector is computed while it travels; `finish` does what is left. Each
vector is quantised once on its way up and once on its way down, never once a hop: the error does
not grow with the number of ranks. All ranks end with the same bits, because all decode the same
wires.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from isthmus import kernels
from isthmus.collectives.messages import arrived, receiving, sending, sending_nbytes, wait_for
from isthmus.compression.chunks import chunk_entries, site_chunk_entries
from isthmus.compression.compressor import Compressor
from isthmus.links.comm import message_nbytes
from isthmus.vectors import chunk_slices


@dataclass
class Chunk:
    """A piece of the vector that is encoded as one wire, and what it needs on its way.

    whole, pieces: slices of the vector; inside a site it travels in pieces. compressor: of its bucket.
    wires: leader -> uint8, this leader's own among them; empty off the leaders. residual, state: what
    the compressor keeps. arriving, sent: requests under way.
    """

    whole: slice
    pieces: list[slice]
    compressor: Compressor
    wires: dict[int, np.ndarray]
    residual: np.ndarray | None = None
    state: np.ndarray | None = None
    arriving: list = ()
    sent: list = ()
    combined: bool = False  # whether what has arrived is in the sum


class Hierarchical:
    """The sum of float32[size] over all ranks, in place.

    site, leaders: communicators (`leaders` None off the leaders) that take arrays of `residence`, where
    the vectors live; index, hub: numbers of this site
    and of the hub among `sites` sites, which are the ranks in `leaders`. buckets: slices that cover
    the vector, in the order in which they are started. compressors: of each bucket. feedback: whether
    each bucket keeps what its wires do not say. chunk_nbytes: most bytes of a wire.
    residual: float32[size] on a leader with error feedback in any bucket, else None.
    memory: float32 vector of all that a leader carries from call to call: the residual, then the
    compressor's state of each chunk.
    """

    def __init__(
        self,
        site,
        leaders,
        index,
        hub,
        sites,
        size,
        buckets,
        compressors,
        feedback,
        chunk_nbytes,
        clock,
        residence,
    ):
        self.site, self.leaders, self.clock, self.residence = site, leaders, clock, residence
        self.index, self.hub, self.sites = index, hub, sites
        self.left = site.rank - 1 if site.rank > 0 else None
        self.right = site.rank + 1 if site.rank + 1 < site.size else None
        self.peers = _peers(index, hub, sites) if leaders is not None and sites > 1 else []
        self.buckets, self.memory = self._chunks(size, buckets, compressors, feedback, chunk_nbytes)
        self.residual = self.memory[:size] if self.peers and any(feedback) else None
        longest = max(
            (_length(piece) for chunk in itertools.chain(*self.buckets) for piece in chunk.pieces),
            default=0,
        )
        self.inbox = residence.empty((2, longest), "f4")
        self.waiting = []  # chunks that were started and are not finished, in order

    def start(self, total, number, key):
        """Reduce bucket `number` to the leader, who encodes each chunk and sends it on."""
        while self.left is None and self.waiting and arrived(self.waiting[0].arriving):
            self._finish_chunk(total, self.waiting.pop(0), key)
        bucket = self.buckets[number]
        for chunk in bucket:
            chunk.sent = []
            chunk.arriving = [
                request
                for peer in self.peers
                for request in receiving(self.leaders, chunk.wires[peer], peer)
            ]
        arriving = self._receive_ahead([piece for chunk in bucket for piece in chunk.pieces])
        for chunk in bucket:
            for piece in chunk.pieces:
                if self.right is not None:
                    request, theirs = next(arriving)
                    request.Wait()
                    kernels.for_array(total).add(theirs, total[piece])
                if self.left is not None:
                    chunk.sent.append(self.site.Isend(total[piece], self.left))
            self.clock.lap("reduce")
            if self.peers and not self._adds_up:
                self._encode_and_send(total, chunk, key)
        self.waiting += bucket

    def advance(self, total, key):
        """Add what the other sites have sent so far, and have the hub tell them; never wait."""
        for chunk in self.waiting if self.peers else ():
            if not chunk.combined:
                if not arrived(chunk.arriving):
                    return
                self._combine(total, chunk, key)
                chunk.combined = True

    def finish(self, total, key):
        """Take what the other sites sent, and pass the result down the chain."""
        for chunk in self.waiting:
            self._finish_chunk(total, chunk, key)
        self.waiting = []
        for chunk in itertools.chain(*self.buckets):
            wait_for(chunk.sent)
        self.clock.lap("links" if self.peers else "broadcast")

    def predicted(self):
        """Yield (site, bytes) for every message that this rank sends in one call."""
        for chunk in itertools.chain(*self.buckets):
            for neighbour in (self.left, self.right):
                for piece in chunk.pieces if neighbour is not None else ():
                    yield self.index, message_nbytes(self.site, 4 * _length(piece), neighbour)
            for peer in self.peers:
                yield peer, sending_nbytes(self.leaders, chunk.wires[self.index].size, 1, peer)

    def _receive_ahead(self, pieces):
        """Yield the request and the inbox of each piece from the right, one piece ahead."""
        if self.right is None or not pieces:
            return

        def receive(number):
            inbox = self.inbox[number % 2][: pieces[number].stop - pieces[number].start]
            return self.site.Irecv(inbox, self.right), inbox

        ahead = receive(0)
        for number in range(1, len(pieces)):
            # Posting here is safe: the caller has added the inbox that this one re-uses.
            current, ahead = ahead, receive(number)
            yield current
        yield ahead

    def _finish_chunk(self, total, chunk, key):
        """Leave in a chunk of `total` the sum over all sites, and pass it on."""
        if not chunk.combined:
            wait_for(chunk.arriving)
            self.clock.lap("links" if self.peers else "broadcast")
            if self.peers:
                self._combine(total, chunk, key)
        chunk.combined = False
        if self.left is not None:
            wait_for(chunk.sent)  # these pieces are about to be overwritten
            chunk.sent = []
        for piece in chunk.pieces:
            if self.left is not None:
                self.site.Recv(total[piece], self.left)
            if self.right is not None:
                chunk.sent.append(self.site.Isend(total[piece], self.right))
        self.clock.lap("broadcast")

    def _combine(self, total, chunk, key):
        """Leave in a chunk of `total` the sum over all sites, as all leaders have it."""
        part, mine = total[chunk.whole], chunk.wires[self.index]
        wires = [chunk.wires[peer] for peer in self.peers]
        if self._adds_up:
            for wire in wires:
                chunk.compressor.add_decoded(wire, part)
            self.clock.lap("decode")
            self._encode_and_send(total, chunk, key)
            chunk.compressor.decode(mine, part)
        else:
            chunk.compressor.decode(wires[0], part)
            if self.sites == 2:  # a + b is b + a to the bit, so both leaders get the same
                chunk.compressor.add_decoded(mine, part)
        self.clock.lap("decode")

    def _encode_and_send(self, total, chunk, key):
        """Encode a chunk with this leader's residual and send the wire to its peers."""
        wire = chunk.wires[self.index]
        # Each site rounds by a key of its own, or their errors would not be independent.
        chunk.compressor.encode(
            total[chunk.whole],
            wire,
            chunk.residual,
            key=key * self.sites + self.index,
            first=chunk.whole.start,
            state=chunk.state,
        )
        for peer in self.peers:
            chunk.sent += sending(self.leaders, wire, peer)
        self.clock.lap("encode")  # with the handing over, as the time model has it

    @property
    def _adds_up(self):
        """Whether this leader is the hub of three sites or more."""
        return self.sites > 2 and self.index == self.hub

    def _chunks(self, size, buckets, compressors, feedback, chunk_nbytes):
        """Return the chunks of each bucket, and the memory in which they keep things."""
        speakers = [*self.peers, self.index] if self.peers else []
        kept = size if speakers and any(feedback) else 0
        chunks, states = [], [0]
        for bucket, compressor in zip(buckets, compressors):
            own, longest = compressor.piece(bucket), _length(bucket)
            of_link = chunk_entries(own, longest, chunk_nbytes)
            of_site = site_chunk_entries(own, longest, chunk_nbytes)
            chunks.append([])
            for whole in chunk_slices(bucket.start, bucket.stop, of_link):
                pieces = chunk_slices(whole.start, whole.stop, of_site)
                wires = {
                    leader: self.residence.empty(own.wire_nbytes(_length(whole)), np.uint8)
                    for leader in speakers
                }
                states.append(own.state_entries(_length(whole)) if speakers else 0)
                chunks[-1].append(Chunk(whole, pieces, own, wires))
        memory = self.residence.zeros(kept + sum(states), "f4")
        bounds = (kept + np.cumsum(states)).tolist()
        numbered = ((number, chunk) for number, bucket in enumerate(chunks) for chunk in bucket)
        for (number, chunk), first, last in zip(numbered, bounds, bounds[1:]):
            chunk.residual = memory[chunk.whole] if kept and feedback[number] else None
            chunk.state = memory[first:last]
        return chunks, memory


def _length(part):
    return part.stop - part.start


def _peers(rank, hub, sites):
    """Return the leaders that leader `rank` exchanges wires with."""
    if sites == 2 or rank == hub:
        return [other for other in range(sites) if other != rank]
    return [hub]
