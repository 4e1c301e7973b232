"""Replicas: whether all ranks hold the same parameters, and what they go back to where they do not."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from isthmus.devices import to_host
from isthmus.errors import ReplicaError, ranks_in_words
from isthmus.links.agreement import ranks_where
from isthmus.links.world import all_gather, broadcast

if TYPE_CHECKING:
    from isthmus.training.loop import Training

MOST_RETURNS = 3
"""To one step: what differs again and again is no flipped bit."""


class WentBackError(Exception):
    """After step `found`, `ranks` held other parameters than most, and all have gone back.

    No `ranks`: no majority tells who.
    """

    def __init__(self, ranks: Sequence[int], found: int):
        super().__init__(ranks, found)
        self.ranks, self.found = ranks, found


class Replicas:
    """The parameters of all ranks of a `Training`.

    repairs: whether each rank keeps a copy of all that decides its next steps whenever all are found
    to be equal. Then a difference costs the steps since: they are made again, from the same bits.
    """

    def __init__(self, training: "Training", repairs: bool = False):
        self.training, self.repairs = training, repairs
        self.kept: tuple[int, dict[str, np.ndarray], list[bytes]] | None = None
        self.returns = 0  # to what is kept

    def compare(self) -> str:
        """Return the parameters' SHA-256; ReplicaError on every rank where any differs. Collective."""
        digest = hashlib.sha256(to_host(self.training.state.parameters)).digest()
        odd, usual = self._odd_ranks(digest)
        if odd:
            raise self._error(
                f"parameters on {ranks_in_words(odd)} differ from those of the others"
                if usual is not None
                else "parameters differ between ranks, and no majority tells whose are right",
                odd,
            )
        return digest.hex()

    def compare_and_keep(self) -> str:
        """Return what `compare` does; where ranks differ, go back and raise WentBackError, if there is
        what to go back to. Collective."""
        try:
            digest = self.compare()
        except ReplicaError as problem:
            if self.kept is None or self.returns >= MOST_RETURNS:
                raise
            found = self.training.state.step
            self._go_back()
            everyone = len(problem.ranks) == self.training.tiers.world.size
            raise WentBackError([] if everyone else problem.ranks, found) from problem
        if self.repairs:
            self._keep()
        return digest

    def _odd_ranks(self, digest):
        """Return the ranks whose digest is not that of more than half, and the first whose it is.

        Without such a majority: all ranks, and None. Where all are equal: none, and 0. Collective.
        """
        world = self.training.tiers.world
        digests = [each.tobytes() for each in all_gather(world, np.frombuffer(digest, np.uint8))]
        usual, count = Counter(digests).most_common(1)[0]
        if 2 * count <= world.size:
            return [*range(world.size)], None
        return [rank for rank, each in enumerate(digests) if each != usual], digests.index(usual)

    def _error(self, what, ranks):
        error = ReplicaError(
            f"step {self.training.state.step}: {what}; check these machines' memory and library "
            "versions, and resume from the last checkpoint"
        )
        error.everywhere, error.ranks = True, ranks
        return error

    def _keep(self):
        """Copy what decides the next steps."""
        step = self.training.state.step
        if self.kept is None or step > self.kept[0]:
            self.returns = 0
        arrays = {name: np.array(to_host(array)) for name, array in self.training.arrays().items()}
        self.kept = step, arrays, _digests(arrays)

    def _go_back(self):
        """Have every rank go on after the step that is kept.

        A copy in which a bit has flipped as well is replaced by that of most ranks.
        """
        assert self.kept is not None
        training, world = self.training, self.training.tiers.world
        step, arrays, before = self.kept
        alike, own = _digests(arrays)
        odd, usual = self._odd_ranks(alike)
        if usual is None:
            raise self._error("what ranks have kept to go back to differs as well", odd)
        if odd:
            for name in filter(_is_alike, arrays):
                broadcast(world, arrays[name], usual)
        if wrong := ranks_where(world, own != before[1]):
            raise self._error(
                f"what {ranks_in_words(wrong)} kept to go back to has changed as well", wrong
            )
        if training.agree is not None:
            training.agree()  # before any rank changes what it has
        training.go_back(step, arrays)
        self.returns += 1
        self.kept = step, arrays, _digests(arrays)


def _is_alike(name):
    """Whether an array of a rank's training is the same on all ranks."""
    return name == "parameters" or name.startswith("optimiser/")


def _digests(arrays):
    """Return the SHA-256 of what is the same on all ranks, and of what is a rank's own."""
    sums = hashlib.sha256(), hashlib.sha256()
    for name in sorted(arrays):
        sums[not _is_alike(name)].update(np.ascontiguousarray(arrays[name]))
    return [each.digest() for each in sums]
