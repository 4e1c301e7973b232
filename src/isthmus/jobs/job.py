"""A run under way: what it has measured, and what is done after its steps."""

import time
from functools import partial
from hashlib import sha256

from mpi4py import MPI

from isthmus.devices import to_host
from isthmus.errors import CheckpointError, NonFiniteError, StoppedError
from isthmus.folders.record import RunFolder, provenance, repaired_sentence, replanned_sentence
from isthmus.jobs.account import Account
from isthmus.jobs.clients import identity_of_clients
from isthmus.jobs.duties import duties_of
from isthmus.jobs.keeping import keep_model
from isthmus.jobs.members import Members
from isthmus.jobs.protecting import identity_of_privacy
from isthmus.jobs.rebalancing import Rebalancing
from isthmus.jobs.recording import Recording
from isthmus.jobs.resuming import Recalled, identity_of, recall, until_checkpoint
from isthmus.jobs.scaling import commonest_share, no_better_than_one_answer
from isthmus.json_text import dumps, loads
from isthmus.links.agreement import broadcast_json, from_root, require, together
from isthmus.recovery.buddies import Buddies
from isthmus.recovery.handover import adapted
from isthmus.spare import if_possible
from isthmus.training import checkpoint
from isthmus.training.replicas import Replicas, WentBackError
from isthmus.training.residuals import ResidualSeal
from isthmus.training.validation import Validation
from isthmus.watching.links import counted_links, received_shards
from isthmus.watching.pace import Pacer


