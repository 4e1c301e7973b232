"""Replicas: whether all ranks hold the same parameters, and what they go back to where they do not."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from isthmus.devices import to_host
from isthmus.errors import ReplicaError, ranks_in_words
from isthmus.links.agreement import gather_json, ranks_where
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


class Kept(NamedTuple):
    """What a rank goes back to: its arrays as they were after `step`, and their digests then."""

    step: int
    arrays: dict[str, np.ndarray]
    digests: list[bytes]


class Replicas:
    """The parameters of all ranks of a `Training`.

    repairs: whether each rank keeps a copy of all that decides its next steps whenever all are found
    to be equal. Then a difference costs the steps since: they are made again, from the same bits.
    untold: that all go back, until it is told.
    """

    def __init__(self, training: "Training", repairs: bool = False):
        self.training, self.repairs = training, repairs
        self.kept: Kept | None = None
        self.returns = 0  # to what is kept
        self.untold: WentBackError | None = None

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
            everyone = len(problem.ranks) == self.training.tiers.world.size
            back = WentBackError([] if everyone else problem.ranks, self.training.state.step)
            self.untold = back  # where somebody is gone before all are back, those who go on tell it
            self._go_back()
            raise back from problem
        if self.repairs:
            self._keep()
        return digest

    def _odd_ranks(self, digest):
        """Return the ranks whose digest is not that of more than half, and the first whose it is.

        Without such a majority: all ranks, and None. Where all are equal: none, and 0. Collective.
        """
        world = self.training.tiers.world
        return _odd([each.tobytes() for each in all_gather(world, np.frombuffer(digest, np.uint8))])

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
        self.kept = Kept(step, arrays, _digests(arrays))

    def kept_before(self, step: int) -> dict[str, np.ndarray] | None:
        """Return what is kept of `step`, where the training has made more since; else None."""
        if self.kept is None or not self.kept.step == step < self.training.state.step:
            return None
        return self.kept.arrays

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
        self.kept = Kept(step, arrays, _digests(arrays))


def who_differs(
    world: Any, step: int, arrays: Mapping[str, np.ndarray] | None, kept: Kept | None
) -> tuple[WentBackError, int] | None:
    """Return who has other bits than most before they go on after `step` with other ranks, and the step
    that all have kept; None where nobody has. Collective.

    arrays, kept: of this rank; None on one that is new, which has yet to be given its own. ReplicaError
    on every rank where they cannot go back.
    """
    told = gather_json(world, arrays and _digests(arrays)[0].hex())
    there = [rank for rank, each in enumerate(told) if each is not None]
    odd, usual = _odd([told[rank] for rank in there])
    if not odd:
        return None
    whole = kept is not None and _digests(kept.arrays) == kept.digests
    told = gather_json(world, [kept.step, kept.digests[0].hex()] if kept is not None and whole else None)
    wrong, first = [there[number] for number in odd], told[there[0]]
    if first is None or any(told[rank] != first for rank in there):
        error = ReplicaError(
            f"step {step}: as other ranks went or came, parameters on {ranks_in_words(wrong)} differed "
            "from those of the others, and there is nothing that all have kept to go back to; check "
            "these machines' memory, and resume from the last checkpoint"
        )
        error.everywhere, error.ranks = True, wrong
        raise error
    return WentBackError([] if usual is None else wrong, step), first[0]


def _odd(digests):
    """Return the numbers of digests that are not that of more than half, and of the first that is.

    Without such a majority: all of them, and None. Where all are equal: none, and 0.
    """
    usual, count = Counter(digests).most_common(1)[0]
    if 2 * count <= len(digests):
        return [*range(len(digests))], None
    return [rank for rank, each in enumerate(digests) if each != usual], digests.index(usual)


def _is_alike(name):
    """Whether an array of a rank's training is the same on all ranks."""
    return name == "parameters" or name.startswith("optimiser/")


def _digests(arrays):
    """Return the SHA-256 of what is the same on all ranks, and of what is a rank's own."""
    sums = hashlib.sha256(), hashlib.sha256()
    for name in sorted(arrays):
        sums[not _is_alike(name)].update(np.ascontiguousarray(arrays[name]))
    return [each.digest() for each in sums]
