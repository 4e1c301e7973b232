"""The main job: read the settings, plan, scatter, train, check, and leave a folder that tells it."""

import signal
from contextlib import nullcontext
from pathlib import Path

from threadpoolctl import threadpool_limits

from isthmus.folders.record import open_folder, reserved
from isthmus.jobs.arriving import outlook
from isthmus.jobs.clients import told_of_clients
from isthmus.jobs.job import Job
from isthmus.jobs.making import make_training
from isthmus.jobs.preparation import arranged, checked, chosen_allreduce, opened_job, place_data
from isthmus.jobs.protecting import told_of_privacy
from isthmus.jobs.shared_model import shared_model
from isthmus.jobs.stopping import stopping_on
from isthmus.jobs.surviving import Survival, come_back
from isthmus.links.agreement import together
from isthmus.recovery.faults import Faults
from isthmus.watching.journal import Journal
from isthmus.watching.trace import Trace


def train(
    comm, settings_path, tell, *, resume=None, cluster=None, name=None, replay=None, show=None, part=None
):
    """Run the job that `settings_path` describes on all ranks of `comm`; return its summary.

    tell: called with lines of progress on rank 0. resume: the folder of a run to go on with.
    cluster: a cluster file that takes the place of the settings'. name: what the run's folder is
    called; if it has a checkpoint the run goes on with that. replay: the folder of a run of the same
    settings, whose changes arrive here in the order in which they arrived there. The summary, with the
    folder's path, is returned on every rank. SIGUSR1 has the run write a checkpoint and raise
    StoppedError. part: the SiteJob that this job is; the one that listens has the run's folder.
    show: called on rank 0 with a `watching.pace.Pace` while steps go on; None: nobody watches.
    """
    with opened_job(comm, settings_path, cluster, part, tell, bool(replay)) as (settings, tiers):
        if tiers.circle is not None and tiers.circle.entered is not None:
            return come_back(comm, Job, tiers, settings, tell, show)
        with (
            reserved(tiers, settings.run.folder, resume, name) as (resume, lock),
            threadpool_limits(settings.run.threads),
            stopping_on(signal.SIGUSR1, tiers.world, tiers.home) as stop,
            Journal(tiers, settings.run, tell) as journal,
        ):
            faults = Faults.of_environment(tiers.numbers[tiers.world.rank])
            tiers = checked(faults.watching(tiers), settings)
            model = shared_model(tiers.world, settings)
            settings, why = chosen_allreduce(tiers, settings, journal.tell)
            tiers, tree = arranged(tiers, settings)
            if tree:
                journal.tell(tree)
            together(tiers.world, settings.make_optimiser)
            journal.enter("placing data", 0)
            settings, rounds, plan, local, sets, placed = place_data(tiers, settings, journal.tell)
            journal.enter("beginning", 0)
            trace = Trace(tiers) if settings.run.trace else None
            expected, warning = outlook(settings, tiers.cluster, plan)
            for told in filter(None, (expected, warning and f"warning: {warning}")):
                journal.tell(f"strategy: {told}")
            on = trace.tiers if trace else tiers
            training = make_training(on, settings, model, plan, local, journal, replay, resume)
            journal.meet = faults.of(training).meet
            path = open_folder(tiers, settings, Path(settings_path).stem, resume, name, lock)
            job = Job(tiers, settings, plan, training, sets, journal, path)
            chosen = {
                "choice": why,
                "rounds": rounds or expected,
                "tree": tree,
                **told_of_privacy(training),
            }
            chosen |= told_of_clients(training.member) if settings.plays_clients else {}
            job.begin(chosen, resume)
            if settings.recovery.survive:
                survival = Survival(comm, Job, stop, lock, show, faults, tiers.circle)
                return survival.begin(job, placed).run()
            with trace.written_to(job.path) if trace else nullcontext():
                job.run(stop, show)
            return job.finish()
