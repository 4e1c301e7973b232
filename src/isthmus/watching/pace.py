"""How fast steps go, for people who watch a run."""

import time
from collections import deque
from itertools import pairwise
from statistics import median
from typing import NamedTuple

SHOWN_EVERY_SECONDS = 0.1
LAST_STEPS = 25


class Pace(NamedTuple):
    """How far a run is: steps, seconds of a step, the last ones' median, and seconds until the end.

    Both are None before two steps have been made. loss: the last that is known, or None.
    """

    step: int
    steps: int
    step_seconds: float | None
    seconds_left: float | None
    loss: float | None


class Pacer:
    """Shows the Pace of a run, ten times a second at most, and after its last step.

    show: called with a Pace. steps: of the whole run. clock: gives seconds.
    """

    def __init__(self, show, steps, clock=time.monotonic):
        self.show, self.steps, self.clock = show, steps, clock
        self.first, self.shown = None, -float("inf")
        self.moments = deque(maxlen=LAST_STEPS + 1)

    def after(self, step, loss):
        """Note that `step` has been made, with all that is done after it."""
        now = self.clock()
        self.first = self.first or (step, now)
        self.moments.append(now)
        if now - self.shown < SHOWN_EVERY_SECONDS and step < self.steps:
            return
        self.shown = now
        usual, left = None, None
        if len(self.moments) > 1:
            usual = median(later - earlier for earlier, later in pairwise(self.moments))
            begun, moment = self.first  # after the first step, which compiles
            left = (self.steps - step) * (now - moment) / (step - begun)
        self.show(Pace(step, self.steps, usual, left, loss))
