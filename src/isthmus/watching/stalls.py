"""A step that stalls is told while it does: who is late, and at which phase.

A rank that waits for a message cannot tell anything, so each rank has a thread that looks every
quarter of a second. A step stalls when it has taken longer than

    median + deviations x MAD    of the run's last 200 steps on this rank (MAD: median |x - median|),

and at least `least_seconds`. What is not a step (an evaluation, a checkpoint) is held against earlier
ones of its kind. The first five of a kind, and all that comes before the first step, have a minute. The
run goes on as it would, unless `abort_seconds` are set and over; a stall is told once, and once more
when it is over.

Ranks see those of their own host. A host whose ranks all wait for others says so where the job's
rank 0 is: then the late one is on another host, which tells more, or the network is.

A rank also looks whether the process of the next one on its host is still there. Where one is gone and
nobody ends the job (mpirun does), the job is ended here.
"""

import logging
import statistics
import sys
import threading
import time
import traceback

import numpy as np

from isthmus.watching.progress import ALIVE, BEFORE_STEPS, PHASE, PHASES, SINCE, STEP, late_rows

LOOK_SECONDS = 0.25
FIRST_SECONDS = 60.0
FEW = 5
SECONDS_OF_OTHERS = 2.0  # for mpirun to end a job that has lost a rank, and for the rank that speaks
CURE = "look at these hosts, or allow for more with run.abort_seconds"
log = logging.getLogger("isthmus")


def deadline(seconds, least_seconds, deviations):
    """Return after how many seconds to speak of a stall, when earlier ones took `seconds`."""
    if len(seconds) < FEW:
        return max(FIRST_SECONDS, least_seconds)
    median = statistics.median(seconds)
    spread = statistics.median(abs(each - median) for each in seconds)
    return max(least_seconds, median + deviations * spread)


class Watch(threading.Thread):
    """Looks after one rank's progress until it is closed.

    name_ranks(ranks) gives the words for cluster ranks; home: the cluster rank of the job's rank 0;
    size: ranks of the job. abandon(line, ranks): ends the job because of these ranks; called after
    abort_seconds of a stall (None: never), with ranks () where they are those that are gone.
    """

    def __init__(
        self,
        progress,
        least_seconds,
        deviations,
        name_ranks,
        home,
        size,
        abort_seconds=None,
        abandon=None,
    ):
        super().__init__(name="isthmus-watch", daemon=True)
        self.progress, self.name_ranks, self.home, self.size = progress, name_ranks, home, size
        self.least_seconds, self.deviations = least_seconds, deviations
        self.closed = threading.Event()
        self.abort_seconds, self.abandon = abort_seconds, abandon
        self.gone_since = None
        self.stall = None  # (its beginning, what it is called, who is late in words, whether told)

    def run(self):
        while not self.closed.wait(LOOK_SECONDS):
            self.look(time.monotonic())

    def close(self):
        """Look no more; returns when the thread has ended. A stall that is over is still told."""
        self.closed.set()
        self.join()
        self._tell_what_is_over(time.monotonic())

    def look(self, now):
        """Give a sign of life; tell of a stall that has begun or ended."""
        progress = self.progress
        mine, kind = progress.mine, progress.kind
        mine[ALIVE] = now
        since = mine[SINCE]
        self._tell_what_is_over(now)
        self._look_at_the_next(now)
        if kind == PHASES[-1]:
            return
        if self.stall is None:
            usual = list(progress.seconds.get(kind, ()))
            patience = deadline(usual, self.least_seconds, self.deviations)
            if now - since > patience:
                self._tell(now, since, kind, usual, patience)
        if self.abort_seconds is not None:
            self._end_after(now - since, now)

    def _look_at_the_next(self, now):
        """End the job where a rank is gone and nobody else has ended it."""
        if not self.progress.next_is_gone():
            self.gone_since = None
        elif self.gone_since is None:
            self.gone_since = now
        elif now - self.gone_since > SECONDS_OF_OTHERS:
            self.abandon(None, ())

    def _end_after(self, waited, now):
        """End the job after a stall of `abort_seconds`: by the rank that tells it, else by any."""
        rows = self.progress.rows.copy()
        late = late_rows(rows, now, self.abort_seconds / 2)
        over = waited - self.abort_seconds
        if over > (0.0 if self._tells(late) else SECONDS_OF_OTHERS):
            self.abandon(
                f"{self._what()} stalls: {waited:.1f} s, run.abort_seconds are over; "
                f"{self._account(rows, late, now, self.abort_seconds / 2)}; {CURE}",
                [self.progress.ranks[row] for row in late] or self.progress.ranks,
            )

    def _what(self):
        step, kind = self.progress.step, self.progress.kind
        if kind == "step":
            return f"step {step}"
        return f"{kind} before the first step" if kind in BEFORE_STEPS else f"{kind} after step {step}"

    def _tells(self, late):
        """Whether this rank is the one that speaks: the first of its host that is not late."""
        progress = self.progress
        teller = min((rank for row, rank in enumerate(progress.ranks) if row not in late), default=None)
        return progress.rank == teller and (
            len(late) > 0 or len(progress.rows) == self.size or self.home in progress.ranks
        )

    def _tell_what_is_over(self, now):
        if self.stall is not None and self.stall[0] != self.progress.mine[SINCE]:
            began, what, late, told = self.stall
            self.stall = None
            log.log(
                logging.WARNING if told else logging.INFO,
                f"{what} went on after {now - began:.1f} s{late}",
            )

    def _tell(self, now, since, kind, usual, patience):
        rows = self.progress.rows.copy()
        late = late_rows(rows, now, patience / 2)
        tells, what = self._tells(late), self._what()
        late_words = f"; {self._named(late)} late" if len(late) else ""
        self.stall = since, what, late_words, tells
        median = f", {statistics.median(usual):.3g} s is usual" if usual else ""
        log.log(
            logging.WARNING if tells else logging.INFO,
            f"{what} stalls: {now - since:.1f} s so far{median}; "
            f"{self._account(rows, late, now, patience / 2)}",
        )
        log.info(
            "this rank is at\n"
            + "".join(
                traceback.format_stack(sys._current_frames()[threading.main_thread().ident])
            ).rstrip()
        )

    def _account(self, rows, late, now, patience):
        """Say who is late and at which phase, and what the other ranks do."""
        parts = []
        for row in late:
            silent = now - rows[row, ALIVE]
            life = f", no sign of life for {silent:.1f} s" if silent > patience else ""
            parts.append(
                f"late: {self._named([row])} in {PHASES[int(rows[row, PHASE])]} of step "
                f"{int(rows[row, STEP])}{life}"
            )
        others = np.setdiff1d(np.arange(len(rows)), late)
        for phase in np.unique(rows[others, PHASE]):
            there = others[rows[others, PHASE] == phase]
            parts.append(f"{self._named(there)} in {PHASES[int(phase)]}")
        if not len(late) and len(rows) < self.size:
            elsewhere = sorted(set(range(self.size)) - set(self.progress.ranks))
            parts.append(
                f"none of these is behind: look at {self.name_ranks(elsewhere)}, or at the "
                "network between"
            )
        return "; ".join(parts)

    def _named(self, rows):
        return self.name_ranks([self.progress.ranks[row] for row in rows])
