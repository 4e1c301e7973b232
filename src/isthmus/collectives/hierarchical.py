"""Hierarchical allreduce: exact inside a site, one compressed crossing each way between sites.

    inside a site      the ranks form a chain; chunk by chunk each adds its own to what came from the
                       right and passes it to the left, so the first rank, the leader, has the sum
    between two sites  the leaders exchange the wires of their sums, both ways at once, and both add
                       the same two decoded vectors
    between more       the leaders send to the hub; the hub adds, encodes the sum once, and sends
                       that wire to all; the hub, too, keeps what the wire says, not what it had
    inside a site      the result goes down the chain, chunk by chunk

A chunk travels on as soon as it is there, so while one is on a link the next is being reduced. Each
vector is quantised once on its way up and once on its way down, never once a hop: the error does
not grow with the number of ranks. All ranks end with the same bits, because all decode the same
wires.
"""

import numpy as np

from isthmus import kernels
from isthmus.compression.chunks import chunk_entries, site_chunk_entries
from isthmus.vectors import chunk_slices


class Hierarchical:
    """The sum of float32[size] over all ranks, in place.

    site, leaders: communicators (`leaders` None off the leaders); index, hub: numbers of this site
    and of the hub among `sites` sites, which are the ranks in `leaders`.
    residual: float32[size] on a leader with error feedback, else None.
    memory: float32 vector of all that a leader carries from call to call: the residual, then the
    compressor's state of each chunk.
    """

    def __init__(self, site, leaders, index, hub, sites, size, compressor, error_feedback, clock):
        self.site, self.leaders = site, leaders
        self.index, self.hub, self.sites = index, hub, sites
        self.compressor, self.clock = compressor, clock
        self.left = site.rank - 1 if site.rank > 0 else None
        self.right = site.rank + 1 if site.rank + 1 < site.size else None
        site_chunk = site_chunk_entries(compressor, size)
        self.chunks = [(whole, chunk_slices(whole.start, whole.stop, site_chunk))
                       for whole in chunk_slices(0, size, chunk_entries(compressor, size))]
        self.inbox = np.empty((2, min(site_chunk, size)), "f4")
        speaks = leaders is not None and sites > 1
        kept = size if speaks and error_feedback else 0
        carried = [compressor.state_entries(whole.stop - whole.start) if speaks else 0
                   for whole, _ in self.chunks]
        self.memory = np.zeros(kept + sum(carried), "f4")
        self.residual = self.memory[:size] if speaks and error_feedback else None
        self.states = np.split(self.memory[kept:], np.cumsum(carried, dtype=int))
        self.peers = _peers(index, hub, sites) if speaks else []
        self.wires = {leader: self._new_wires()
                      for leader in ([*self.peers, index] if speaks else [])}

    def __call__(self, total, key):
        arriving = [[self.leaders.Irecv(self.wires[peer][number], peer) for peer in self.peers]
                    for number in range(len(self.chunks))]
        sent = self._to_the_leader(total, key)
        self._to_everyone(total, key, arriving, sent)

    def predicted(self):
        """Yield (site, bytes) for every message that this rank sends in one call."""
        for whole, _ in self.chunks:
            for neighbour in (self.left, self.right):
                if neighbour is not None:
                    yield self.index, 4 * (whole.stop - whole.start)
            for peer in self.peers:
                yield peer, self.compressor.wire_nbytes(whole.stop - whole.start)

    def _to_the_leader(self, total, key):
        """Reduce to the leader, who encodes each chunk of the sum and sends it on."""
        sent = []
        arriving = self._receive_ahead(total)
        for number, (whole, pieces) in enumerate(self.chunks):
            for piece in pieces:
                if self.right is not None:
                    request, arrived = next(arriving)
                    request.Wait()
                    kernels.for_array(total).add(arrived, total[piece])
                if self.left is not None:
                    sent.append(self.site.Isend(total[piece], self.left))
            self.clock.lap("reduce")
            if self.peers and not self._adds_up:
                sent += self._encode_and_send(total, number, whole, key)
        return sent

    def _receive_ahead(self, total):
        """Yield the request and the inbox of each piece from the right, one piece ahead."""
        pieces = [piece for _, pieces in self.chunks for piece in pieces]
        if self.right is None or not pieces:
            return

        def receive(number):
            inbox = self.inbox[number % 2][:pieces[number].stop - pieces[number].start]
            return self.site.Irecv(inbox, self.right), inbox

        ahead = receive(0)
        for number in range(1, len(pieces)):
            # Posting here is safe: the caller has added the inbox that this one re-uses.
            current, ahead = ahead, receive(number)
            yield current
        yield ahead

    def _to_everyone(self, total, key, arriving, sent):
        """Take what the other sites sent, and pass the result down the chain."""
        if self.left is not None:
            for request in sent:  # these pieces are about to be overwritten
                request.Wait()
        for number, (whole, pieces) in enumerate(self.chunks):
            if self.peers:
                for request in arriving[number]:
                    request.Wait()
                self.clock.lap("links")
                sent += self._combine(total, number, whole, key)
            for piece in pieces:
                if self.left is not None:
                    self.site.Recv(total[piece], self.left)
                if self.right is not None:
                    sent.append(self.site.Isend(total[piece], self.right))
            self.clock.lap("broadcast")
        for request in sent:
            request.Wait()
        self.clock.lap("links" if self.peers else "broadcast")

    def _combine(self, total, number, whole, key):
        """Leave in chunk `number` of `total` the sum over all sites, as all leaders have it."""
        part = total[whole]
        mine = self.wires[self.index][number]
        wires = [self.wires[peer][number] for peer in self.peers]
        if self._adds_up:
            for wire in wires:
                self.compressor.add_decoded(wire, part)
            self.clock.lap("decode")
            requests = self._encode_and_send(total, number, whole, key)
            self.compressor.decode(mine, part)
            self.clock.lap("decode")
            return requests
        self.compressor.decode(wires[0], part)
        if self.sites == 2:  # a + b is b + a to the bit, so both leaders get the same
            self.compressor.add_decoded(mine, part)
        self.clock.lap("decode")
        return []

    def _encode_and_send(self, total, number, whole, key):
        """Encode chunk `number` with this leader's residual and send the wire to its peers."""
        wire = self.wires[self.index][number]
        residual = None if self.residual is None else self.residual[whole]
        # Each site rounds by a key of its own, or their errors would not be independent.
        self.compressor.encode(total[whole], wire, residual, key=key * self.sites + self.index,
                               first=whole.start, state=self.states[number])
        self.clock.lap("encode")
        return [self.leaders.Isend(wire, peer) for peer in self.peers]

    @property
    def _adds_up(self):
        """Whether this leader is the hub of three sites or more."""
        return self.sites > 2 and self.index == self.hub

    def _new_wires(self):
        """Return a wire for every chunk."""
        return [np.empty(self.compressor.wire_nbytes(whole.stop - whole.start), np.uint8)
                for whole, _ in self.chunks]


def _peers(rank, hub, sites):
    """Return the leaders that leader `rank` exchanges wires with."""
    if sites == 2 or rank == hub:
        return [other for other in range(sites) if other != rank]
    return [hub]
