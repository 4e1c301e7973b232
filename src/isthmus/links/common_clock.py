"""Calls that all ranks start at one instant.

Ranks leave a barrier up to one link's latency apart, and stay apart: whoever starts early then waits
for the others' latency on top of its own. Over long links that doubles what a benchmark reads.
"""

import os
import time

from isthmus.links.clocks import clock_offsets, ranks_elsewhere
from isthmus.links.world import maximum

SPIN_SECONDS = 0.0005  # at the end of a wait, because sleeping is not as exact


class CommonClock:
    """Instants that all ranks of a communicator agree on. Collective, made and used.

    Ranks on one machine, in whatever namespaces, read one clock. Of any other, rank 0's difference is
    taken in the middle of the quickest of some round trips: what the two ways of a link differ in
    latency, half of it is the error. clock: seconds from any zero, float.
    """

    def __init__(self, comm, clock=time.perf_counter, machine=None):
        self.comm, self.clock = comm, clock
        elsewhere = ranks_elsewhere(comm, machine)
        self.ahead = clock_offsets(comm, clock, elsewhere)[comm.rank, 0]  # seconds, of rank 0's clock
        waits = []
        for _ in range(3):
            before = clock()
            self._latest()
            waits.append(clock() - before)
        self.patience_seconds = 1.5 * self._most(max(waits[1:]))

    def start(self):
        """Return, on this rank's clock, the instant that it is now on all of them."""
        instant = self._latest() + self.patience_seconds
        if (left := instant - self.clock() - SPIN_SECONDS) > 0:
            time.sleep(left)
        while self.clock() < instant:
            os.sched_yield()  # to ranks on the same core, who would start late while this one spins
        return instant

    def _latest(self):
        """Return the latest rank's now, on this rank's clock."""
        return self._most(self.clock() - self.ahead) + self.ahead

    def _most(self, number):
        return float(maximum(self.comm, [number])[0])
