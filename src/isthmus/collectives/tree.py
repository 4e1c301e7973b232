"""Double tree allreduce: chunks rise to a root and fall again, in two trees at once.

    up      a rank adds a chunk of each of its children to its own and sends the sum to its parent
    down    the root's sum goes back the same way

Many chunks are under way at a time, and one goes down while a later one goes up. A rank that has
children in one tree is a leaf in the other, which carries the other half of the vector (Sanders,
Speck and Träff 2009; NCCL's double binary trees). The number of hops grows as log2(p), and a rank
sends at most twice the vector. All ranks end with the same bits, those that the root had.
"""

import numpy as np

from isthmus import kernels
from isthmus.collectives.exact import Exact
from isthmus.topology.schedules import TREE_CHUNKS_AHEAD, trees


class DoubleTree(Exact):
    """The exact sum of float32[size] over `comm`, on every rank, in place."""

    def __init__(self, comm, site_of_rank, size, clock, empty=np.empty):
        self.clock, self.site_of_rank = clock, site_of_rank
        self.branches = [_Branch(comm, tree, tag, empty)
                         for tag, tree in enumerate(trees(comm.size, size))]
        self.steps = max(len(branch.chunks) + branch.ahead for branch in self.branches)

    def __call__(self, total):
        for branch in self.branches:
            branch.start()
        # In every tree a rank is fewer steps ahead than its children, so that what it waits for was
        # sent in an earlier step, or comes up in this one: nobody waits in a circle.
        for step in range(self.steps):
            for branch in self.branches:
                branch.up(total, step)
            self.clock.lap("reduce")
            for branch in self.branches:
                branch.down(total, step - branch.ahead)
            self.clock.lap("broadcast")
        for branch in self.branches:
            branch.finish()
        self.clock.lap("broadcast")

    def predicted(self):
        """Yield (site, bytes) for what this rank sends to each neighbour in one call."""
        for branch in self.branches:
            for other in branch.neighbours:
                yield self.site_of_rank[other], 4 * branch.entries


class _Branch:
    """One tree as one rank sees it."""

    def __init__(self, comm, tree, tag, empty):
        self.comm, self.tag = comm, tag
        self.chunks, self.entries = tree.chunks, tree.entries
        self.parent, self.children = tree.parents[comm.rank], tree.children[comm.rank]
        self.ahead = TREE_CHUNKS_AHEAD * tree.depth(comm.rank)
        longest = max((chunk.stop - chunk.start for chunk in self.chunks), default=0)
        self.inbox = empty((2, len(self.children), longest), "f4")

    @property
    def neighbours(self):
        return self.children if self.parent is None else [*self.children, self.parent]

    def start(self):
        self.risen, self.falling, self.sent = [], [], []
        self.arriving = self._receive_from_children(0)

    def up(self, total, number):
        """Add the children's sums of chunk `number`, and send what that makes to the parent."""
        if number >= len(self.chunks):
            return
        mine = total[self.chunks[number]]
        arrived, self.arriving = self.arriving, self._receive_from_children(number + 1)
        for request, subtotal in arrived:
            request.Wait()
            kernels.for_array(mine).add(subtotal, mine)
        if self.parent is not None:
            self.risen.append(self.comm.Isend(mine, self.parent, self.tag))

    def down(self, total, number):
        """Take the whole sum of chunk `number` from the parent, and pass it to the children."""
        if self.parent is not None and 0 <= number + 1 < len(self.chunks):
            self.risen[number + 1].Wait()  # its place is about to be overwritten
            self.falling.append(
                self.comm.Irecv(total[self.chunks[number + 1]], self.parent, self.tag))
        if not 0 <= number < len(self.chunks):
            return
        if self.parent is not None:
            self.falling[number].Wait()
        self.sent += [self.comm.Isend(total[self.chunks[number]], child, self.tag)
                      for child in self.children]

    def finish(self):
        for request in self.sent:
            request.Wait()

    def _receive_from_children(self, number):
        """Return (request, inbox) of each child's chunk `number`; the two inboxes take turns."""
        if number >= len(self.chunks):
            return []
        entries = self.chunks[number].stop - self.chunks[number].start
        inboxes = [inbox[:entries] for inbox in self.inbox[number % 2]]
        return [(self.comm.Irecv(inbox, child, self.tag), inbox)
                for child, inbox in zip(self.children, inboxes)]
