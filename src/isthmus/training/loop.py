"""The training loop: the same step on every rank, as a strategy has it.

A step: each rank computes the gradient of its own batch, the strategy's allreduce gives the mean, every
rank makes the update, and the strategy exchanges what is then due. A rank without samples takes part
with a gradient of zeros.

Weights: rank i holds D_i of D samples and takes D_i / K of them a step. It sends its summed gradient
times K / D_i with weight D_i / D, so that every sample counts alike in an epoch, also where
D_i / K is not whole.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from isthmus import kernels
from isthmus.devices import library_of, out_of_memory, set_from_host, synchronise
from isthmus.errors import NonFiniteError
from isthmus.links.agreement import ranks_where
from isthmus.links.world import gather
from isthmus.models.model import Model
from isthmus.registry import ALLREDUCE_STAGES
from isthmus.shards.batches import LocalSamples
from isthmus.timing.step import computed_share
from isthmus.training.buffers import averaged, mean_buffers, stored, take_stored
from isthmus.training.evaluation import evaluate
from isthmus.training.instruments import Instruments
from isthmus.training.measured import MEASURED, spread
from isthmus.training.optimisers.clipping import clipping_factor
from isthmus.training.recipe import Recipe
from isthmus.training.strategies.strategy import Member
from isthmus.training.undoing import Undoing

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers


@dataclass
class State:
    """What a step changes; with the seed and the strategy's state it decides everything that follows.

    optimiser: name -> array, what the optimiser remembers. Where the parameters live, there the rank
    computes: NumPy's or CuPy's.
    """

    parameters: np.ndarray
    optimiser: dict[str, np.ndarray]
    step: int = 0

    @classmethod
    def initial(cls, model: Model, recipe: Recipe, library: Any = np) -> Self:
        parameters = library.asarray(model.initial(recipe.seed))
        return cls(parameters, recipe.optimiser.begin(model.size, parameters))


class Training:
    """One rank's part in a job.

    member: this rank's part in the strategy. hold_seconds: seconds that computing a batch of n samples
    shall take at least, or None for as long as it takes (a paced job passes the cluster file's rate).
    enter(phase, step): called where "compute", "allreduce" and "update" begin.
    """

    def __init__(
        self,
        tiers: "Tiers",
        model: Model,
        local: LocalSamples,
        member: Member,
        recipe: Recipe,
        state: State,
        hold_seconds: Callable[[int], float] | None = None,
        enter: Callable[[str, int], Any] = lambda phase, step: None,
    ):
        self.tiers, self.model, self.local, self.member = tiers, model, local, member
        self.recipe, self.state, self.hold_seconds = recipe, state, hold_seconds
        self.gradient = library_of(state.parameters).zeros(model.size, np.float32)
        self.instruments = Instruments(tiers.recorder, enter)
        self.rows = []  # of the steps since the last `gather_rows`
        self.told_step = state.step  # the last step that was told
        self.finite, self.non_finite_ranks = True, []  # of the last step
        self.rest = None  # what this rank takes of an epoch that began with other ranks
        self.agree = None  # asked before what all ranks have is another: in a step, or a round
        self.undoing = Undoing(self)
        member.begin(state.parameters)

    def steps(self) -> Iterator[None]:
        """Make the steps that are left, and yield after each."""
        recipe, state = self.recipe, self.state
        while state.step < recipe.total_steps:
            epoch, done = divmod(self.member.walked, recipe.steps)
            if self.rest is not None and self.rest.epoch != epoch:
                self.take(self.local)
            for features, targets in self._batches_of(epoch, done):
                before = self.member.stage_seconds
                with self.instruments.step(self.member.walked + 1) as measured:
                    loss = self._step(features, targets, measured.phase)
                self._note(loss, len(targets), measured, before)
                state.step = self.member.step
                yield
                if self.member.together and state.step % recipe.steps == 0:
                    break  # of an epoch, wherever this rank is in its samples

    def _batches_of(self, epoch, done):
        """Yield the batches of an epoch that are left once `done` of them are made."""
        recipe = self.recipe
        since, rows = (self.rest.since, self.rest.rows) if self.rest else (0, None)
        return self.local.batches(
            steps=recipe.steps - since,
            seed=recipe.seed,
            epoch=epoch,
            start=done - since,
            rows=rows,
            since=since,
        )

    def _gradient(self, features, targets, ready):
        """Write this rank's gradient, call `ready` as parts of it are, and return the summed loss."""
        return self.model.gradient(self.state.parameters, features, targets, self.gradient, ready)

    def _step(self, features, targets, phase):
        """Compute, sum, update, exchange; return the summed loss of this rank's samples."""
        if self.agree is not None:
            self.undoing.before_step()
        self.member.before_step(self.state.parameters)
        gradients = self.member.gradients
        self.model.begin_step(self.recipe.seed, self.tiers.world.rank, self.member.walked)
        with phase("compute"):
            loss = self._compute(features, targets, gradients)
        with phase("allreduce"):
            mean = gradients.finish()
        if self.agree is not None and not self.undoing.rounds:
            self.agree()
            self.undoing.before_update()
        with phase("update"):
            self.finite, self.non_finite_ranks = gradients.finite, []
            if gradients.finite:
                self._update(mean)
            else:
                self._refuse_non_finite()
        with phase("allreduce"):
            self.member.after_step(self.state.parameters)
        if self.agree is not None and self.undoing.rounds and self.member.agreed:
            self.agree()
            self.undoing.after_round()
        if not self.member.finite:
            self._refuse_exchange()
        return loss

    def _compute(self, features, targets, gradients):
        """Start each bucket of this rank's scaled gradient as it is ready; return the summed loss."""
        buckets = iter(gradients.buckets)
        waiting = next(buckets, None)

        def ready(first):
            nonlocal waiting
            while waiting is not None and waiting.start >= first:
                bucket = self.gradient[waiting]
                if self._samples:
                    bucket *= np.float32(self._batches / self._samples)
                synchronise(bucket)
                self._hold(len(targets), waiting.start)
                with self.instruments.phase("allreduce"):
                    gradients.start(bucket)
                waiting = next(buckets, None)

        with np.errstate(all="ignore"):  # what is not finite is found by every rank, together
            try:
                return self._gradient(features, targets, ready)
            except MemoryError as problem:
                gradients.fail(
                    out_of_memory(
                        f"a batch of {len(targets)} samples in step {self.state.step + 1}", problem
                    )
                )
                ready(0)
                return np.nan

    def _hold(self, samples, first):
        """Wait until a paced rank would have the entries from `first` on."""
        if self.hold_seconds is not None:
            share = computed_share(first, self.model.size)
            left = share * self.hold_seconds(samples) - self.instruments.so_far("compute")
            if left > 0:
                time.sleep(left)

    def _update(self, mean):
        """Make the same step as every other rank."""
        state, recipe = self.state, self.recipe
        rate = recipe.learning_rate_of(state.step)
        scale = 1.0 if recipe.clip_norm is None else clipping_factor(mean, recipe.clip_norm)
        recipe.optimiser.step(state.parameters, mean, state.optimiser, rate, scale)
        synchronise(state.parameters)

    def _refuse_non_finite(self):
        """Every rank whose gradient was summed is here in the same step: all saw the same mean."""
        mine = kernels.for_array(self.gradient).all_finite(self.gradient)
        self.non_finite_ranks = ranks_where(self.member.gradients.world, not mine)
        if self.recipe.on_non_finite == "stop":
            ranks = ", ".join(map(str, self.non_finite_ranks))
            error = NonFiniteError(
                f"step {self.state.step + 1}: "
                + (
                    f"a gradient holds a NaN or an infinity (ranks: {ranks}); lower "
                    'training.learning_rate, look at the data, or set training.on_non_finite = "skip"'
                    if ranks
                    else self.member.gradients.overflow
                )
            )
            error.everywhere = self.member.gradients.world.size == self.tiers.world.size
            error.ranks = self.non_finite_ranks
            raise error

    def _refuse_exchange(self):
        """Every rank is here: all saw the same mean of what sites exchange."""
        self.finite = False
        if self.recipe.on_non_finite == "stop":
            error = NonFiniteError(
                f"step {self.state.step + 1}: how far sites have come holds a NaN or an infinity; lower "
                "training.learning_rate or that of strategy.outer, take shorter rounds, or set "
                'training.on_non_finite = "skip", which goes back to the anchor'
            )
            error.everywhere = True
            raise error

    def _note(self, loss, samples, measured, before):
        """Keep the row of a step; before: the seconds of all stages until then."""
        stages = self.member.stage_seconds
        self.rows.append(
            [
                loss,
                samples,
                measured.seconds["compute"],
                measured.seconds["allreduce"],
                *(stages[stage] - before[stage] for stage in ALLREDUCE_STAGES),
                measured.seconds["update"],
                measured.step_seconds,
                *self.member.sent_nbytes.values(),
            ]
        )

    @property
    def not_finite(self):
        """What was not finite in a step that was skipped, in words."""
        if not self.member.finite:
            return "how far sites have come is not finite, and all are back at the anchor"
        return (
            f"gradients of ranks {self.non_finite_ranks} are not finite"
            if self.non_finite_ranks
            else self.member.gradients.overflow
        )

    @property
    def anchor(self):
        """The parameters that all ranks hold alike: those of their last exchange."""
        return self.member.anchor(self.state.parameters)

    def mean_buffers(self):
        """Return name -> mean of what ranks hold beside the parameters, on every rank. Collective."""
        return mean_buffers(self.tiers.world, self.model, float(self.local.samples))

    def evaluate(self, local):
        """Return name -> mean over all ranks' samples `local`, as `evaluation.evaluate` does."""
        parameters = self.anchor
        with averaged(self.tiers.world, self.model, float(self.local.samples)):
            return evaluate(self.tiers.world, self.model, parameters, local)

    def take(self, local, rest=None):
        """Go on with other samples, `local`. Collective.

        rest: the `recovery.ledger.Rest` of an epoch that is under way; None between two epochs.
        """
        self.local, self.rest = local, rest
        self.member.reweigh(float(self._samples))

    @property
    def _samples(self):
        """How many samples this rank takes of an epoch, or of what is left of it."""
        return self.local.samples if self.rest is None else len(self.rest.rows)

    @property
    def _batches(self):
        """In how many steps it takes them."""
        return self.recipe.steps - (0 if self.rest is None else self.rest.since)

    def changed_at_once(self):
        """Return name -> array of what a step changes while gradients are summed."""
        return {
            **stored(self.model),
            **{f"strategy/{name}": array for name, array in self.member.state().items()},
        }

    def remembered_by_sums(self):
        """Return name -> array of `changed_at_once`: what sums remember, as `Member.memories` has it."""
        return {f"strategy/{name}": array for name, array in self.member.memories().items()}

    def arrays(self):
        """Return name -> array of this rank: all that the next steps depend on, but for the samples."""
        return {
            "parameters": self.state.parameters,
            **{f"optimiser/{name}": array for name, array in self.state.optimiser.items()},
            **stored(self.model),
            **{f"strategy/{name}": array for name, array in self.member.state().items()},
        }

    def load(self, step, arrays):
        """Go on after `step` from what `arrays` gave, in place."""
        self.state.step = self.told_step = step
        set_from_host(self.state.parameters, arrays["parameters"])
        for name, array in self.state.optimiser.items():
            set_from_host(array, arrays[f"optimiser/{name}"])
        take_stored(self.model, arrays)
        self.member.load(
            {
                name.removeprefix("strategy/"): array
                for name, array in arrays.items()
                if name.startswith("strategy/")
            }
        )

    def go_back(self, step, arrays):
        """Go on after `step` once more; what was measured of later steps is forgotten."""
        rows, told = self.rows[: len(self.rows) - (self.state.step - step)], self.told_step
        self.load(step, arrays)
        self.rows, self.told_step = rows, told
        self.undoing.forget()

    def told_of(self, step):
        """Return what else metrics.jsonl tells of a step, counted from 1, at home."""
        return {}

    def gather_dropped(self):
        """Return [step, client] of clients left out since the last call, at home. Collective."""
        return []

    def gather_rows(self):
        """Return float64[ranks, steps since the last call, MEASURED] at home, None elsewhere."""
        world, home = self.tiers.world, self.tiers.home
        rows = np.array(self.rows, np.float64).reshape(-1, len(MEASURED))
        self.rows.clear()
        rows, self.told_step = spread(rows, self.state.step - self.told_step), self.state.step
        everyone = gather(world, rows, home)
        return None if everyone is None else np.stack(everyone)
