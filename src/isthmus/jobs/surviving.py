"""A job that goes on without ranks that die: the step is done again by those who are left, or the round.

What all ranks have alike changes only after all have agreed that they have the sum of a step's
gradients, or what a round exchanges; between sites that are jobs of their own it is gone back to where
not all have made a step, or a round. Within a round nobody is asked.
The ranks that are left make everything else anew: communicators, the tree of sites, who looks after
whom, the plan for what is left of the epoch. They keep their own samples and what they had before the
step; shards of the dead are read by whoever is given them. A site that comes back is one more change of
this kind.
"""

import signal
import threading
import time
from contextlib import nullcontext, suppress

import numpy as np
from mpi4py import MPI
from threadpoolctl import threadpool_limits

from isthmus.cluster.cluster import Cluster
from isthmus.errors import MachineError, SiteError, StoppedError, ranks_in_words
from isthmus.folders.lock import FolderLock
from isthmus.jobs.past import Past
from isthmus.jobs.preparation import checked
from isthmus.jobs.stopping import stopping_on
from isthmus.jobs.succeeding import next_job
from isthmus.links.agreement import from_root, gather_json, require
from isthmus.links.circle import COME_BACK
from isthmus.links.sealed import ranks_without_key
from isthmus.links.sites import tiers_of_circle
from isthmus.links.socket_comm import LostSitesError
from isthmus.links.switch import PATIENCE_SECONDS
from isthmus.links.tiers import tiers_in_order
from isthmus.links.world import all_gather, barrier
from isthmus.mpirun import Loss, tolerates_faults
from isthmus.recovery.faults import Faults
from isthmus.recovery.membership import AnotherFailsError, Membership
from isthmus.recovery.site_membership import SiteMembership
from isthmus.watching.journal import Journal
from isthmus.watching.progress import BEFORE_STEPS
from isthmus.watching.stalls import FEW, FIRST_SECONDS, deadline

LEAST_SECONDS = 2.0
"""Without a sign of life, before a site is gone; signs come twice a second."""
LOOK_SECONDS = 1.0
HOW = "mpirun --with-ft ulfm -n RANKS isthmus train RUN.toml"


