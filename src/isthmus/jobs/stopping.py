"""Stop a run between two steps, the same two on every rank, when a signal asks for it."""

import signal
import time
from contextlib import contextmanager

from isthmus.links.world import maximum

SECONDS_BETWEEN_QUESTIONS = 3.0


class StopRequest:
    """Whether any rank has been told to stop: all of them ask each other every few seconds.

    Asking costs a message each way over the links, so most steps do not ask. The job's rank 0 also tells
    after how many steps to ask again, so that all ranks ask after the same ones.
    """

    def __init__(self, world, home):
        self.signalled = False
        self.ask_among(world, home)

    def ask_among(self, world, home):
        """Ask these ranks from now on, in the job that goes on; who was told to stop still is."""
        self.world, self.home = world, home
        self.next_step = None
        self.start = None

    def told(self, step):
        """Return whether to stop after `step`. Collective over the steps of a run."""
        if self.next_step is None:  # the first step compiles, and is not like the others
            self.start = step, time.monotonic()
            self.next_step = step
        if step < self.next_step:
            return False
        steps = self._steps_to_wait(step) if self.world.rank == self.home else 0
        answer = maximum(self.world, [self.signalled, steps])
        self.next_step = step + int(answer[1])
        return bool(answer[0])

    def _steps_to_wait(self, step):
        """Return the steps of some seconds, but no more than have been timed."""
        first, moment = self.start
        made = step - first
        rate = made / max(time.monotonic() - moment, 1e-3)
        return max(1, min(made, int(rate * SECONDS_BETWEEN_QUESTIONS)))

    def note(self, *_):
        """Take the signal: nothing else may be done while a message is under way."""
        self.signalled = True


@contextmanager
def stopping_on(number, world, home):
    """Give a StopRequest that the signal `number` sets; mpirun passes SIGUSR1 on to every rank.

    Afterwards the signal is ignored: what is left, a report, is not worth stopping, nor repeating.
    """
    request = StopRequest(world, home)
    signal.signal(number, request.note)
    try:
        yield request
    finally:
        signal.signal(number, signal.SIG_IGN)
