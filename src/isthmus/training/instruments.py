"""What a step spends its time on, measured around it: each moment belongs to one phase."""

import time
from collections import defaultdict
from contextlib import contextmanager


class Instruments:
    """The seconds of a step by phase; where a run is traced, what each span was.

    recorder: notes spans, or None. enter(phase, step): called where a phase begins, and where the one
    that it has interrupted goes on. The allreduce notes its spans by stage itself.
    """

    SPANS = ("compute", "update")

    def __init__(self, recorder=None, enter=lambda phase, step: None):
        self.recorder, self.enter = recorder, enter
        self.seconds = defaultdict(float)  # of the step under way
        self._phases = []

    @contextmanager
    def step(self, number):
        """Measure step `number` while the block lasts."""
        self.number = number
        self.seconds.clear()
        if self.recorder:
            self.recorder.begin_step()
        self._began = self._since = time.perf_counter()
        yield self
        self.step_seconds = time.perf_counter() - self._began
        if self.recorder:
            self.recorder.end_step(number)

    @contextmanager
    def phase(self, name):
        """Give the time of the block to `name`; a phase inside another one interrupts it."""
        self._change([*self._phases, name])
        self.enter(name, self.number)
        yield
        outer = self._phases[:-1]
        self._change(outer)
        if outer:
            self.enter(outer[-1], self.number)

    def so_far(self, name):
        """Return the seconds of the phase `name`, the one under way, in this step."""
        return self.seconds[name] + time.perf_counter() - self._since

    def _change(self, phases):
        now = time.perf_counter()
        if self._phases:
            name = self._phases[-1]
            self.seconds[name] += now - self._since
            if self.recorder and name in self.SPANS:
                self.recorder.span(name, self._since, now)
        self._phases, self._since = phases, now
