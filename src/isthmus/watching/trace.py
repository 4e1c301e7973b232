"""The trace of a run: recorders on all ranks, one clock, and `trace.json` in the run's folder."""

import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from isthmus.errors import IsthmusError
from isthmus.links.agreement import from_root
from isthmus.links.clocks import clock_offsets, ranks_elsewhere
from isthmus.links.traced import Recorder
from isthmus.links.world import gather_rows, maximum
from isthmus.spare import if_possible
from isthmus.watching.trace_events import AT, END, ROW, START, write_trace

ROWS = 100_000
"""Spans and messages of all ranks in a trace: the last steps for which that is enough, or the last one.
Some 12 MB of trace.json, and 1,400 steps of four ranks that send two chunks."""


class Trace:
    """What all ranks note, and how far their clocks are apart. Collective, made and written.

    tiers: those to compute with: their messages are noted, and they say who notes the rest.
    """

    def __init__(self, tiers):
        self._world, self._home, self._cluster = tiers.world, tiers.home, tiers.cluster
        self.recorder = Recorder(ROWS // tiers.world.size)
        self.tiers = tiers.traced(self.recorder)
        self.comparisons = []  # (this rank's clock then, float64[ranks, 2]: each clock and its error)
        self._compare_clocks()

    @contextmanager
    def written_to(self, folder):
        """Write `trace.json` into `folder` when the block ends, also by an error of all ranks."""
        try:
            yield
        except IsthmusError as problem:
            if problem.everywhere:
                self.write(folder)
            raise
        self.write(folder)

    def write(self, folder):
        """Gather what all ranks noted, and write it where the run's results are written."""
        self._compare_clocks()
        offsets = np.stack([offsets for _, offsets in self.comparisons])
        rows_of_rank = self._gather()
        path = Path(folder, "trace.json")
        from_root(
            self._world,
            lambda: if_possible(
                lambda: write_trace(path, self._cluster, rows_of_rank, offsets),
                path,
                "the run is whole without it",
            ),
            self._home,
        )

    def _compare_clocks(self):
        offsets = clock_offsets(self._world, time.perf_counter, ranks_elsewhere(self._world))
        self.comparisons.append((time.perf_counter(), offsets))

    def _gather(self):
        """Return float64[:, ROW] of each rank at home: the steps that all ranks kept, on one clock."""
        world, steps = self._world, self.recorder.steps
        first = maximum(world, [steps[0][0] if steps else np.inf])[0]
        own = np.concatenate(
            [
                np.empty((0, len(ROW))),
                *(
                    np.column_stack([np.full(len(rows), number), rows])
                    for number, rows in steps
                    if number >= first
                ),
            ]
        )
        moments, ahead = zip(*((moment, offsets[world.rank, 0]) for moment, offsets in self.comparisons))
        for column in (AT, START, END):
            own[:, column] -= np.interp(own[:, column], moments, ahead)
        return gather_rows(world, own, self._home)
