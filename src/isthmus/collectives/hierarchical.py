"""Hierarchical allreduce: exact inside a site, one compressed wire each way between sites.

    inside a site      the ranks form a chain; chunk by chunk each adds its own to what came from the
                       right and passes it to the left, so the first rank, the leader, has the sum
    up the tree        a leader adds the wires of its children to its site's sum, encodes that once,
                       and sends the wire to its parent
    at the top         the hub encodes the sum once more, and keeps what the wire says, not what it
                       had; two leaders at the top exchange wires, both ways at once, and both add the
                       same two decoded vectors, and encode that alike if there are others below
    down the tree      the wire goes down as it is, over each edge once
    inside a site      the result goes down the chain, chunk by chunk

A chunk travels on as soon as it is there, so while one is on a link the next is being reduced, and
levels of the tree work on different chunks. A bucket is a run of chunks: `start` takes it as far as
the link and returns, so that the rest of the vector is computed while it travels; `finish` does what
is left. A sum is quantised once a level on its way up and once for its way down, never once a hop
inside a site: with errors e_s = ||C(x_s) - x_s|| of what each site s encoded, the sum is wrong by at
most the sum of all e_s, and the error does not grow with the number of ranks. All ranks end with the
same bits, because all decode the same wires.
"""

import itertools
import math
from collections import deque

import numpy as np

from isthmus import kernels
from isthmus.collectives.chunk import cut, length, messages_at_once, stage_entries
from isthmus.collectives.messages import (
    arrived,
    receiving,
    receiving_ahead,
    sending,
    sending_nbytes,
    wait_for,
)
from isthmus.links.comm import message_nbytes