class Survival:
    """Runs a Job, and another one of those who are left, or have come, wherever ranks go or come.

    All ranks have one. comm: MPI's, of this job's ranks. kind: what makes a Job. stop: the StopRequest.
    lock: of the run's folder, where this rank has it. faults: those that are planned for this rank.
    """

    def __init__(self, comm, kind, stop, lock, show, faults, circle=None):

        def step():
            return self.job.training.state.step

        self.membership = Membership(comm, step) if circle is None else SiteMembership(circle, step)
        self.kind, self.circle, self.stop, self.lock = kind, circle, stop, lock
        self.show, self.faults, self.lost = show, faults, 0
        self.looked_at, self.words, self.succeeds, self.journal = 0.0, [], False, None

    def begin(self, job, placed):
        """Take up a job that all ranks begin, or those of sites that are not late. Collective.

        placed: the shards of each rank of the whole cluster, as planned.
        """
        require(
            job.tiers.world,
            tolerates_faults() or (self.circle is not None and job.tiers.site.size == 1),
            MachineError,
            f"recovery.survive needs MPI's fault tolerance: start with `{HOW}`",
        )
        if self.circle is not None:
            self.circle.cluster = job.tiers.whole
        Loss.leaves_at_once = True
        self._tell_of_buddies(job)
        self._tell_of_keys(job)
        self.journal = job.journal
        self.job, job.done_step = job, job.training.state.step
        self.ranks = [*job.tiers.numbers]  # of the job, by their numbers in the whole cluster
        self.placed = placed
        if self.circle is not None and self.circle.absent:
            job.members.note_late(self.circle.absent, job.settings.recovery.wait_seconds)
        took = job.journal.progress.seconds
        self._expect(job, sum(sum(took.get(phase, ())) for phase in BEFORE_STEPS))
        return self

    def _tell_of_buddies(self, job):
        every = job.settings.recovery.buddies_every
        if every is not None:
            each = [nbytes for nbytes in gather_json(job.tiers.world, job.buddies.nbytes) if nbytes]
            where = f"from {len(each)} sites to another one"
            if self.circle is None:
                where = f"to a second rank inside {len(each)} sites"
            job.tell(f"buddies: {sum(each):,} bytes of residuals {where}, every {every} steps")

    def _tell_of_keys(self, job):
        keys, tiers = job.settings.security.keys_of_links, job.tiers
        if keys is None or self.circle is not None:  # there a site is gone with its first rank
            return
        if without := ranks_without_key(tiers.world, tiers.site_name, keys):
            job.tell(
                f"keys: {ranks_in_words(without)} cannot read the key of their site in {keys}; where "
                "one of them is to lead it, the run ends"
            )

    def come(self, tiers, settings, tell):
        """Take part in a run that is under way, as the others tell; keep `journal` then. Collective."""
        began, change = time.perf_counter(), self.circle.entered
        Loss.leaves_at_once = True
        self.job, self.ranks = None, []
        self.job = self._build_on(tiers, change.ranks, settings=settings, tell=tell)
        self.ranks = change.ranks
        self._expect(self.job, time.perf_counter() - began)
        self._begin_again(began, time.time())

    def run(self):
        """Make all steps, and return the summary on every rank that is left."""
        while True:
            job = self.job
            job.journal.survives = True
            job.agree = job.training.agree = self._agree
            job.training.undoing.whole_steps = self.circle is not None
            job.training.undoing.rounds = job.settings.make_strategy().redone == "round"
            self.faults.of(job.training)
            job.journal.meet = self._meet
            try:
                self._keep_within_limits(job)
                if self.succeeds and not job.within_duties:
                    job.write_checkpoint()  # the one before may be where nobody sees it
                job.run(self.stop, self.show)
                job.within_duties = False
                summary = job.finish()
                self.membership.agree()
            except StoppedError:
                if self.circle is not None:  # the first to end is not one more that is gone
                    with suppress(LostSitesError, MPI.Exception):
                        barrier(job.tiers.world)
                raise
            except Exception as problem:
                self._go_on(problem)
                continue
            return summary | {"lost_ranks": self.lost}

    def _meet(self, moment, step):
        self.faults.meet(moment, step)
        training = self.job.training
        if moment == "compute" and training.undoing.rounds:  # else all wait for each other in each step
            self.membership.look(self.job.tiers.world)
        if moment == "compute" and self.circle is not None:
            if training.member.agreed:
                self.circle.look()
            switch, looked = self.circle.switch, self.looked_at
            if switch is not None and not switch.given and time.monotonic() > looked + LOOK_SECONDS:
                self.looked_at = time.monotonic()
                switch.deadline_seconds = self._patience(switch.deadline_seconds)

    def _patience(self, usual):
        """Return for how long a site may give no sign of life; usual: so far, until steps are known."""
        seconds = [*self.job.journal.progress.seconds.get("step", ())]
        if len(seconds) < FEW:
            return usual
        usual = deadline(seconds, LEAST_SECONDS, self.job.settings.run.stall_deviations)
        return min(PATIENCE_SECONDS, usual)

    def _agree(self):
        self.faults.meet("agree", self.job.training.state.step + 1)
        self.membership.agree()

    def _keep_within_limits(self, job):
        """Write a checkpoint and stop, where too few are left."""
        limits, cluster = job.settings.recovery, job.tiers.cluster
        fewer = cluster.size < limits.least_ranks or len(cluster.sites) < limits.least_sites
        minority = self.circle is not None and self.circle.stops
        if not minority and not (self.lost and fewer):
            return
        job.write_checkpoint()
        self.membership.agree()
        left = f"{cluster.size} ranks at {len(cluster.sites)} sites are left"
        resume = f"`isthmus train RUN.toml --resume {job.path}`"
        error = StoppedError(
            f"{left}, which is no majority of the {self.circle.cluster.size} of the cluster file; where "
            "the others go on, start again with the same command; if they do not, all go on with "
            f"{resume}"
            if minority
            else f"{left}, and [recovery] asks for {limits.least_ranks} at {limits.least_sites}; go on "
            f"with {resume}"
        )
        error.everywhere = True
        raise error

    def _go_on(self, problem):
        """Make another job of the ranks that are left, all of them where a message was changed.

        problem: what this rank has raised; what is no loss is raised again.
        """
        began, clock, before, old = time.perf_counter(), time.time(), self.job, self.ranks
        tiers, journal, made = before.tiers, before.journal, before.training.state.step
        waiting = [tiers.leaders, tiers.site, tiers.world, tiers.cloud, tiers.edge]
        timer = threading.Timer(self.patience_seconds, journal.give_up, [self._not_in_time()])
        timer.daemon = True
        timer.start()
        try:
            self.membership.leave_out_the_gone(problem, waiting)
            journal.watch.close()
            if before.account.folder is not None:
                before.account.folder.close()
            if self.circle is None:
                self.job, self.ranks = self.membership.rebuild(self._build)
            else:
                self.job, self.ranks = self.membership.rebuild(self._point, self._build_of_sites)
        except AnotherFailsError:
            journal.leave_to_another()
        finally:
            timer.cancel()
        gone = sorted({*old} - {*self.ranks})
        self.lost += len(gone)
        if self.circle is None:
            Loss.ranks, Loss.speaks = self.lost, self.job.leads
        self.journal.hand_over(self.job.journal)
        sites = [name for name in tiers.cluster.names if name not in self.job.tiers.cluster.names]
        self._begin_again(
            began,
            clock,
            gone,
            sorted({*self.ranks} - {*old}),
            undone=made - self.job.training.state.step,
            sites=sites if before.training.undoing.rounds else (),
        )

    def _not_in_time(self):
        return (
            f"those who are left have not made another job within {self.patience_seconds:.0f} s of a "
            "loss: one of them stalls, or MPI itself fails; look at their hosts"
        )

    def _expect(self, job, seconds):
        """Note how long it may take to make another job, where a beginning has taken `seconds`."""
        usual = max(FIRST_SECONDS, 2 * seconds)
        if self.circle is not None:  # another hub may have to be found first
            usual += 2 * (job.settings.recovery.deadline_seconds or PATIENCE_SECONDS)
        self.patience_seconds = job.settings.run.abort_seconds or usual

    def _begin_again(self, began, clock, gone=(), came=(), undone=0, sites=()):
        """Say what was wrong and who has come.

        undone: steps that were made and are made again. sites: that are gone, and had an optimizer each.
        """
        job = self.job
        self.membership.borne.told()
        seconds, now = time.perf_counter() - began, job.tiers.cluster.size
        at = f"step {job.training.state.step}"
        if job.replicas.untold is not None:
            job.tell_of_return(job.replicas.untold)
        if wrong := [*self.words, *([f"{ranks_in_words(gone)} gone"] if gone else [])]:
            values = {"ranks": [*gone], "never": job.members.ledger.never, "undone": undone}
            job.account.note("lost", **values, seconds=seconds, clock=clock)
            told = [f"{now} go on after {seconds:.2f} s"]
            if undone:
                told.append(f"{undone} step{'s are' if undone > 1 else ' is'} made again")
            if sites:
                told.append(f"what the optimizer of {', '.join(sites)} remembered is lost")
            told += job.members.unread()
            job.tell(f"{at}: {'; '.join(wrong)}, {'; '.join(told)}")
        if came:
            job.account.note("joined", ranks=came, seconds=seconds)
            job.tell(f"{at}: {self._how_they_came(came)}, {now} go on after {seconds:.2f} s")
        job.account.flush()

    def _how_they_came(self, ranks):
        """Return which of these ranks came back, and which are there for the first time, in words."""
        cluster, parts = self.circle.cluster, self.job.members.ledger.parts[:-1]
        known = {site["name"] for part in parts for site in part.cluster["site"]}
        back = [rank for rank in ranks if cluster.names[cluster.site_of_rank[rank]] in known]
        hows = {"back": back, "late": [rank for rank in ranks if rank not in back]}
        return " and ".join(
            f"{ranks_in_words(those)} came {how}" for how, those in hows.items() if those
        )

    def _build(self, comm, made):
        """Return the job of those who are in `comm`, and who they are. Collective."""
        old = self.job
        self.faults.meet("rebuild", old.training.state.step + 1)
        ranks = np.concatenate(all_gather(comm, np.array([old.tiers.world.rank]))).tolist()
        here = sorted(ranks)
        cluster = old.tiers.cluster.without({*range(old.tiers.cluster.size)} - {*here})
        tiers = tiers_in_order(comm, cluster, [here.index(rank) for rank in ranks], made)
        now = [self.ranks[rank] for rank in here]
        return self._build_on(as_before(tiers, old.settings), now), now

    def _point(self):
        """Return after which step this rank can go on, and whether what is due after it is done."""
        self.faults.meet("settle", self.job.training.state.step)
        step = self.job.training.undoing.step
        return step, self.job.done_step >= step

    def _build_of_sites(self, change, made):
        """Return the job of those of a `Decision`, after its step, and who they are. Collective."""
        old = self.job
        self.faults.meet("rebuild", old.training.state.step + 1)
        kept = old.replicas.kept_before(change.step)
        old.training.undoing.go_back(change.step, change.redo, kept)
        old.within_duties, old.done_step = change.redo, change.step - change.redo
        cluster = Cluster(change.cluster, old.tiers.cluster.source)
        tiers = as_before(tiers_of_circle(self.circle, cluster, made), old.settings)
        return self._build_on(tiers, change.ranks), change.ranks

    def _build_on(self, tiers, ranks, settings=None, tell=None):
        """Return the job of `ranks`, by their numbers at the start. Collective.

        settings, tell: of a rank that is new, which has no job yet.
        """
        number_of = {rank: number for number, rank in enumerate(self.ranks)}
        here = [number_of.get(rank) for rank in ranks]
        past = Past.of(self.job, self.placed) if self.job else None
        tiers = self.faults.watching(tiers)
        with self.faults.joining() if None in here else nullcontext():
            if None in here or past is None:
                past, here = self._met(tiers, past, here, settings, tell)
            changed = gather_json(tiers.world, self.membership.borne.words)
            self.words = [each for each in changed if each]
            tiers = checked(tiers, past.settings)
            self.stop.ask_among(tiers.world, tiers.home)
            log = self.journal and self.journal.log
            journal = Journal(tiers, past.settings.run, past.speak, log)
            self.journal = self.journal or journal
            job = next_job(self.kind, tiers, past, ranks, here, journal, self.lock)
            self.succeeds = job.path != past.path
        self.placed = past.placed
        return job

    def _met(self, tiers, past, here, settings, tell):
        """Return the past and who was which rank before; those who are new are told both. Collective."""
        world, home = tiers.world, tiers.home
        if past is not None:  # who is new has heard the settings, as everybody does at the start
            from_root(world, lambda: past.settings.to_json(), home)
        told = from_root(world, lambda: past.to_json() | {"here": here}, home)
        return past or Past.told(tiers, told, settings, tell), told["here"]


def come_back(comm, kind, tiers, settings, tell, show):
    """Take part in a run that is under way, and return its summary. Collective."""
    with (
        threadpool_limits(settings.run.threads),
        stopping_on(signal.SIGUSR1, tiers.world, tiers.home) as stop,
        FolderLock() as lock,
    ):
        faults = Faults.of_environment(tiers.circle.endpoint.rank)
        survival = Survival(comm, kind, stop, lock, show, faults, tiers.circle)
        try:
            survival.come(tiers, settings, tell)
        except (LostSitesError, MPI.Exception) as problem:
            why = str(problem).partition(";")[0]
            raise SiteError(f"while this site came back: {why}; {COME_BACK}") from None
        with survival.journal:
            return survival.run()


def as_before(tiers, settings):
    """Return the tiers of those who are left, sealed and paced as the settings have it. Collective."""
    keys = settings.security.keys_of_links
    tiers = tiers if keys is None else tiers.sealed_with(keys)
    return tiers.paced() if settings.cluster.links == "paced" else tiers
