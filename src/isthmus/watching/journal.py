"""One rank's account of a run: where it is, its log, and what is to be told if it fails."""

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from mpi4py import MPI

import isthmus
from isthmus.errors import MachineError, StoppedError
from isthmus.links.agreement import gather_json
from isthmus.testbed.launch import RUN_NOTE
from isthmus.watching import interruption
from isthmus.watching.failures import SECONDS_FOR_THE_FIRST, Place, lost_lines, name_ranks, stalled_lines
from isthmus.watching.interruption import Interrupted
from isthmus.watching.progress import FAILS, SIGNALLED, Progress
from isthmus.watching.rank_log import RankLog
from isthmus.watching.stalls import SECONDS_OF_OTHERS, Watch

log = logging.getLogger("isthmus")


class Journal:
    """Kept by `with` while a run goes on. Collective, but for an exception on the way out.

    settings: `[run]`. tell(line, passing): prints a line of progress; called where the job's rank 0 is.
    hosts: the name of each cluster rank's host. log: this process's RankLog, where there is one; where
    another job goes on in the place of this one, it is that one's, and `now` the journal of it.
    """

    def __init__(self, tiers, settings, tell, log_of_before=None):
        cluster, world = tiers.cluster, tiers.world
        self.log, self.now = log_of_before or RankLog(), self
        self.hosts = gather_json(world, MPI.Get_processor_name())
        sites = [cluster.sites[site] for site in cluster.site_of_rank]
        self._of_rank = (
            tuple(self.hosts),
            tuple(site.name for site in sites),
            tuple(site.tier for site in sites),
        )
        self.rank, self.folder, self.checkpoint = world.rank, None, None
        self._job = cluster.ranks_of_site(tiers.site_name) if tiers.joined else range(cluster.size)
        self.home, self._mode, self.survives = tiers.home, settings.mode, False
        self.speak, self.meet = tell, lambda phase, step: None  # what a fault that is planned may watch
        self._tell = tell if world.rank == tiers.home else None
        self.progress = Progress(world)
        self.watch = Watch(
            self.progress,
            settings.stall_seconds,
            settings.stall_deviations,
            lambda ranks: name_ranks(ranks, *self._of_rank),
            tiers.home,
            world.size,
            settings.abort_seconds,
            self.abandon,
        )
        log.info(
            f"isthmus {isthmus.__version__}: {name_ranks([self.rank], *self._of_rank)}, process "
            f"{os.getpid()}"
        )

    def open(self, folder):
        """Begin the log in the run's folder; note it, where that can be, for what has started it."""
        self.folder = Path(folder)
        if RUN_NOTE in os.environ and self.rank == self.home:
            with suppress(OSError):  # what has started the job may have ended, or be on another machine
                Path(os.environ[RUN_NOTE]).write_text(str(self.folder.absolute()))
        self.log.open(folder, self.rank, self._mode)

    def tell(self, line, passing=False):
        """Log a line of progress, and print it where the job's rank 0 is."""
        log.info(line)
        if self._tell is not None:
            self._tell(line, passing)

    def enter(self, phase, step):
        """Note that this rank begins `phase` of `step` (`isthmus.watching.progress.PHASES`)."""
        self.progress.enter(phase, step)
        self.meet(phase, step)

    def abandon(self, line, ranks):
        """End the job from the thread that watches, because of a stall or of ranks that are gone."""
        if self.survives and line is None:  # the others go on without those that are gone
            return
        place = self.place()
        self._end(lost_lines(place) if line is None else stalled_lines(line, ranks, place))

    def give_up(self, line):
        """End the job of the ranks that are left, from another thread; the first of a host tells why."""
        place = self.place()
        if place.rank == min({*place.seen} - place.gone.keys()):
            self._end(stalled_lines(line, [*place.gone] or [place.rank], place))
        time.sleep(SECONDS_OF_OTHERS)
        self._end([])

    def leave_to_another(self):
        """End this rank because another one fails, once that one has had the time to tell it."""
        time.sleep(SECONDS_FOR_THE_FIRST)
        self._end([])

    def _end(self, lines):
        self.progress.note_ending(signalled=False)
        for each in lines:
            log.warning(each)
        sys.stderr.flush()
        os._exit(MachineError.exit_code)  # the main thread waits inside MPI; mpirun ends the others

    def place(self):
        """Return the `Place` where this rank is now."""
        progress = self.progress
        return Place(
            self.rank,
            progress.step,
            progress.phase,
            *self._of_rank,
            self.folder,
            self.checkpoint,
            self.home if self.home in self._job else self._job[0],
            tuple(progress.ranks),
            {rank: progress.point_of(rank) for rank in progress.ranks_gone()},
            tuple(progress.ranks_ending(SIGNALLED)),
            tuple(progress.ranks_ending(FAILS)),
            tuple(self._job),
        )

    def __enter__(self):
        interruption.keep(self)
        self.watch.start()
        return self

    def hand_over(self, journal):
        """Have the journal of the job that goes on be the one that is kept, and tells the end."""
        self.now = journal
        journal.__enter__()

    def __exit__(self, kind, problem, _):
        self.now._leave(kind, problem)

    def _leave(self, kind, problem):
        if self.watch.ident is not None:
            self.watch.close()
        if problem is None:
            log.info("the run is finished")
        elif isinstance(problem, StoppedError):
            log.info(str(problem))
        elif isinstance(problem, Interrupted):
            log.info(f"step {self.progress.step}, phase {self.progress.phase}: {problem}")
        else:
            self.progress.note_ending(signalled=False)
            log.error(
                f"step {self.progress.step}, phase {self.progress.phase}: {kind.__name__}: {problem}",
                exc_info=problem,
            )
            problem.place = self.place()
        self.log.close()
        if not isinstance(problem, Interrupted):
            interruption.keep(None)