class Job:
    """A run under way: its training, what it has measured, and what is done after its steps."""

    def __init__(self, tiers, settings, plan, training, sets, journal, path):
        self.tiers, self.settings, self.plan = tiers, settings, plan
        self.training, self.sets = training, sets  # sets: name -> samples that are evaluated
        self.journal, self.tell = journal, journal.tell
        self.path, self.leads = path, tiers.world.rank == tiers.home
        self.record = Recording(tiers, settings.security, path)
        self.seal = ResidualSeal.of(tiers, settings.security.keys_of_links)
        folder = RunFolder(path, self.record.chained) if self.leads else None
        self.account = Account(tiers, settings, plan, training, folder, journal.tell)
        self.replicas = Replicas(training, settings.training.on_replica == "repair")
        self.buddies = Buddies(tiers, training, self.seal)
        self.agree, self.within_duties = None, False  # where ranks may die
        self.done_step, self.stops = 0, False  # the last one with all done; whether it is told to end
        self.rebalancing = Rebalancing(tiers, settings, plan, training)
        self.members = Members(tiers, training, self.account)
        self.data = {"train": training.local.manifest} | {
            name: local.manifest for name, local in sets.items()
        }
        self.validation = None
        if "validation" in sets:
            keeps = self.leads or settings.recovery.survive  # any rank may be the next that leads
            self.validation = Validation(training.model, keeps, training.recipe.stop_after)
            training.undoing.judge = self.validation
        self.identity = identity_of(settings, tiers.cluster, plan, self.data)
        self.identity |= identity_of_privacy(settings, tiers.cluster, training)
        if settings.plays_clients:
            self.identity["clients"] = identity_of_clients(settings, training.member.clients)

    def begin(self, chosen, resume):
        """Take up a checkpoint where there is one to go on from, and write down what is about to run.

        chosen: how the allreduce and the strategy's rounds were chosen, and who the clients are, for
        run.json.
        """

        self.journal.open(self.path)
        if resume:
            self._resume()
        step = self.training.state.step if resume else None
        from_root(self.tiers.world, lambda: self.write_down(chosen, step), self.tiers.home)
        if resume:
            self.account.note("resumed")
        else:
            self.members.begin(self.plan.shards_of_rank)
        self.record.state(self.account.folder, self.training.state.step)
        self.tell(f"run folder: {self.path}")

    def write_down(self, more, step=None):
        """Write run.json, with `more` in it, cluster.toml and plan.json, on the job's rank 0.

        step: as `RunFolder.write_documents` has it.
        """
        table = provenance(
            self.settings,
            self.journal.hosts,
            MPI.Get_library_version().strip("\0"),
            self.training.model.size,
            {name: manifest.told() for name, manifest in self.data.items()},
        )
        more = {"ranks": self.tiers.whole.size} | more
        self.account.folder.write_documents(table | more, self.tiers.cluster, self.plan, step)

    def run(self, stop, show=None):
        """Make every step, and do after it what is due.

        Raises StoppedError on every rank once `stop` has told them to, after a checkpoint.
        """
        duties = duties_of(self, stop)
        pacer = Pacer(show, self.training.recipe.total_steps) if show and self.leads else None
        self.compare_replicas()
        if self.ends_early:  # where a run goes on that had ended
            return
        while True:
            try:
                if self.within_duties:  # another rank has died while these were done
                    self._do(duties)
                self._make_steps(duties, pacer)
                return
            except WentBackError as back:
                self._go_on_from(back)

    def _make_steps(self, duties, pacer):
        try:
            for _ in self.training.steps():
                self._do(duties)
                if pacer is not None:
                    pacer.after(self.training.state.step, self.account.loss)
                if self.ends_early:
                    self.tell(self.validation.why_it_ends)
                    return
        except NonFiniteError:
            if self.replicas.repairs:  # a bit that has flipped may be why
                self.compare_replicas()
            raise

    def _go_on_from(self, back):
        """Make steps again, as some rank had other parameters than the others."""
        self.within_duties, self.done_step = False, self.training.state.step
        self.buddies.forget_after(self.done_step)
        self.tell_of_return(back)

    def tell_of_return(self, back):
        """Tell that some rank had other parameters than the others, and that all make steps again."""
        self.replicas.untold = None
        told = {"step": self.training.state.step, "ranks": back.ranks, "found": back.found}
        self.account.note("repaired", **told, clock=time.time())
        self.account.flush()
        self.tell(f"step {back.found}: {repaired_sentence(told)}")

    def _do(self, duties):
        """Do what is due after a step; where ranks may die, all agree that it is done.

        Within a round they need not: what is undone is the round.
        """
        step, training, self.within_duties = self.training.state.step, self.training, False
        for duty in duties:  # whether one is due may depend on those before it
            if not (duty.alone or training.member.together) or not duty.due(step):
                continue
            if self.agree is not None and training.member.agreed and not self.within_duties:
                self.within_duties = True
                training.undoing.hold_rows()
            self.journal.enter(duty.phase, step)
            duty.act()
        if self.within_duties:
            self.account.flush()
            self.agree()
            training.undoing.release_rows()
            self.buddies.keep()
            self.within_duties = False
        self.done_step = step

    @property
    def ends_early(self):
        """Whether the validation set has found nothing better for so long that epochs are left out."""
        left = self.training.state.step < self.training.recipe.total_steps
        return left and self.validation is not None and self.validation.ends

    def compare_replicas(self):
        """Return the hash of the parameters where all ranks have to have the same; else None.

        WentBackError where they had not, and are back where they had.
        """
        return self.replicas.compare_and_keep() if self.training.member.agreed else None

    def compare_and_note(self):
        self.account.note("replicas", hash=self.compare_replicas())

    def stop(self):
        self.account.note("stopped")
        if self.leads:
            self.account.folder.close()
        self._keep_model()
        error = StoppedError(
            f"stopped by a signal after step {self.training.state.step}; go on with "
            f"`isthmus train RUN.toml --resume {self.path}`"
        )
        error.everywhere = True
        raise error

    def finish(self):
        """Compare replicas, write summary.json, and return it with the folder on every rank."""
        self.journal.enter("end", self.training.state.step)
        digest = self.replicas.compare() if self.training.member.agreed else None
        if digest is None:  # it ends between two exchanges: what all ranks hold alike
            digest = sha256(to_host(self.training.anchor)).hexdigest()
        received = received_shards(self.tiers, {"train": self.training.local, **self.sets})
        links, summary = counted_links(self.tiers, self.training.member), None
        if self.leads:
            self.account.note("replicas", hash=digest)
            summary = self.account.summary(digest, links, received) | {
                "best": self.validation and self.validation.best,
                "stopped_early": self.validation.why_it_ends if self.ends_early else None,
            }
            self.account.folder.write_json("summary.json", summary)
            self.account.folder.close()
        self._keep_model()
        self._tell_what_was_not_learnt()
        told = broadcast_json(self.tiers.world, summary, self.tiers.home)
        return told | {"folder": str(self.path), "is_here": self.is_here}

    @property
    def is_here(self):
        """Whether the run's folder is with this job, and not with that of another site."""
        tiers = self.tiers
        return not tiers.joined or tiers.home in tiers.cluster.ranks_of_site(tiers.site_name)

    def _tell_what_was_not_learnt(self):
        """Say so where a model is no better than the commonest class, or than the mean target."""
        classifies = "accuracy" in self.training.model.loss.metrics
        share = commonest_share(self.tiers.world, self.sets["test"]) if classifies else None
        if self.leads and (
            warning := no_better_than_one_answer(self.account.evaluated.get("test", {}), share)
        ):
            self.tell(warning)

    def _keep_model(self):
        """Write model.h5, while all ranks wait, and have sites state it; a run is done without it."""
        buffers = self.training.mean_buffers()
        from_root(
            self.tiers.world,
            lambda: if_possible(
                lambda: keep_model(self, buffers),
                "the model",
                f"`isthmus train RUN.toml --resume {self.path}` writes it, where there is a checkpoint",
            ),
            self.tiers.home,
        )
        self.record.state(self.account.folder, self.training.state.step)

    def report(self):
        self.account.report(look=self.rebalancing.measure)
        self.account.note_told(self.training.member.told())

    def evaluate(self):
        state, recipe = self.training.state, self.training.recipe
        metrics = {name: self.training.evaluate(local) for name, local in self.sets.items()}
        best = self.validation is not None and self.validation.take(
            state.step,
            state.step // recipe.steps,
            metrics,
            self.training.anchor,
            self.training.mean_buffers(),
        )
        self.account.note_evaluation(metrics, best)

    def rebalance(self):
        """Move shards if ranks have changed their pace and it pays; that takes time of the run."""
        told = self.rebalancing.after_epoch()
        if told:
            self.account.seconds += told["moving_seconds"]
            self.account.note("replanned", seconds=self.account.seconds, **told)
            if told["shards"]:
                self.members.begin(self.rebalancing.shards_of_rank)
            if self.leads:
                self.account.folder.flush()
            self.tell(f"step {self.training.state.step}: {replanned_sentence(told)}")

    def write_checkpoint(self):
        self.report()  # the curves of what leads to a checkpoint are on the disk before it is
        notes, arrays = self.rebalancing.to_json() | {"parts": len(self.members.ledger.parts)}, {}
        if self.validation is not None:
            notes, arrays = notes | {"validation": self.validation.to_json()}, self.validation.arrays()
        path = self.path / "checkpoint.h5"
        checkpoint.write_checkpoint(path, self.training, self.identity, notes, arrays, self.seal)
        self.journal.checkpoint = self.training.state.step
        self.record.state(self.account.folder, self.training.state.step)
        self.tell(f"step {self.training.state.step}: checkpoint written")

    def _resume(self):
        """Take up the state of the checkpoint, and the clock and the curves of what led to it."""
        state, recipe, world = self.training.state, self.training.recipe, self.tiers.world
        arrays = {} if self.validation is None else self.validation.arrays()
        path, redone = self.path / "checkpoint.h5", self.settings.make_strategy().redone
        anew = not self.tiers.is_whole  # where shards are then depends on who went before whom
        now = loads(dumps(self.identity))
        adapt = partial(adapted, now=now, redone=redone, path=path, placed_anew=anew)
        notes = checkpoint.read_checkpoint(path, self.training, self.identity, arrays, adapt, self.seal)
        if self.validation is not None:
            self.validation.load(notes["validation"])
        require(
            world,
            state.step <= recipe.total_steps,
            CheckpointError,
            f"{path}: is of step {state.step}, and training.epochs = {recipe.epochs} ends at step "
            f"{recipe.total_steps}; give {-(-state.step // recipe.steps)} epochs or more",
        )
        last = state.step == recipe.total_steps or self.ends_early
        kept = until_checkpoint(state.step, notes.get("parts"))
        found = together(
            world,
            lambda: recall(self.account.folder, state.step, last, kept) if self.leads else Recalled(),
        )
        self.account.take_up(found)
        self.members.take_up(found.members, self.plan.shards_of_rank)
        told = None
        if "came_from" in notes:
            told = self.members.go_on_without(notes, self.plan.shards_of_rank)
        else:
            self.rebalancing.resume(notes)
            self.members.take_rest()
        self.account.count_from(found.sent_nbytes)
        self.journal.checkpoint = state.step
        self.tell(f"resumed at step {state.step}")
        for line in filter(None, (told, found.told)):
            self.tell(line)
