"""Local steps in a loop of one's own: sites train a module apart, and now and then go on together."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from isthmus.compression.compressor import Compressor
from isthmus.errors import CheckpointError
from isthmus.links.agreement import raise_first
from isthmus.outer import Average, Outer
from isthmus.torch.buffers import average_over_ranks, copy_from_first
from isthmus.torch.flat_gradients import digest
from isthmus.torch.shared import Shared
from isthmus.training.strategies.local_steps import LocalSteps as Rounds
from isthmus.training.strategies.sums import Sums

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers

AVERAGE = Average()


class LocalSteps:
    """Has sites exchange how far a module has come, after every so many steps of an optimiser.

        with isthmus.torch.LocalSteps(model, optimizer, tiers, every=16):
            for features, targets in ...:  # the loop as it is

    model, optimizer: the caller's; the module begins with rank 0's parameters and buffers. Gradients are
    exact means inside a site when `backward` returns, as `Shared` has them; what `optimizer.step` has
    done is exchanged after every `every`-th call. The block's end is an exchange of all that is left,
    after which all ranks hold the same parameters.
    every, outer, late: as `isthmus.LocalSteps` has them. compressor: used between sites; None is
    float32. weight: this rank's share, not yet normalised. buckets: of gradients inside a site.

    All ranks call `optimizer.step` as often. The anchor and the outer optimiser are float32. Making one
    is collective: ValueError on all ranks where models or arguments differ or are wrong on any.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        tiers: "Tiers",
        every: int = 16,
        outer: Outer | str | dict[str, Any] = AVERAGE,
        compressor: Compressor | None = None,
        *,
        late: int = 0,
        weight: float = 1.0,
        buckets: int = 1,
    ):
        self.model, self._optimizer, self._world, problem = model, optimizer, tiers.world, None
        try:
            if every == "auto":
                raise ValueError('every = "auto" is for a run\'s settings; give a number of steps')
            rounds = Rounds(every, outer, late=late)
        except ValueError as wrong:  # on this rank alone, perhaps
            problem = wrong
        raise_first(self._world, problem)
        self._shared = Shared(model, tiers.within_site(), weight=weight, buckets=buckets)
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        copy_from_first(self._world, [*model.parameters(), *model.buffers()])
        flat = self._flat()
        sums = Sums(tiers, flat.size, weight, compressor=compressor, like=flat)
        self._member = rounds.join(sums, float("inf"))
        self._member.begin(flat)
        self._hook = None

    def __enter__(self) -> Self:
        self._hook = self._optimizer.register_step_post_hook(self._after_step)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if error_type is None:  # an exchange is collective: a rank that fails would leave others waiting
            self.exchange()
            self._shared.close()

    @property
    def finite(self) -> bool:
        """Whether the last exchange was free of NaN and infinity; if not, on all ranks alike, and sites
        went back to where they were after the one before."""
        return self._member.finite

    @property
    def sent_nbytes(self) -> dict[str, int]:
        """Bytes that this rank has handed to MPI so far, to its own "site" and over a "link"."""
        within, across = self._shared.sent_nbytes, self._member.sent_nbytes
        return {way: within[way] + across[way] for way in across}

    def exchange(self) -> None:
        """Exchange now what has not been yet: all ranks then hold the same parameters. Collective.

        For evaluation and a saved model; buffers become their means.
        """
        flat = self._flat()
        self._member.end(flat)
        self._set(flat)
        average_over_ranks(self._world, self.model.buffers(), self._shared.weight)

    def state_dict(self) -> dict[str, Any]:
        """Return what this rank needs to go on with the same bits, beside model and optimiser.

        Collective. Tensors, numbers and text: `torch.load(..., weights_only=True)` reads it. Each rank
        stores its own.
        """
        arrays = self._member.state()
        return {
            "model_sha256": digest(self.model),
            "rank": self._world.rank,
            "arrays": {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()},
            "shared": self._shared.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave on this rank. Collective.

        CheckpointError on all ranks where that is another model's, another rank's or of other rounds.
        """
        problem, mine = None, self.state_dict()
        if not isinstance(state, dict) or state.keys() != mine.keys():
            problem = "this is no state of isthmus.torch.LocalSteps; give what its state_dict() gave"
        elif any(state[key] != mine[key] for key in ("model_sha256", "rank")):
            problem = (
                "the state is another model's or another rank's: each rank loads what it has stored"
            )
        elif {name: each.shape for name, each in state["arrays"].items()} != {
            name: each.shape for name, each in mine["arrays"].items()
        }:
            problem = "the state is of other rounds: outer, late and compressor are as they were stored"
        raise_first(self._world, problem and CheckpointError(problem))
        self._shared.load_state_dict(state["shared"])
        self._member.load({name: each.numpy() for name, each in state["arrays"].items()})

    def _after_step(self, *_: Any) -> None:
        acts = self._member.acts()
        if acts:
            flat = self._flat()
            for act in acts:
                act(flat)
            self._set(flat)

    def _flat(self) -> np.ndarray:
        """Return all parameters that are trained as one new float32 vector on the host."""
        with torch.no_grad():
            parts = [each.detach().to("cpu", torch.float32).reshape(-1) for each in self._parameters]
            return torch.cat(parts).numpy()

    def _set(self, flat: np.ndarray) -> None:
        """Overwrite all parameters that are trained."""
        with torch.no_grad():
            lengths = [each.numel() for each in self._parameters]
            for each, part in zip(self._parameters, torch.from_numpy(flat).split_with_sizes(lengths)):
                each.copy_(part.view(each.shape))
