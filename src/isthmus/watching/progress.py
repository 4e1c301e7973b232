"""Where each rank of a run is: its step and phase, in memory that the ranks of a host share."""

import os
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np

from isthmus.links.agreement import from_root, gather_json, ranks_on_host
from isthmus.links.comm import innermost
from isthmus.links.world import barrier

BEFORE_STEPS = ("preparation", "placing data", "beginning")
PHASES = (
    *BEFORE_STEPS,
    "compute",
    "allreduce",
    "update",
    "replicas",
    "report",
    "evaluation",
    "rebalancing",
    "buddies",
    "signals",
    "checkpoint",
    "end",
)
"""What a rank does, in the order of a step and of what may follow it."""
NUMBERS = {phase: number for number, phase in enumerate(PHASES)}
OF_STEP = ("compute", "allreduce", "update")
STEP, PHASE, SINCE, ALIVE, PROCESS, ENDING = range(6)
"""Columns of a row: the step, the phase by number, and two moments of CLOCK_MONOTONIC: when the step
(or the phase, outside a step) began, and the last sign of life; the process's number; how it ends."""
GOES_ON, SIGNALLED, FAILS = range(3)
"""How a rank ends: not yet, because a signal told it to, or by an error that it tells."""
COLUMNS = 6
KEPT = 200


class Progress:
    """One rank's row among those of its host; `ranks` names the cluster rank of each row.

    A row is written by its own rank and read by the others without asking: nothing is sent, and a
    rank that is stopped is still seen where it was. Ranks on other hosts are not seen. Collective.
    """

    def __init__(self, world):
        host = innermost(world).Split(ranks_on_host(world)[0])
        self.rows = shared_rows(host)
        self.ranks = gather_json(host, world.rank) if len(self.rows) == host.size else [world.rank]
        self.rank = world.rank
        self.sees_processes = True
        self.mine = memoryview(self.rows[self.ranks.index(world.rank)])
        self.mine[PROCESS] = os.getpid()
        self.seconds = {}  # by "step", and by phase outside a step: how long the last ones took
        self.kind = None
        self.enter(PHASES[0], 0)
        barrier(host)
        self.sees_processes = not self.ranks_gone()  # not in containers with numbers of their own
        barrier(host)
        host.Free()

    @property
    def step(self):
        return int(self.mine[STEP])

    @property
    def phase(self):
        return PHASES[int(self.mine[PHASE])]

    def enter(self, phase, step):
        """Note that this rank begins `phase` of `step`."""
        now = time.monotonic()
        kind = "step" if phase in OF_STEP else phase
        if kind != self.kind or step != self.mine[STEP]:
            self.seconds.setdefault(self.kind, deque(maxlen=KEPT)).append(now - self.mine[SINCE])
            self.kind, self.mine[SINCE] = kind, now
        self.mine[STEP], self.mine[PHASE], self.mine[ALIVE] = step, NUMBERS[phase], now

    def note_ending(self, signalled):
        """Note that this rank ends: by a signal, or by an error that it tells."""
        self.mine[ENDING] = SIGNALLED if signalled else FAILS

    def ranks_ending(self, how):
        """Return the ranks of this host that end so: SIGNALLED or FAILS."""
        return [rank for rank, row in zip(self.ranks, self.rows) if row[ENDING] == how]

    def ranks_gone(self):
        """Return the ranks of this host whose process is no more, and that did not say that they end."""
        if not self.sees_processes:
            return []
        return [
            rank
            for rank, row in zip(self.ranks, self.rows)
            if row[ENDING] == GOES_ON and not _lives(int(row[PROCESS]))
        ]

    def next_is_gone(self):
        """Whether the process of the next rank on this host is no more, though it did not say so."""
        row = self.rows[(self.ranks.index(self.rank) + 1) % len(self.ranks)]
        return self.sees_processes and row[ENDING] == GOES_ON and not _lives(int(row[PROCESS]))

    def point_of(self, rank):
        """Return the step and the phase of a rank of this host."""
        row = self.rows[self.ranks.index(rank)]
        return int(row[STEP]), PHASES[int(row[PHASE])]


def _lives(process):
    """Whether a process is there and no zombie; its parent may not have asked for its end yet."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def shared_rows(host):
    """Return float64[host.size, 6] of zeros that all ranks of `host` share. Collective.

    Where they do not all see one folder for it (in containers), each rank has one row of its own.
    """
    path = from_root(host, lambda: _make_file(8 * COLUMNS * host.size))
    try:
        rows = np.memmap(path, np.float64, "r+", shape=(host.size, COLUMNS))
    except (OSError, TypeError):
        rows = None
    seen = gather_json(host, rows is not None)
    if path and host.rank == 0:
        os.unlink(path)  # the memory lives as long as a rank has it
    return np.asarray(rows) if all(seen) else np.zeros((1, COLUMNS))


def _make_file(nbytes):
    """Return the path of a new file of zeros, in memory where there is a folder for that."""
    for folder in ("/dev/shm", tempfile.gettempdir()):
        try:
            number, path = tempfile.mkstemp(prefix="isthmus-", dir=folder)
        except OSError:
            continue
        with os.fdopen(number, "wb") as file:
            file.write(bytes(nbytes))
        return path
    return None


def late_rows(rows, now, patience):
    """Return the indices of the rows that the others wait for; none where all are at the same point.

    Ranks without a sign of life for `patience` seconds are late, whatever the others do; else those
    that are behind in step and phase.
    """
    lifeless = rows[:, ALIVE] < now - patience
    if lifeless.any():
        return np.flatnonzero(lifeless)
    point = rows[:, STEP] * len(PHASES) + rows[:, PHASE]
    behind = point == point.min()
    return np.flatnonzero([] if behind.all() else behind)
