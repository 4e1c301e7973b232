"""An optimiser of PyTorch's by its name, on the parameters of any model."""

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus import kernels
from isthmus.devices import library_name
from isthmus.errors import NoDeviceError, SettingsError
from isthmus.extras import how_to_install
from isthmus.models.model import Model

if TYPE_CHECKING:
    import torch

PREFIX = "torch.optim."
"""What the names of these begin with in a settings file."""
REFUSED = {
    "LBFGS": "it computes the loss several times a step",
    "SparseAdam": "it takes sparse gradients alone, and sums of ranks are dense",
}


class OfTorch:
    """What `optimiser.Optimiser` is, for a class of torch.optim.

    kind: its name, as in "torch.optim.AdamW". arguments: its own, but for the learning rate, which the
    schedule gives. What it remembers are its state's tensors, by the names of the model's.
    All ranks make the same step where PyTorch computes alike: processors of unlike kinds may not, which
    the comparison of replicas finds. ValueError for what PyTorch refuses; NoDeviceError without it.
    """

    def __init__(self, kind: str, arguments: Mapping[str, Any]):
        self.kind, self.arguments = kind, dict(arguments)
        self._class = _class_of(kind)
        if "lr" in self.arguments or "params" in self.arguments:
            raise ValueError(f"{kind}: give learning_rate under [training], and no lr or params")
        self._tensors: dict[str, tuple[slice, tuple[int, ...]]] = {}
        self._bound: Any = None
        import torch

        self._made([torch.zeros(1, 1)], 1.0)

    @property
    def LEARNING_RATE(self) -> float:  # noqa: N802  as the other optimisers have it
        """The one that PyTorch has where none is named."""
        return float(inspect.signature(self._class).parameters["lr"].default)

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    @property
    def moved_nbytes_per_entry(self) -> float:
        """See `Optimiser`; of the state that a matrix of 16 by 16 has after a step."""
        import torch

        optimizer = self._made([torch.zeros(16, 16)], 0.0)
        self._step(optimizer, [torch.zeros(16, 16)], 0.0)
        remembered = sum(value.numel() for _, value in self._state_of(optimizer) if _is_large(value))
        return 12.0 + 8 * remembered / 256

    def on(self, model: Model) -> "OfTorch":
        """Return the optimiser for that model's tensors; SettingsError where it does not take them."""
        bound = OfTorch(self.kind, self.arguments)
        bound._tensors = {
            name: (part, tuple(shape))
            for (name, shape), part in zip(model.shapes.items(), model.tensor_slices)
        }
        bound.begin(model.size, np.empty(0, np.float32))
        return bound

    def begin(self, size: int, like: Any) -> dict[str, Any]:
        """Return name -> array: `begun`, whether a step was made, and the state as a step leaves it."""
        tensors = self._views(np.zeros(size, np.float32))
        try:
            optimizer = self._made(tensors, 0.0)
            self._step(optimizer, self._views(np.zeros(size, np.float32)), 0.0)
        except (ValueError, RuntimeError) as problem:
            raise SettingsError(
                f"training.optimizer: {self.kind} does not take this model's tensors: "
                f"{' '.join(str(problem).split())}; choose another"
            ) from None
        self._bound = None
        remembered = {name: _flat(value) * 0 for name, value in self._state_of(optimizer)}
        return {"begun": np.zeros(1, np.uint8)} | remembered

    def step(
        self,
        parameters: Any,
        mean: Any,
        arrays: dict[str, Any],
        learning_rate: float,
        scale: float = 1.0,
    ) -> None:
        """See `Optimiser.step`; `mean` is overwritten where `scale` is not 1."""
        if scale != 1.0:
            kernels.for_array(mean).scale(mean, np.float32(scale), mean)
        if self._bound is None or self._bound[0] is not parameters or self._bound[1] is not arrays:
            self._bound = parameters, arrays, self._taken_up(parameters, arrays)
        elif not arrays["begun"][0]:
            self._bound[2].state.clear()
        optimizer = self._bound[2]
        self._step(optimizer, self._views(mean), learning_rate)
        arrays["begun"][0] = 1
        arrays |= {name: _flat(value) for name, value in self._state_of(optimizer)}

    def _taken_up(self, parameters, arrays):
        """Return an optimizer of torch's that goes on from `arrays`."""
        optimizer = self._made(self._views(parameters), 0.0)
        if not arrays["begun"][0]:
            return optimizer
        other = self._made(self._views(np.zeros(parameters.size, np.float32)), 0.0)
        self._step(other, self._views(np.zeros(parameters.size, np.float32)), 0.0)
        for mine, like, name in zip(_parameters_of(optimizer), _parameters_of(other), self._names()):
            optimizer.state[mine] = {
                key: _as_was(value, arrays.get(f"{name}/{key}"), mine)
                for key, value in other.state[like].items()
            }
        return optimizer

    def _names(self):
        return self._tensors or {"parameters": None}

    def _views(self, vector):
        """Return the tensors that `vector` holds, which share its memory."""
        import torch

        flat = (
            torch.as_tensor(vector, device="cuda")
            if library_name(vector) == "cupy"
            else torch.from_numpy(vector)
        )
        if not self._tensors:
            return [flat]
        return [flat[part].view(shape) for part, shape in self._tensors.values()]

    def _made(self, tensors: "list[torch.Tensor]", learning_rate: float) -> "torch.optim.Optimizer":
        """Return an optimizer of torch's for these tensors. ValueError for what PyTorch refuses."""
        for tensor in tensors:
            tensor.requires_grad_()
        try:
            return self._class(tensors, lr=learning_rate, **self.arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError) as problem:
            raise ValueError(f"{self.kind}: {' '.join(str(problem).split())}") from None

    def _step(self, optimizer, gradients, learning_rate):
        for parameter, gradient in zip(_parameters_of(optimizer), gradients):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()

    def _state_of(self, optimizer) -> Iterator[tuple[str, Any]]:
        """Yield (name, tensor or number) of all that the optimizer remembers."""
        for parameter, name in zip(_parameters_of(optimizer), self._names()):
            for key, value in optimizer.state[parameter].items():
                if value is not None:
                    yield f"{name}/{key}", value


