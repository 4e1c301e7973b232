"""What an allreduce spends its seconds on, by stage."""

import time
from contextlib import contextmanager

from isthmus.registry import ALLREDUCE_STAGES


class StageClock:
    """Seconds by stage: `lap` gives the time since the last lap to one of them.

    recorder: notes each lap, where a run is traced.
    """

    def __init__(self, recorder=None):
        self.recorder, self.untold = recorder, _nothing
        self._seconds = dict.fromkeys(ALLREDUCE_STAGES, 0.0)
        self._total = dict.fromkeys(ALLREDUCE_STAGES, 0.0)
        self.last = 0.0

    @property
    def seconds(self):
        """Seconds of the last call, by stage."""
        self._hear()
        return self._seconds

    @property
    def total(self):
        """Seconds of all calls so far, by stage."""
        self._hear()
        return self._total

    def ask(self, untold):
        """Ask `untold` for what it has counted by itself, when somebody wants to know.

        untold(): stage -> seconds of the last call, and of all since it was last asked; None is nothing.
        """
        self._hear()
        self.untold = untold

    def start(self):
        self._hear()
        self._seconds = dict.fromkeys(ALLREDUCE_STAGES, 0.0)
        self.resume()

    def resume(self):
        """Leave out the time since the last lap."""
        self.last = time.perf_counter()

    def lap(self, stage):
        now = time.perf_counter()
        self._give(stage, now - self.last)
        if self.recorder is not None:
            self.recorder.span(stage, self.last, now)
        self.last = now

    def take(self, stages, nanoseconds, last):
        """Add laps that compiled code has taken, of which the last ended at `last`, in nanoseconds."""
        for stage, each in zip(stages, nanoseconds):
            if each:
                self._give(stage, 1e-9 * each)
        self.last = 1e-9 * last

    @contextmanager
    def inside(self, stage):
        """Give the time of a `with` block to `stage`, not to the lap that it is in."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._give(stage, seconds)
        if self.recorder is not None:
            self.recorder.span(stage, start, start + seconds)
        self.last += seconds

    def _hear(self):
        if (told := self.untold()) is not None:
            last, since = told
            self._seconds = dict.fromkeys(ALLREDUCE_STAGES, 0.0) | last
            for stage, each in since.items():
                self._total[stage] += each

    def _give(self, stage, seconds):
        self._seconds[stage] += seconds
        self._total[stage] += seconds


def _nothing():
    """Nobody else counts."""
