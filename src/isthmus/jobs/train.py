"""The main job: read the settings, plan, scatter, train, check, and leave a folder that tells it."""

import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from mpi4py import MPI
from threadpoolctl import threadpool_limits

from isthmus.compression.dense import Dense
from isthmus.devices import array_library
from isthmus.errors import CheckpointError, StoppedError
from isthmus.files import remove_leftovers
from isthmus.folders.record import RunFolder, let_in, provenance, replanned_sentence, reserved
from isthmus.folders.terms import critical_terms, typical_terms
from isthmus.jobs.choosing import choose
from isthmus.jobs.preparation import hold_seconds, place_data, shared_settings, shared_tiers
from isthmus.jobs.rebalancing import Rebalancing
from isthmus.jobs.resuming import Recalled, identity_of, recall
from isthmus.jobs.stopping import stopping_on
from isthmus.links.agreement import broadcast_json, from_root, require, together
from isthmus.registry import STAGES
from isthmus.testbed import on_testbed
from isthmus.training.checkpoint import read_checkpoint, write_checkpoint
from isthmus.training.loop import MEASURED, State, Training
from isthmus.training.strategies.sums import Sums
from isthmus.watching.journal import Journal
from isthmus.watching.links import LinkWatch, counted_links
from isthmus.watching.trace import Trace


def train(comm, settings_path, tell, *, resume=None, cluster=None, name=None):
    """Run the job that `settings_path` describes on all ranks of `comm`; return its summary.

    tell: called with lines of progress on rank 0. resume: the folder of a run to go on with.
    cluster: a cluster file that takes the place of the settings'. name: what the run's folder is
    called; if it has a checkpoint the run goes on with that. The summary, with the folder's path, is
    returned on every rank. SIGUSR1 has the run write a checkpoint and raise StoppedError.
    """
    settings = shared_settings(comm, settings_path, cluster)
    with (reserved(comm, settings.run.folder, resume, name) as (resume, lock),
          threadpool_limits(settings.run.threads), shared_tiers(comm, settings) as tiers,
          stopping_on(signal.SIGUSR1, tiers.world, tiers.home) as stop,
          Journal(tiers, settings.run, tell) as journal):
        settings, why = choose(settings, tiers.cluster)
        if why:
            journal.tell(f"allreduce: {why['reason']}")
        journal.enter("placing data", 0)
        plan, local, test = place_data(tiers, settings, journal.tell)
        journal.enter("beginning", 0)
        model = settings.make_model()
        trace = Trace(tiers) if settings.run.trace else None
        computing = trace.tiers if trace else tiers
        recipe = settings.recipe(plan.steps)
        state = State.initial(model, recipe.seed, array_library(tiers.device))
        sums = Sums(computing, model.size, weight=float(local.samples),
                    algorithm=settings.allreduce.algorithm, compressor=settings.make_compressor(),
                    error_feedback=settings.allreduce.error_feedback, buckets=settings.make_buckets(),
                    chunk_nbytes=settings.allreduce.chunk_nbytes, like=state.parameters)
        member = settings.make_strategy().join(sums, recipe.total_steps)
        training = Training(computing, model, local, member, recipe, state,
                            hold_seconds(tiers, settings), journal.enter)
        job = Job(tiers, settings, plan, training, test, journal)
        job.open_folder(Path(settings_path).stem, resume, name, lock, why)
        with trace.written_to(job.path) if trace else nullcontext():
            job.run(stop)
        return job.finish()


class Duty(NamedTuple):
    """What is done after a step: in which phase, after which steps, and what.

    due(step) is asked on every rank and says the same on all of them.
    """

    phase: str
    due: Callable[[int], bool]
    act: Callable[[], None]


def every(steps):
    """Return a function that tells whether a step is one of every so many; of None, none is."""
    return lambda step: steps is not None and step % steps == 0