class Hierarchical:
    """The sum of float32[size] over all ranks, in place.

    site, leaders: communicators (`leaders` None off the leaders) that take arrays of `residence`, where
    the vectors live; index: number of this site; tree: the AggregationTree of the sites, which are the
    ranks in `leaders`. buckets: slices that cover
    the vector, in the order in which they are started. compressors: of each bucket. feedback: whether
    each bucket keeps what its wires do not say. chunk_nbytes: most bytes of a wire. window_nbytes: most
    bytes that a leader whose caller waits sends up before the first has come back as a sum. tag: of
    messages to other leaders; sums that are under way at once each have one of their own.
    memory: float32 vector of all that a leader carries from call to call: the residual, the
    compressor's state of each chunk, and both once more for what two leaders at the top encode alike.
    There are two: a call reads the one and writes the other, which takes its place if the sum is finite,
    and else nothing has changed. The sum that is to be encoded is made in the other one's residual.
    """

    def __init__(
        self,
        site,
        leaders,
        index,
        tree,
        size,
        buckets,
        compressors,
        feedback,
        chunk_nbytes,
        clock,
        residence,
        window_nbytes=math.inf,
        tag=0,
    ):
        self.tag = tag
        self.site, self.leaders, self.clock, self.residence = site, leaders, clock, residence
        if not all(compressor.portable for compressor in compressors):
            tree = tree.with_one_at_the_top()  # or two machines would encode one sum differently
        self.index, self.tree = index, tree
        self.left = site.rank - 1 if site.rank > 0 else None
        self.right = site.rank + 1 if site.rank + 1 < site.size else None
        speaks = leaders is not None and len(tree.parents) > 1
        self.children = tree.children[index] if speaks else ()
        self.above = tree.above(index) if speaks else None
        self.peers = [*self.children, *([] if self.above is None else [self.above])]
        self.exchanges = speaks and index in (tree.hub, tree.partner) and self.above is not None
        self.retells = self.exchanges and tree.retells
        self.buckets, self.memories = cut(
            size,
            zip(buckets, compressors, feedback),
            chunk_nbytes,
            residence,
            self.peers,
            last=self.above if self.exchanges or not self.children else None,
            swaps=self.exchanges and not self.retells,
            retells=self.retells,
            window_nbytes=window_nbytes,
        )
        self.now, self.finite, self.awaited = 0, True, True
        self.size, self.keeps = size, bool(self.peers) and any(feedback)
        chunks = list(itertools.chain(*self.buckets))
        longest = max((length(piece) for chunk in chunks for piece in chunk.pieces), default=0)
        self.inbox = residence.empty((2, 0 if self.right is None else longest), "f4")
        self.stage = residence.empty(stage_entries(chunks), "f4").view(np.uint8)
        neighbours = [side for side in (self.left, self.right) if side is not None]
        residence.expect(messages_at_once(chunks, self.peers, neighbours))
        # Chunks that were started and are not finished, in order: they wait for children's wires, then
        # for one from above, and then for being passed down the chain.
        self.rising, self.falling, self.landed = deque(), deque(), deque()

    @property
    def memory(self):
        return self.memories[self.now]

    def decay(self, share):
        """Keep that share of what wires have not said, and forget the rest."""
        for chunk in itertools.chain(*self.buckets):
            for encoded in (chunk.own, chunk.told):
                if encoded is not None and encoded.residuals[self.now] is not None:
                    encoded.residuals[self.now][:] *= np.float32(share)

    @property
    def residual(self):
        """float32[size], what this leader's wires have not said; None off leaders and without feedback.

        What two leaders at the top both keep of the sum counts once, for the hub.
        """
        if not self.keeps:
            return None
        own = self.memory[: self.size]
        if self.retells and self.index == self.tree.hub:
            half = self.memory.size // 2
            return own + self.memory[half : half + self.size]
        return own

    def start(self, total, number, key, given):
        """Reduce bucket `number` to the leader, who sends on what has its children's wires.

        given: this rank's GivenBucket. key: number of the call, alike on all ranks; with the site's it
        seeds how compressors round. `total` is where the sum will be in the end. Nothing goes down
        the chain before `finish`: until then another sum may be made over the site's communicator, and
        whether a wire has come by now, the ranks below do not know.
        """
        self.awaited = number + 1 == len(self.buckets)
        self._take_on(total, key)
        bucket = self.buckets[number]
        for chunk in bucket:
            chunk.sent = []
            chunk.from_below = self._receiving(chunk, self.children, total)
            chunk.from_above = self._receiving(chunk, self.peers[len(self.children) :], total)
        sizes = [length(piece) for chunk in bucket for piece in chunk.pieces]
        arriving = receiving_ahead(self.site, self.right, self.inbox, sizes)
        for chunk in bucket:
            summed = self._place_of(chunk, total)
            for piece in chunk.pieces:
                given.write(summed, piece)
                if self.right is not None:
                    kernels.for_array(summed).add(next(arriving), summed[piece])
                if self.left is not None:
                    chunk.sent.append(self.site.Isend(summed[piece], self.left))
            self.clock.lap("reduce")
            if not self.peers:
                self.landed.append(chunk)
                continue
            self.rising.append(chunk)
            self._take_on(total, key)  # what is there is taken on at once: it is in the cache still

    def advance(self, total, key):
        """Send on what other sites have sent so far, up the tree and down; never wait."""
        self.awaited = False
        self._take_on(total, key)

    def finish(self, total, key):
        """Take what the other sites sent, pass the result down the chain, and return whether all of it
        is finite: only then has what is kept changed."""
        self.awaited = True
        while self.rising or self.falling or self.landed:
            if self.landed:
                self._pass_down(total)
            elif not self._advance_chunk(total, key):
                self._wait()
        for chunk in itertools.chain(*self.buckets):
            wait_for(chunk.sent)
        self.clock.lap("links" if self.peers else "broadcast")
        finite, self.finite = self.finite, True
        if not self.residence.cached:
            finite = kernels.for_array(total).all_finite(total)
        return self._ended(finite)

    def undo(self):
        """Keep what was kept before the last call, whose sum was finite and is not used."""
        self.now = 1 - self.now

    def align(self):
        """Have two leaders at the top that encode one sum alike remember the same of it: what the hub
        does. Collective over all leaders, between two calls."""
        if self.retells:
            told = self.memory[self.memory.size // 2 :]
            if self.index == self.tree.hub:
                wait_for(sending(self.leaders, told, self.above, self.tag))
            else:
                wait_for(receiving(self.leaders, told, self.above, self.tag))

    def predicted(self):
        """Yield (site, bytes) for every message that this rank sends in one call."""
        for chunk in itertools.chain(*self.buckets):
            for neighbour in (self.left, self.right):
                for piece in chunk.pieces if neighbour is not None else ():
                    yield self.index, message_nbytes(self.site, 4 * length(piece), neighbour)
            for peer in self.peers:
                yield peer, sending_nbytes(self.leaders, chunk.wire_nbytes, 1, peer)

    def _receiving(self, chunk, peers, total):
        return [
            request
            for peer in peers
            for request in receiving(self.leaders, chunk.inbox(peer, total), peer, self.tag)
        ]

    def _take_on(self, total, key):
        while self.peers and self._advance_chunk(total, key):
            pass

    def _advance_chunk(self, total, key):
        """Take one chunk a stage further, without waiting; return whether there was one."""
        if self._may_rise() and arrived(self.rising[0].from_below):
            self._rise(total, key)
        elif self.falling and arrived(self.falling[0].from_above):
            if self.falling[0].plain and not arrived(self.falling[0].sent):
                return False  # what is sent from there must stay as it is
            self._fall(total, key)
        else:
            return False
        return True

    def _may_rise(self):
        """Whether there is a chunk that may be sent up as far as those before it are concerned.

        Any may where the caller does other work first: links have all that time to carry it.
        """
        return self.rising and (len(self.falling) <= self.rising[0].ahead or not self.awaited)

    def _wait(self):
        """Return when the next chunk that waits for another site's wire has it."""
        waiting = [self.rising[0].from_below] if self._may_rise() else []
        waiting += [
            chunk.from_above + (chunk.sent if chunk.plain else [])
            for chunk in itertools.islice(self.falling, 1)
        ]
        if len(waiting) == 1:
            wait_for(waiting[0])
        else:
            while not any(map(arrived, waiting)):
                pass
        self.clock.lap("links")

    def _rise(self, total, key):
        """Add the children's wires to the next chunk, encode it, and send it up, or as the hub down."""
        chunk = self.rising.popleft()
        summed = self._place_of(chunk, total)[chunk.whole]
        if self.children:
            self._add_up(chunk, summed)
            self.clock.lap("decode")
        self._hand_on(chunk, summed, total[chunk.whole], key)

    def _add_up(self, chunk, summed):
        """Add the children's wires of a chunk to what this site has of it."""
        for child in self.children:
            chunk.compressor.add_decoded(chunk.inboxes[child], summed)

    def _hand_on(self, chunk, summed, part, key):
        """Encode what is summed of a chunk, and send it up, or as the hub down."""
        if chunk.plain:
            self._send(chunk, part.view(np.uint8), [self.above])
            self.falling.append(chunk)
            return
        self._encode(chunk, chunk.own, summed, key, self.index)
        self._send(chunk, chunk.own.wire, self.children if self.above is None else [self.above])
        if self.above is not None:
            self.falling.append(chunk)
            return
        chunk.compressor.decode(chunk.own.wire, part)
        self.clock.lap("decode")
        self.landed.append(chunk)

    def _fall(self, total, key):
        """Leave in the next chunk of `total` the sum over all sites, as all leaders have it; tell those
        below."""
        chunk = self.falling.popleft()
        part, wire = total[chunk.whole], chunk.inboxes[self.above]
        if wire is None:  # it is where its sum is to be
            wire = self.stage[: chunk.wire_nbytes]
            wire[:] = chunk.inbox(self.above, total)
        if chunk.plain:
            chunk.compressor.add_decoded(wire, part)
        elif self.exchanges:
            kept = chunk.told and chunk.told.residuals[1 - self.now]
            summed = part if kept is None else kept
            chunk.compressor.decode(wire, summed)
            # a + b is b + a to the bit, so both leaders get the same.
            chunk.compressor.add_decoded(chunk.own.wire, summed)
            if self.retells:
                self.clock.lap("decode")
                self._encode(chunk, chunk.told, summed, key, len(self.tree.parents))
                wire = chunk.told.wire
        self._send(chunk, wire, self.children)
        if not self.exchanges or self.retells:
            chunk.compressor.decode(wire, part)
        self.clock.lap("decode")
        self.landed.append(chunk)

    def _pass_down(self, total):
        """Pass the next chunk's result down the chain."""
        if not self.landed:
            return
        chunk = self.landed.popleft()
        if self.left is not None:
            wait_for(chunk.sent)  # these pieces are about to be overwritten
            chunk.sent = []
        check = kernels.for_array(total).all_finite if self.residence.cached else None
        for piece in chunk.pieces:
            if self.left is not None:
                self.site.Recv(total[piece], self.left)
            if self.right is not None:
                chunk.sent.append(self.site.Isend(total[piece], self.right))
            if check is not None:
                self.finite &= check(total[piece])  # while it is in the cache
        self.clock.lap("broadcast")

    def _ended(self, finite):
        """Let what this call has left take the place of what was kept, if the sum is finite."""
        if finite:
            self.now = 1 - self.now
        return finite

    def _place_of(self, chunk, total):
        """Return where the sum of a chunk over this site's ranks is made, a vector like `total`."""
        keeps = chunk.own is not None and chunk.own.residuals[0] is not None
        return self.memories[1 - self.now] if keeps else total

    def _encode(self, chunk, encoded, summed, key, number):
        """Encode a chunk; `number` tells apart all that are encoded with one `key`.

        Each site rounds by a key of its own, or their errors would not be independent. What was kept
        is added to the sum, or the sum to it: that is the same, and what the wire does not say is left
        where the sum was.
        """
        (kept, _), (state, after) = encoded.residuals, encoded.states
        if self.now:
            kept, state, after = encoded.residuals[1], after, state
        if after.size:
            after[:] = state
        numbers = len(self.tree.parents) + self.tree.retells
        chunk.compressor.encode(
            summed if kept is None else kept,
            encoded.wire,
            None if kept is None else summed,
            key=key * numbers + number,
            first=chunk.whole.start,
            state=after,
        )

    def _send(self, chunk, wire, peers):
        for peer in peers:
            chunk.sent += sending(self.leaders, wire, peer, self.tag)
        self.clock.lap("encode")  # with the handing over, as the time model has it
