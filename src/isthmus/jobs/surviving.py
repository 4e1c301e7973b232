"""A job that goes on without ranks that die: the step is done again by those who are left.

What all ranks have alike changes only after all have agreed that they have the sum of a step's
gradients. Where not all do, the ranks that are left make everything else anew: communicators, the tree
of sites, who looks after whom, the plan for what is left of the epoch. They keep their own samples and
what they had before the step; shards of the dead are read by whoever is given them.
"""

import signal
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
from mpi4py import MPI

from isthmus.errors import MachineError, SettingsError, StoppedError, ranks_in_words
from isthmus.jobs.making import make_training
from isthmus.jobs.resuming import Recalled, recall
from isthmus.jobs.stopping import StopRequest
from isthmus.links.agreement import require, together
from isthmus.links.tiers import tiers_in_order
from isthmus.links.world import all_gather
from isthmus.mpirun import Loss, tolerates_faults
from isthmus.recovery.handover import hand_over
from isthmus.recovery.membership import LostRanksError, Membership, revoke
from isthmus.shards.adopting import adopt_shards
from isthmus.watching.journal import Journal

HOW = "mpirun --with-ft ulfm -n RANKS isthmus train RUN.toml"


class Survival:
    """Runs a Job, and another one without the dead wherever ranks die. All ranks have one.

    comm: MPI's, of all ranks. stop: the StopRequest. lock: of the run's folder, where this rank has it.
    faults: those that are planned for this rank.
    """

    def __init__(self, comm, job, stop, lock, show, faults):
        require(
            job.tiers.world,
            tolerates_faults(),
            MachineError,
            f"recovery.survive needs MPI's fault tolerance: start with `{HOW}`",
        )
        require(
            job.tiers.world,
            not job.tiers.joined,
            SettingsError,
            "recovery.survive is for one job of all sites; leave out --site",
        )
        self.membership, self.job, self.stop = Membership(comm), job, stop
        self.lock, self.show, self.lost = lock, show, 0
        Loss.leaves_at_once = True
        self.faults = faults
        self.names = [*range(job.tiers.cluster.size)]  # of the ranks that are left, those at the start

    def run(self):
        """Make all steps, and return the summary on every rank that is left."""
        while True:
            job = self.job
            job.journal.survives = True
            job.agree = job.training.agree = self._agree
            job.journal.meet = self.faults.meet
            try:
                self._keep_within_limits(job)
                job.run(self.stop, self.show)
                job.within_duties = False
                summary = job.finish()
                self.membership.agree()
            except (MPI.Exception, LostRanksError) as problem:
                self._go_on(isinstance(problem, LostRanksError))
                continue
            return summary | {"lost_ranks": self.lost}

    def _agree(self):
        self.faults.meet("agree", self.job.training.state.step + 1)
        self.membership.agree()

    def _keep_within_limits(self, job):
        """Write a checkpoint and stop, where too few are left."""
        limits, cluster = job.settings.recovery, job.tiers.cluster
        if not self.lost or (
            cluster.size >= limits.least_ranks and len(cluster.sites) >= limits.least_sites
        ):
            return
        job.write_checkpoint()
        self.membership.agree()
        error = StoppedError(
            f"{cluster.size} ranks at {len(cluster.sites)} sites are left, and [recovery] asks for "
            f"{limits.least_ranks} at {limits.least_sites}; go on with `isthmus train RUN.toml --resume "
            f"{job.path}`"
        )
        error.everywhere = True
        raise error

    def _go_on(self, agreed):
        """Make another job of the ranks that are left. agreed: whether all know already."""
        began, tiers, before = time.perf_counter(), self.job.tiers, self.job
        revoke([tiers.leaders, tiers.site, tiers.world, tiers.cloud, tiers.edge])
        if not agreed:
            with suppress(LostRanksError):
                self.membership.agree(False)
        before.journal.watch.close()
        before.journal.log.close()
        if before.account.folder is not None:
            before.account.folder.close()
        self.job = self.membership.rebuild(self._build)
        gone = [self.names[rank] for rank in self.gone]
        self.names = [name for name in self.names if name not in gone]
        self.lost += len(gone)
        Loss.ranks, Loss.speaks = self.lost, self.job.leads
        signal.signal(signal.SIGUSR1, self.stop.note)
        self.job.journal.__enter__()
        seconds = time.perf_counter() - began
        self.job.account.note("lost", ranks=gone, seconds=seconds, never=self.never)
        self.job.account.flush()
        never = f"; nobody can read shards {', '.join(map(str, self.never))}" if self.never else ""
        self.job.tell(
            f"step {self.job.training.state.step}: {ranks_in_words(gone)} gone, "
            f"{self.job.tiers.cluster.size} go on after {seconds:.2f} s{never}"
        )

    def _build(self, comm, made):
        """Return the job of those who are in `comm`. Collective."""
        old = self.job
        self.faults.meet("rebuild", old.training.state.step + 1)
        ranks = np.concatenate(all_gather(comm, np.array([old.tiers.world.rank]))).tolist()
        here = sorted(ranks)
        self.gone = sorted({*range(old.tiers.cluster.size)} - {*here})
        cluster = old.tiers.cluster.without(self.gone)
        tiers = tiers_in_order(comm, cluster, [here.index(rank) for rank in ranks], made)
        if old.settings.cluster.links == "paced":
            tiers = tiers.paced()
        stop = StopRequest(tiers.world, tiers.home)
        stop.signalled = self.stop.signalled
        journal = Journal(tiers, old.settings.run, old.journal.speak)
        try:
            job = self._job_of(tiers, here, journal)
        except BaseException:
            journal.log.close()
            raise
        self.stop = stop
        return job

    def _job_of(self, tiers, here, journal):
        """Return the job of ranks that were the ranks `here` of the one before."""
        old, settings, cluster = self.job, self.job.settings, tiers.cluster
        site_of_rank = [cluster.names[site] for site in cluster.site_of_rank]
        found = adopt_shards(
            tiers,
            old.training.local,
            settings.data.train,
            cluster.rates,
            lambda shard, rank: _may_hold(settings.plan, shard, site_of_rank[rank]),
        )
        self.never = found.never
        folders = settings.data.model_dump()
        sets = {
            name: adopt_shards(tiers, local, folders[name], cluster.rates).local
            for name, local in old.sets.items()
        }
        plan = _plan_of(old.plan, cluster, found, old.training.local.manifest)
        training = make_training(
            self.faults.watching(tiers), settings, old.training.model, plan, found.local, journal
        )
        hand_over(old.training, training)
        job = type(old)(tiers, settings, plan, training, sets, journal, old.path)
        job.within_duties = old.within_duties
        if job.leads and not old.leads:
            self.lock.take(old.path)
        journal.open(old.path)
        journal.checkpoint = old.journal.checkpoint
        self._take_up(job, old, found.shards_of_rank, here)
        return job

    def _take_up(self, job, old, shards_of_rank, here):
        """Go on with what the old job has told, but for what is now done again."""
        step, (_, told) = job.training.state.step, job.training.untold
        parts = len(old.members.ledger.parts)

        def keeps(line):
            nonlocal parts
            if line["kind"] == "members":
                parts -= 1
                return parts >= 0
            if line["kind"] == "step":
                return line["step"] <= told
            return line["step"] < step + (not old.within_duties)

        found = together(
            job.tiers.world,
            lambda: recall(job.account.folder, step, False, keeps) if job.leads else Recalled(),
        )
        job.account.take_up(found)
        job.account.count_from(found.sent_nbytes)
        job.members.ledger = replace(old.members.ledger, parts=[*old.members.ledger.parts])
        job.members.note_again(len(found.members))
        job.members.begin(shards_of_rank, came_from=here, resumed=False)
        job.members.take_rest()
        if job.validation is not None:
            job.validation.load(old.judged if old.within_duties else old.validation.to_json())
            for name, array in job.validation.arrays().items():
                array[...] = old.validation.arrays()[name]
        if job.leads:
            job.tiers.cluster.to_toml(job.path / "cluster.toml")
            table = job.plan.to_dict() | {"shards_of_rank": shards_of_rank}
            job.account.folder.write_json("plan.json", table)


def _plan_of(plan, cluster, found, manifest):
    """Return the plan with the shards where they are now; those that nobody has count as rank 0's."""
    ranks, samples = np.zeros(len(manifest.shards), int), []
    for rank, shards in enumerate(found.shards_of_rank):
        ranks[shards] = rank
        samples.append(sum(manifest.shards[shard].samples for shard in shards))
    seconds = [held / rate / plan.steps for held, rate in zip(samples, cluster.rates)]
    return replace(
        plan, rank_of_shard=ranks, samples_of_rank=tuple(samples), seconds_of_rank=tuple(seconds)
    )


def _may_hold(limits, shard, site):
    """Whether a plan's limits let a shard be at a site."""
    barred = limits.forbidden.get(shard, ())
    return limits.pinned.get(shard, site) == site and site not in (
        (barred,) if isinstance(barred, str) else barred
    )
