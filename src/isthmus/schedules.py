"""Who sends which part to whom: plans that the allreduces follow and the time model times.

Numbers alone, no MPI. Ranks are those of the world: neighbours in number are mostly of one site,
and both schedules keep to neighbours where most bytes move.
"""

from dataclasses import dataclass
from functools import cached_property

from isthmus.vectors import chunk_slices

TREE_CHUNK_ENTRIES = 15 * 1024
"""float32 entries of a chunk in a tree: 60 KiB, under the eager limit of MPI over TCP (64 KiB)."""

TREE_CHUNKS_AHEAD = 4
"""Chunks that a rank sends up, for each level it is below the root, before it waits for the first
to come down: enough to fill a link there and back, few enough that both ways work at once."""


@dataclass(frozen=True)
class Tree:
    """A binary tree over the ranks: `parents[rank]` is None for the root; `chunks` go along it."""

    parents: tuple
    chunks: tuple

    @cached_property
    def children(self):
        """The ranks right below each rank, lowest first."""
        below = tuple([] for _ in self.parents)
        for child, parent in enumerate(self.parents):
            if parent is not None:
                below[parent].append(child)
        return below

    @property
    def entries(self):
        """Entries of the vector that go along this tree."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)

    def depth(self, rank):
        """Return the number of hops from `rank` to the root."""
        hops = 0
        while (rank := self.parents[rank]) is not None:
            hops += 1
        return hops


def tree_parents(ranks):
    """Return each rank's parent in the in-order binary tree: odd ranks are leaves, 0 is the root.

    The lowest set bit of a rank moves one place up on the way to the root, so subtrees are ranges
    of neighbours.
    """
    parents = [None]
    for rank in range(1, ranks):
        lowest = rank & -rank
        up = (rank ^ lowest) | (lowest << 1)
        parents.append(up if up < ranks else rank ^ lowest)
    return parents


def mirrored_parents(ranks):
    """Return each rank's parent in a second tree, in which the inner ranks of the first are leaves.

    The first tree backwards where the number of ranks is even, else moved on by one rank (as in
    NCCL 2.4); of an odd number rank 0 alone is inner, with one child, in both.
    """
    if ranks % 2 == 0:

        def place(rank):
            return ranks - 1 - rank
    else:

        def place(rank):
            return (rank + 1) % ranks

    parents = [None] * ranks
    for rank, parent in enumerate(tree_parents(ranks)):
        parents[place(rank)] = None if parent is None else place(parent)
    return parents


def trees(ranks, size):
    """Return the trees that `size` entries go along: one for a single chunk, else two.

    Each of two carries half of the vector, so a rank sends at most twice the vector and all ranks
    work both ways (Sanders, Speck and Träff 2009, "Two-tree algorithms for full bandwidth
    broadcast, reduction and scan").
    """
    first = tuple(tree_parents(ranks))
    if size <= TREE_CHUNK_ENTRIES:
        return [Tree(first, tuple(chunk_slices(0, size, TREE_CHUNK_ENTRIES)))]
    return [
        Tree(first, tuple(chunk_slices(0, size // 2, TREE_CHUNK_ENTRIES))),
        Tree(tuple(mirrored_parents(ranks)), tuple(chunk_slices(size // 2, size, TREE_CHUNK_ENTRIES))),
    ]


@dataclass(frozen=True)
class Halving:
    """One step of recursive halving: `give` goes to `peer`, `keep` is summed here."""

    peer: int
    keep: slice
    give: slice


def core_ranks(ranks):
    """Return the 2^k ranks that halve and double; any other rank r folds its vector into r + 1."""
    core = 1 << (ranks.bit_length() - 1)
    folded = 2 * (ranks - core)
    return [*range(1, folded, 2), *range(folded, ranks)]


@dataclass(frozen=True)
class Swap:
    """One step of recursive doubling: the whole vector goes to `target`, that of `source` comes.

    None is nobody. sums: what comes is added; if not, it is the sum, and takes the vector's place.
    """

    target: int | None
    source: int | None
    sums: bool = True


def doublings(ranks, rank):
    """Return the Swaps of `rank`: with the nearest first, then with one twice as far each time."""
    core = core_ranks(ranks)
    if rank not in core:
        return [Swap(rank + 1, None), Swap(None, rank + 1, sums=False)]
    position, folded = core.index(rank), rank - 1
    peers = [core[position ^ (1 << bit)] for bit in range(len(core).bit_length() - 1)]
    steps = [Swap(peer, peer) for peer in peers]
    if folded < 0 or folded in core:
        return steps
    return [Swap(None, folded), *steps, Swap(folded, None, sums=False)]


def halvings(core, position, size):
    """Return the Halvings of `core[position]`: half of the vector first, with the nearest rank.

    What is left for the far ranks, mostly of other sites, is then the least.
    """
    first, last, steps = 0, len(core), []
    for distance in (1 << bit for bit in range(len(core).bit_length() - 1)):
        middle = (first + last) // 2
        low, high = (first, middle), (middle, last)
        keep, give = (high, low) if position & distance else (low, high)
        steps.append(
            Halving(
                core[position ^ distance],
                _entries(keep, size, len(core)),
                _entries(give, size, len(core)),
            )
        )
        first, last = keep
    return steps


def _entries(parts, size, count):
    return slice(*(size * part // count for part in parts))
