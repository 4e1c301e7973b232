"""Double tree allreduce: chunks rise to a root and fall again, in two trees at once.

    up      a rank adds a chunk of each of its children to its own and sends the sum to its parent
    down    the root's sum goes back the same way

Many chunks are under way at a time, and one goes down while a later one goes up. A rank that has
children in one tree is a leaf in the other, which carries the other half of the vector (Sanders,
Speck and Träff 2009; NCCL's double binary trees). The number of hops grows as log2(p), and a rank
sends at most twice the vector. All ranks end with the same bits, those that the root had.

Each way of each tree goes on as soon as what it waits for is there. Done in turn, one way would keep
the other waiting: of two ranks that are each other's parents, over a link, both would wait for a round
trip for every chunk, and the link would be idle for more than half of the time.
"""

import numpy as np

from isthmus import kernels
from isthmus.collectives.exact import Exact
from isthmus.collectives.messages import arrived, wait_for, wait_for_any
from isthmus.links.comm import message_nbytes
from isthmus.schedules import TREE_CHUNKS_AHEAD, trees


class DoubleTree(Exact):
    """The exact sum of float32[size] over `comm`, on every rank, in place."""

    def __init__(self, comm, site_of_rank, size, clock, empty=np.empty):
        self.clock, self.site_of_rank = clock, site_of_rank
        self.branches = [
            _Branch(comm, tree, tag, empty) for tag, tree in enumerate(trees(comm.size, size))
        ]

    def __call__(self, total):
        for branch in self.branches:
            branch.start()
        while awaited := [request for branch in self.branches for request in branch.go_on(total)]:
            self.clock.lap("reduce" if any(branch.rises for branch in self.branches) else "broadcast")
            wait_for_any(awaited)
        for branch in self.branches:
            branch.finish()
        self.clock.lap("broadcast")

    def predicted(self):
        """Yield (site, bytes) for what this rank sends to each neighbour in one call."""
        for branch in self.branches:
            for other in branch.neighbours:
                for chunk in branch.chunks:
                    yield (
                        self.site_of_rank[other],
                        message_nbytes(branch.comm, 4 * (chunk.stop - chunk.start), other),
                    )


class _Branch:
    """One tree as one rank sees it."""

    def __init__(self, comm, tree, tag, empty):
        self.comm, self.tag = comm, tag
        self.chunks = tree.chunks
        self.parent, self.children = tree.parents[comm.rank], tree.children[comm.rank]
        self.ahead = TREE_CHUNKS_AHEAD * tree.depth(comm.rank)
        longest = max((chunk.stop - chunk.start for chunk in self.chunks), default=0)
        self.inbox = empty((2, len(self.children), longest), "f4")

    @property
    def neighbours(self):
        return self.children if self.parent is None else [*self.children, self.parent]

    @property
    def rises(self):
        """Whether some of this rank's chunks have not been summed and sent up."""
        return self.summed < len(self.chunks)

    def start(self):
        self.summed, self.fallen = 0, 0  # chunks that have gone up, and that have come down
        self.risen, self.sent, self.falling = [], [], None
        self.arriving = self._receive_from_children(0)

    def go_on(self, total):
        """Do all that can be done; return the requests of which one must come before there is more."""
        while self._up(total) or self._down(total):
            pass
        awaited = [request for request, _ in self.arriving] if self._may_rise else []
        if self.parent is not None and self.fallen < self.summed:
            awaited.append(self.risen[self.fallen] if self.falling is None else self.falling)
        return awaited

    @property
    def _may_rise(self):
        """Whether the next chunk may go up: not too far ahead of those that come down.

        A rank may be less far ahead than its children, so what it waits for they have sent, or may.
        """
        return self.rises and (self.parent is None or self.summed <= self.fallen + self.ahead)

    def _up(self, total):
        """Add the children's sums of the next chunk, if they are there, and send that to the parent."""
        if not self._may_rise or not arrived(request for request, _ in self.arriving):
            return False
        mine = total[self.chunks[self.summed]]
        came, self.arriving = self.arriving, self._receive_from_children(self.summed + 1)
        for _, subtotal in came:
            kernels.for_array(mine).add(subtotal, mine)
        if self.parent is not None:
            self.risen.append(self.comm.Isend(mine, self.parent, self.tag))
        self.summed += 1
        return True

    def _down(self, total):
        """Pass the next whole sum, if it is there, to the children."""
        if self.fallen == self.summed:
            return False
        whole = total[self.chunks[self.fallen]]
        if self.parent is not None:
            if self.falling is None and self.risen[self.fallen].Test():  # else its place is still read
                self.falling = self.comm.Irecv(whole, self.parent, self.tag)
            if self.falling is None or not self.falling.Test():
                return False
        self.sent += [self.comm.Isend(whole, child, self.tag) for child in self.children]
        self.fallen, self.falling = self.fallen + 1, None
        return True

    def finish(self):
        wait_for(self.sent)

    def _receive_from_children(self, number):
        """Return (request, inbox) of each child's chunk `number`; the two inboxes take turns."""
        if number >= len(self.chunks):
            return []
        entries = self.chunks[number].stop - self.chunks[number].start
        inboxes = [inbox[:entries] for inbox in self.inbox[number % 2]]
        return [
            (self.comm.Irecv(inbox, child, self.tag), inbox)
            for child, inbox in zip(self.children, inboxes)
        ]
