"""A module that all ranks train together: gradients are means over them when `backward()` returns."""

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from isthmus import kernels
from isthmus.collectives.allreduce import Allreduce
from isthmus.compression.compressor import Compressor
from isthmus.errors import CheckpointError
from isthmus.links.agreement import broadcast_json, raise_first
from isthmus.quantities import real, whole
from isthmus.torch.buffers import average_over_ranks, copy_from_first
from isthmus.torch.flat_gradients import FlatGradients, described, difference, digest

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers

VERSION = 1
"""Of what `state_dict` gives."""
AS_GOOD_AS_ONE = 2.0**-20
"""How far the shares of all ranks, each rounded to float32, may add up to something else than 1."""


class Shared:
    """Shares a module's gradients: after `loss.backward()` every `.grad` is the weighted mean over all
    ranks, of the same bits on each.

    model: a torch.nn.Module, which stays the caller's; it begins with rank 0's parameters and buffers.
    tiers: the communicators that `split_tiers` gives. compressor: used between sites; None is float32.
    weight: this rank's share, not yet normalised. buckets: the gradient leaves in so many parts, while
    the rest of the backward pass goes on. accumulate: backward passes between two exchanges; the
    gradient is then the mean over them, too. algorithm, error_feedback, chunk_nbytes: as
    `Allreduce` has them. average_each_step: call `average_buffers` with every exchange.

    All ranks make as many backward passes; one that has no batch calls `finish` in the place of one, and
    counts as a gradient of zeros (for nothing, with a weight of 0). What a parameter's gradient is
    where only some ranks used it is their weighted mean with zeros; where none did it is None. Gradients
    travel as float32 whatever the parameters are, and are rounded back alike. float32 gradients on the
    host are views of one vector, a new one each step; the optimiser, clipping and torch.amp.GradScaler,
    which skips the same steps everywhere, need nothing.

    Making one is collective: ValueError on all ranks where models differ in names, shapes or dtypes,
    have nothing to train, or an argument is wrong on any. Where a rank's gradient cannot be sent (it is
    sparse, or of a parameter that was frozen), `backward` raises on all.

    allreduce: the Allreduce, with its counts of bytes and seconds.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tiers: "Tiers",
        compressor: Compressor | None = None,
        weight: float = 1.0,
        buckets: int = 4,
        accumulate: int = 1,
        *,
        algorithm: str = "hierarchical",
        error_feedback: bool = True,
        chunk_nbytes: int | None = None,
        average_each_step: bool = False,
    ):
        self.model, self._world, problem = model, tiers.world, None
        try:
            self.accumulate = whole("accumulate", accumulate, least=1)
            buckets = whole("buckets", buckets, least=1)
            self._flat = FlatGradients(model, buckets, head_apart=compressor is not None)
            first = [described(model), self.accumulate, bool(average_each_step)]
        except ValueError as wrong:  # on this rank alone, perhaps
            problem = wrong
        raise_first(self._world, problem)
        told = broadcast_json(self._world, first)
        raise_first(self._world, self._unlike(first, told))
        self.average_each_step = bool(average_each_step)
        flat = self._flat
        if hasattr(compressor, "shapes"):  # of the parameters, unless told
            shapes = compressor.shapes or flat.shapes
            compressor = replace(compressor, shapes=((flat.head.size,), *shapes))
        exact = [None] if compressor is not None else []
        self.allreduce = Allreduce(
            tiers,
            flat.size,
            algorithm,
            [compressor] * (len(flat.buckets) - len(exact)) + exact,
            error_feedback,
            weight,
            flat.buckets,
            chunk_nbytes,
            like=flat.head,
        )
        self._weight = float(weight)
        copy_from_first(self._world, [*model.parameters(), *model.buffers()])
        self._lock = threading.Lock()  # hooks run in a thread for each device
        self._passes, self._task = 0, None
        self._begin()
        self._hooks = [
            each.register_post_accumulate_grad_hook(self._hook_of(bucket))
            for each, bucket in zip(flat.parameters, flat.bucket_of)
        ]

    @property
    def weight(self) -> float:
        """This rank's share, not yet normalised; it may be set from batch to batch, by each rank alone.

        What it is when a backward pass ends counts for all that is then exchanged. What is no weight is
        told to all ranks when the next `backward` ends.
        """
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        try:
            self._weight = real("weight", weight, least=0)
            self.allreduce.weigh(self._weight)
        except ValueError as problem:
            self.allreduce.fail(problem)

    @property
    def finite(self) -> bool:
        """Whether the last mean was free of NaN and infinity; if not, on all ranks alike."""
        return self.allreduce.finite

    @property
    def sent_nbytes(self) -> dict[str, int]:
        """Bytes that this rank has handed to MPI so far, to its own "site" and over a "link"."""
        return self.allreduce.sent_nbytes

    def predicted_nbytes(self) -> dict[str, int]:
        """Return the bytes that one exchange makes this rank send, from the formula alone."""
        return self.allreduce.predicted_nbytes()

    def finish(self) -> None:
        """Take part in the exchange of a step: for a rank that has no batch, and so no backward pass."""
        self._end_of_pass()

    def average_buffers(self) -> None:
        """Give BatchNorm's statistics and other buffers the same bits on all ranks. Collective.

        For evaluation and checkpoints: real numbers become the mean over ranks by their weights,
        taken in float64; counts, which are whole numbers, the largest.
        """
        average_over_ranks(self._world, self.model.buffers(), self._weight)

    def close(self) -> None:
        """Leave the module alone from now on."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        """Return what this rank needs to go on with the same bits, beside model and optimiser.

        Tensors, numbers and text: `torch.load(..., weights_only=True)` reads it. Each rank stores its
        own: what compressors have kept differs. ValueError between the passes of one exchange.
        """
        if self._passes:
            raise ValueError(
                f"{self._passes} of {self.accumulate} backward passes are made: ask for the state after "
                "an exchange"
            )
        arrays = self.allreduce.state()
        return {
            "version": VERSION,
            "model_sha256": digest(self.model),
            "rank": self._world.rank,
            "ranks": self._world.size,
            "settings": self.allreduce.settings,
            "weight": self._weight,
            "total_weight": self.allreduce.total_weight,
            "allreduce": {name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave on this rank. Collective.

        CheckpointError on all ranks where that is another model's, another rank's or otherwise wrong on
        any; then nothing is changed.
        """
        problem = self._unfit(state)
        raise_first(self._world, None if problem is None else CheckpointError(problem))
        self._weight = state["weight"]
        self.allreduce.total_weight = state["total_weight"]
        self.allreduce.weigh(self._weight)
        self.allreduce.load({name: each.numpy() for name, each in state["allreduce"].items()})

    def _unfit(self, state):
        """Return in words why `state` is not one of this rank, or None."""
        try:
            mine = self.state_dict()
        except ValueError as problem:
            return str(problem)
        if not isinstance(state, dict) or mine.keys() != state.keys():
            return "this is no state of isthmus.torch.Shared; give what its state_dict() gave"
        for key, what in (
            ("version", "of another version of isthmus"),
            ("model_sha256", "of another model: names, shapes or dtypes differ"),
            ("ranks", "of a job with another number of ranks"),
            ("rank", "another rank's: each rank loads what it has stored"),
            ("settings", "of another compressor, algorithm, or buckets"),
        ):
            if mine[key] != state[key]:
                return f"the state is {what} ({state[key]!r:.200}, not {mine[key]!r:.200})"
        try:
            real("weight", state["weight"], least=0)
            if not real("total_weight", state["total_weight"], least=0):
                return "the state has a total weight of 0"
        except ValueError as problem:
            return f"the state is damaged: {problem}"
        for name, own in mine["allreduce"].items():
            given = state["allreduce"].get(name) if isinstance(state["allreduce"], dict) else None
            if not isinstance(given, torch.Tensor) or (given.dtype, given.shape) != (
                own.dtype,
                own.shape,
            ):
                return f"the state is damaged: {name} is not {own.dtype} of shape {tuple(own.shape)}"
        return None

    def _unlike(self, mine, first):
        """Return the ValueError of a rank that asks for something else than rank 0, or None."""
        words = difference(mine[0], first[0])
        if words is not None:
            return ValueError(
                f"models differ between ranks: rank {self._world.rank}'s is not rank 0's, {words}; "
                "make the same model on every rank"
            )
        if mine[1:] != first[1:]:
            return ValueError(
                f"accumulate and average_each_step differ between ranks: {mine[1:]}, not {first[1:]}"
            )
        return None

    def _begin(self):
        """Wait for all gradients of all buckets."""
        self._missing = [len(members) for members in self._flat.members]
        self._missing[-1] += 1  # the head, which says what was used: known when all is over
        self._next = 0

    def _hook_of(self, bucket):
        """Return what torch is to call when a gradient of `bucket` is ready: in any thread."""

        def ready(_):
            with self._lock:
                task = torch._C._current_graph_task_id()
                if task != self._task:
                    self._begin_pass(task)
                if self._passes + 1 == self.accumulate:
                    self._missing[bucket] -= 1
                    while self._missing[self._next] == 0:
                        self._start()

        return ready

    def _begin_pass(self, task):
        """Be called when the backward pass `task` is over: DDP has no other way to know it either."""
        if self._task is not None and self._next:  # the last pass has raised, on all ranks or none
            for part in self._flat.buckets[self._next :]:
                self.allreduce.start(np.zeros(part.stop - part.start, np.float32))
            self.allreduce.finish()
        if self._task is not None:
            self._begin()
        self._task = task
        torch.autograd.Variable._execution_engine.queue_callback(self._end_of_pass)

    def _start(self):
        """Start the next bucket: one order on all ranks, whatever was ready first."""
        try:
            pieces = self._flat.pieces(self._next)
        except ValueError as problem:  # all ranks are told when they finish
            self.allreduce.fail(problem)
            pieces = []
        self.allreduce.start(pieces)
        self._next += 1

    def _end_of_pass(self):
        self._task = None
        self._passes += 1
        if self._passes < self.accumulate:
            return
        self._passes = 0
        frozen = self._flat.unexpected()
        if frozen is not None:
            self.allreduce.fail(
                ValueError(
                    f"the parameter {frozen!r} was frozen when the model was shared, and has a gradient "
                    "now; make another isthmus.torch.Shared after requires_grad is changed"
                )
            )
        try:
            while self._next < len(self._flat.buckets):
                self._start()
            mean = self.allreduce.finish()
        finally:
            self._begin()
        counted = float(mean[0]) * self.accumulate
        if counted > 0 and abs(counted - 1) > AS_GOOD_AS_ONE:
            kernels.for_array(mean).scale(mean, np.float32(1 / counted), mean)
        self._flat.give(mean)
        if self.average_each_step:
            self.average_buffers()
