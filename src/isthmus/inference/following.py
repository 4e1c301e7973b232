"""A split that follows the link: which layers run at the edge while its rate changes."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from isthmus.inference.forward import Run
from isthmus.planning.splits import ChainSplits

AWAITED_SECONDS = 1e-4
"""A cloud rank that takes a batch so long after its last answer has waited for the link, not the link
for it."""


class Following:
    """Which of all splits is soonest on average over what the link has carried lately.

    halves: what edge and cloud compute, by the number of the split. seconds_per_byte, latency_seconds:
    of the link as the cluster file has it, which counts as long as nothing lately is known: so what the
    edge has kept because of a stall is sent again. recent_seconds: what is "lately".
    """

    def __init__(
        self,
        splits: ChainSplits,
        halves: Sequence[tuple[Run, Run]],
        seconds_per_byte: float,
        latency_seconds: float,
        recent_seconds: float,
        clock: Callable[[], float],
    ):
        self.splits, self.halves, self.clock = splits, halves, clock
        self.usual, self.latency, self.recent = seconds_per_byte, latency_seconds, recent_seconds
        self.carried: deque[tuple[float, float, float]] = deque()  # (when, seconds on the link, bytes)
        self.came, self.done = 0.0, {}  # of the last batch at all, and of each cloud rank's

    @property
    def seconds_per_byte(self) -> float:
        """Of the link, on average over the bytes that it has carried lately."""
        while self.carried and self.carried[0][0] < self.clock() - self.recent:
            self.carried.popleft()
        if not self.carried:
            return self.usual
        _, seconds, nbytes = zip(*self.carried)
        return sum(seconds) / sum(nbytes)

    def choose(self) -> int:
        """Return the number of the split for the next requests."""
        return self.splits.best(self.seconds_per_byte)

    def sends(self, split: int) -> bool:
        """Whether anything crosses the link with that split."""
        return bool(self.splits.splits[split].target_layers)

    def rest(self, split: int, made: npt.NDArray) -> npt.NDArray[np.float32]:
        """Return the scores of what the edge has made of requests, all computed here."""
        return self.halves[split][1](made)

    def note(self, peer: int, sent: float, came: float, done: float, nbytes: int) -> None:
        """Note a batch that was sent to `peer`, came there and was done, in seconds of this clock.

        The link has carried it since it could first arrive, or since the batch before it had come. What
        came while the cloud rank was at work tells nothing of the link, and is left out.
        """
        waited = came > self.done.get(peer, 0.0) + AWAITED_SECONDS
        begin = max(sent + self.latency, self.came)
        if waited:
            self.carried.append((self.clock(), max(0.0, came - begin), nbytes))
        self.came, self.done[peer] = max(self.came, came), done