class Job:
    """A run under way: its training, its clock, and its folder, which the job's rank 0 alone has."""

    def __init__(self, tiers, settings, plan, training, test, journal):
        self.tiers, self.settings, self.plan = tiers, settings, plan
        self.training, self.test = training, test
        self.journal, self.tell = journal, journal.tell
        self.leads = tiers.world.rank == tiers.home
        self.folder = None
        self.path = None
        self.seconds = 0.0  # of training so far; evaluation and checkpoints are not counted
        self.link_nbytes = 0
        self.measured = []  # of each step so far: its terms, and whether an exchange ended it
        self.evaluation = (None, None)
        self.loss = None
        self.skipped = 0
        self.stops = False  # whether the run ends after this step, told by a signal
        self.exchanged = {each.step for each in settings.make_strategy().exchanges(
            training.recipe.total_steps)}
        self.rebalancing = Rebalancing(tiers, settings, plan, training)
        self.slow_links = LinkWatch(tiers.cluster, plan.terms.get("links", 0.0))
        self.data = {"train": training.local.manifest, "test": test.manifest}
        self.identity = identity_of(settings, tiers.cluster, plan, self.data)
        cluster = tiers.cluster
        self._leaders = None
        if settings.allreduce.algorithm == "hierarchical" and len(cluster.sites) > 1:
            self._leaders = [cluster.ranks_of_site(name)[0] for name in cluster.names]
            if len(self._leaders) > 2:  # the hub waits for one crossing, the others for two
                self._leaders.pop(cluster.hub)

    def open_folder(self, stem, resume, name, lock, why=None):
        """Make the run's folder, or go on with an old one, and write down what is about to run."""
        def make():
            folder = RunFolder(resume) if resume else RunFolder.create(
                self.settings.run.folder, stem, name)
            if not resume and name is None:
                lock.take(folder.path)
            let_in(folder.path, self.settings.run.mode)
            remove_leftovers(folder.path)
            return str(folder.path)

        def write_down():
            table = provenance(self.settings, self.journal.hosts,
                               MPI.Get_library_version().strip("\0"), self.training.model.size,
                               {name: manifest.told() for name, manifest in self.data.items()})
            self.folder.write_documents(table | {"choice": why}, self.tiers.cluster, self.plan,
                                        self.training.state.step if resume else None)

        self.path = Path(from_root(self.tiers.world, make, self.tiers.home))
        self.folder = RunFolder(self.path) if self.leads else None
        self.journal.open(self.path)
        if resume:
            self._resume()
        from_root(self.tiers.world, write_down, self.tiers.home)
        if resume:
            self._note("resumed")
        self.tell(f"run folder: {self.path}")

    def run(self, stop):
        """Make every step, and do after it what is due.

        Raises StoppedError on every rank once `stop` has told them to, after a checkpoint.
        """
        state, duties = self.training.state, self._duties(stop)
        self._compare_replicas()
        for _ in self.training.steps():
            for duty in duties:
                if duty.due(state.step):
                    self.journal.enter(duty.phase, state.step)
                    duty.act()

    def _duties(self, stop):
        """Return what is done after a step, in order: when, and what."""
        recipe, member = self.training.recipe, self.training.member
        ends_epoch = every(recipe.steps)

        def ask_to_stop():
            self.stops = stop.told(self.training.state.step)

        return [
            Duty("report", lambda step: not member.gradients.finite, self._note_skipped),
            Duty("replicas", lambda step: member.agreed and every(recipe.compare_replicas_every)(step),
                 self._compare_and_note),
            Duty("report", lambda step: ends_epoch(step) or every(recipe.report_every)(step),
                 self._report),
            Duty("evaluation", ends_epoch, self._evaluate),
            Duty("rebalancing", lambda step: self.settings.plan.replan and ends_epoch(step),
                 self._rebalance),
            Duty("signals", lambda step: step < recipe.total_steps, ask_to_stop),
            Duty("checkpoint", lambda step: self.stops or every(recipe.checkpoint_every)(step),
                 self._write_checkpoint),
            Duty("end", lambda step: self.stops, self._stop)]

    def _compare_replicas(self):
        """Return the hash of the parameters where all ranks have to have the same; else None."""
        return self.training.compare_replicas() if self.training.member.agreed else None

    def _compare_and_note(self):
        self._note("replicas", hash=self._compare_replicas())

    def _stop(self):
        self._note("stopped")
        if self.leads:
            self.folder.close()
        error = StoppedError(f"stopped by a signal after step {self.training.state.step}; go on with "
                             f"`isthmus train RUN.toml --resume {self.path}`")
        error.everywhere = True
        raise error

    def finish(self):
        """Compare replicas, write summary.json, and return it with the folder on every rank."""
        self.journal.enter("end", self.training.state.step)
        digest = self._compare_replicas()
        links = counted_links(self.tiers, self.training.member)
        if self.leads:
            self._note("replicas", hash=digest)
            summary = self._summary(digest, links)
            self.folder.write_json("summary.json", summary)
            self.folder.close()
        else:
            summary = None
        return broadcast_json(self.tiers.world, summary, self.tiers.home) | {"folder": str(self.path)}

    def _note_skipped(self):
        ranks = self.training.non_finite_ranks
        self._note("non_finite", ranks=ranks, action="skipped")
        self.skipped += 1
        if self.skipped <= 3:
            more = "; more of these are in metrics.jsonl" if self.skipped == 3 else ""
            self.tell(f"step {self.training.state.step}: skipped, {self.training.not_finite}{more}")

    def _note(self, kind, **values):
        if self.leads:
            state, steps = self.training.state, self.training.recipe.steps
            self.folder.note(kind, **({"step": state.step, "epoch": (state.step - 1) // steps}
                                      | values))

    def _report(self):
        """Gather what all ranks measured since the last report, and write a line a step."""
        rows = self.training.gather_rows()
        if rows is None or rows.shape[1] == 0:
            return
        first = self.training.state.step - rows.shape[1] + 1
        for number in range(rows.shape[1]):
            self._report_step(first + number, dict(zip(MEASURED, rows[:, number].T)))
        self.slow_links.look(self.training.state.step,
                             [terms["links"] for terms, _ in self.measured[-rows.shape[1]:]])
        self.folder.flush()
        self.tell(f"step {self.training.state.step}/{self.training.recipe.total_steps}: "
                  f"loss {self.loss:.4f}, {1e3 * typical_terms(self.measured)[1]:.1f} ms a step, "
                  f"{self.link_nbytes / 1e6:.1f} MB over links", passing=True)

    def _report_step(self, step, of_rank):
        """Write the line of one step from what each rank measured of it."""
        self.loss = of_rank["loss"].sum() / max(of_rank["samples"].sum(), 1)
        step_seconds = of_rank["step"][0]
        self.seconds += step_seconds
        terms = critical_terms(of_rank, self._leaders)
        self.measured.append((terms, step in self.exchanged))
        self.rebalancing.measure(of_rank)
        self.link_nbytes = int(of_rank["sent_link_nbytes"].sum())
        self.folder.note(
            "step", step=step, epoch=(step - 1) // self.training.recipe.steps,
            seconds=self.seconds, loss=self.loss, step_seconds=step_seconds, terms=terms,
            exchanged=step in self.exchanged,
            sent_nbytes={"site": int(of_rank["sent_site_nbytes"].sum()), "link": self.link_nbytes})

    def _evaluate(self):
        loss, accuracy = self.evaluation = self.training.evaluate(self.test)
        self._note("evaluation", seconds=self.seconds, link_nbytes=self.link_nbytes,
                   loss=loss, accuracy=accuracy)
        self.tell(f"epoch {self.training.state.step // self.training.recipe.steps}: "
                  f"test loss {loss:.4f}, accuracy {accuracy:.4f}")

    def _rebalance(self):
        """Move shards if ranks have changed their pace and it pays; that takes time of the run."""
        told = self.rebalancing.after_epoch()
        if told:
            self.seconds += told["moving_seconds"]
            self._note("replanned", seconds=self.seconds, **told)
            if self.leads:
                self.folder.flush()
            self.tell(f"step {self.training.state.step}: {replanned_sentence(told)}")

    def _write_checkpoint(self):
        self._report()  # the curves of what leads to a checkpoint are on the disk before it is
        write_checkpoint(self.path / "checkpoint.h5", self.training, self.identity,
                         self.rebalancing.to_json())
        self.journal.checkpoint = self.training.state.step
        self.tell(f"step {self.training.state.step}: checkpoint written")

    def _resume(self):
        """Take up the state of the checkpoint, and the clock and the curves of what led to it."""
        state, recipe, world = self.training.state, self.training.recipe, self.tiers.world
        notes = read_checkpoint(self.path / "checkpoint.h5", self.training, self.identity)
        require(world, state.step <= recipe.total_steps, CheckpointError,
                f"{self.path / 'checkpoint.h5'}: is of step {state.step}, and training.epochs = "
                f"{recipe.epochs} ends at step {recipe.total_steps}; give "
                f"{-(-state.step // recipe.steps)} epochs or more")
        found = together(world, lambda: recall(self.folder, state.step, recipe.total_steps)
                         if self.leads else Recalled())
        self.seconds, self.loss, self.measured = found.seconds, found.loss, found.measured
        self.evaluation = found.evaluation
        self.rebalancing.resume(notes)
        self.journal.checkpoint = state.step
        self.tell(f"resumed at step {state.step}")
        if found.told:
            self.tell(found.told)

    def _summary(self, digest, links):
        """Return what the run came to, predicted beside measured."""
        measured, step_seconds = typical_terms(self.measured)
        predicted = {**dict.fromkeys(STAGES, 0.0), **self.plan.terms}
        loss, accuracy = self.evaluation
        wire = self.settings.make_compressor() or Dense()
        ratio = Dense().wire_nbytes(self.training.model.size) / wire.wire_nbytes(
            self.training.model.size)
        return {
            "outcome": "finished", "steps": self.training.state.step, "seconds": self.seconds,
            "emulated": ["links"] if on_testbed() else [],
            "loss": loss, "accuracy": accuracy, "parameter_hash": digest, "links": links,
            "dense_link_nbytes": round(ratio * sum(link["sent_nbytes"] for link in links)),
            "terms": [{"name": name, "predicted_seconds": predicted[name],
                       "measured_seconds": measured.get(name, 0.0)} for name in STAGES],
            "step": {"predicted_seconds": self.plan.step_seconds,
                     "measured_seconds": step_seconds}}