def _class_of(kind):
    """Return the class of torch.optim that `kind` names."""
    try:
        import torch
    except ImportError as problem:
        raise NoDeviceError(
            f"training.optimizer: {kind} needs PyTorch, isthmus[torch]: it cannot be imported "
            f"({problem}); {how_to_install('torch')}"
        ) from None
    known = {
        name: each
        for name, each in vars(torch.optim).items()
        if inspect.isclass(each)
        and issubclass(each, torch.optim.Optimizer)
        and each is not torch.optim.Optimizer
    }
    name = kind.removeprefix(PREFIX)
    if name in REFUSED:
        raise ValueError(f"{kind} cannot be used: {REFUSED[name]}; choose another")
    if name not in known:
        from isthmus.toml_files import nearest  # with what not every machine has

        close = nearest(name, known)
        raise ValueError(f"torch.optim has no {name!r}" + (f"; {close}" if close else ""))
    return known[name]


def _parameters_of(optimizer):
    return [each for group in optimizer.param_groups for each in group["params"]]


def _is_large(value):
    """Whether what an optimizer remembers is more than a number or two."""
    return hasattr(value, "numel") and value.numel() > 2


def _flat(value):
    """Return what an optimizer remembers as an array of one dimension: of a tensor, its memory."""
    if not hasattr(value, "detach"):
        return np.array([value])
    flat = value.detach().reshape(-1)
    if flat.device.type == "cpu":
        return flat.numpy()
    import cupy

    return cupy.asarray(flat)


def _as_was(value, array, parameter):
    """Return a state's entry like `value` that shares the memory of `array`."""
    import torch

    if value is None or array is None:
        return value
    if not hasattr(value, "detach"):
        return array[0].item()
    device = parameter.device if library_name(array) == "cupy" else "cpu"
    return torch.as_tensor(array, device=device).view(value.shape)
