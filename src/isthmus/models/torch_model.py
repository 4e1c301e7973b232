"""A model that a user's nn.Module is: its parameters are views of the flat float32 vector.

The vector holds the module's trainable parameters in the order of `named_parameters()`, each in its own
shape; tied ones once, frozen ones not at all. Where parameters are not float32 (bfloat16, float16,
float64), the vector is the master copy, from which they are rounded before each forward pass; their
gradients become float32.

What else a rank holds are `buffers`: those of the module that its `state_dict` has (BatchNorm's), and
its frozen parameters.

Features go to the module as [batch, ...] in the shape that they were packed in, or in `inputs`:

- uint8 is brought to -1/2 ... 1/2, as for the built-in models;
- other whole numbers go in as int64, as embeddings take them;
- floats, in the dtype of the module's first parameter.

Targets are int64 or float32. On a GPU the module and its batches are there, and gradients are ready all
at once, at the end of the backward pass: PyTorch makes it in a thread of its own there.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isthmus.devices import library_name, library_of
from isthmus.errors import ModelError
from isthmus.models.model import Model
from isthmus.models.own_code import OwnCode
from isthmus.models.own_loss import OwnLoss
from isthmus.models.torch_module import Sloped, check_depends, check_module

TRIED_SAMPLES = 2
"""In a dry pass: BatchNorm takes no less."""


class TorchModel(Model):
    """An nn.Module as training sees it.

    make: gives a new module. name: of that function, for messages. code: the user's, whose errors are
    told. loss: a Loss of `models.losses`, or an OwnLoss. inputs: the shape of a sample's features as
    the module takes them; None: as they were packed.
    """

    loss: Any = None
    outputs = 0  # known once it was tried out
    shapes: dict[str, tuple[int, ...]] = {}  # noqa: RUF012

    def __init__(
        self,
        make: Callable[[], Any],
        name: str,
        code: OwnCode,
        loss: Any,
        inputs: Sequence[int] | None = None,
    ):
        self._make, self.name, self.code, self.loss = make, name, code, loss
        self._inputs = None if inputs is None else tuple(inputs)
        self._tried: Any = None
        self._take(self._made(0))

    @property
    def inputs_shape(self) -> tuple[int, ...] | None:
        return self._inputs

    @property
    def size(self) -> int:
        return self.tensor_slices[-1].stop

    @property
    def tensor_slices(self) -> list[slice]:
        return self._slices

    @property
    def matrix_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes in order, as `LowRank` takes them: (outputs, all others)."""
        return tuple(self.shapes.values())

    def initial(self, seed: int) -> npt.NDArray[np.float32]:
        """Return the parameters of a new module, made after `torch.manual_seed(seed)`."""
        before = self.shapes
        self._take(self._made(seed))
        if self.shapes != before:
            raise ModelError(
                f"{self.name}: gives a module with other parameters each time; it may depend on its "
                "arguments alone"
            )
        vector = np.empty(self.size, np.float32)
        for part, parameter in zip(self._slices, self._parameters):
            vector[part] = _on_host(parameter).reshape(-1)
        return vector

    def gradient(
        self,
        parameters: np.ndarray,
        features: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        ready: Callable[[int], Any] | None = None,
    ) -> float:
        """See `Model.gradient`. The sum is that of the named loss, or the own loss times the samples."""
        if len(targets) != len(features):
            raise ValueError(f"{len(features)} features, but {len(targets)} targets")
        self._ready = ready or (lambda first: None)
        if len(features) == 0:
            gradient[:] = 0
            self._ready(0)
            return 0.0
        self._bind(parameters)
        if self._gradient is not gradient:
            self._gradient, self._parts = gradient, self._tensors_of(gradient)
        self._done = [False] * len(self._parameters)
        self._tail, self._problem = len(self._parameters), None
        self._set_mode(training=True)
        try:
            with self.code.running(f"{self.name}: a step of the module"), torch.enable_grad():
                total = self._backward(features, targets)
        except Exception:
            if self._problem is not None:  # no error of the user's code
                raise self._problem from None
            raise
        finally:
            for parameter in self._parameters:
                parameter.grad = None
        for done, part in zip(self._done, self._parts):
            if not done:
                part.zero_()  # not used in this step
        if self._tail > 0:
            self._ready(0)
        return total

    def clipped_gradient(
        self, parameters: np.ndarray, features: Any, targets: Any, clip: float, gradient: np.ndarray
    ) -> None:
        """As that of `FlatModel`. ModelError for a module in which samples meet."""
        from isthmus.models.torch_samples import add_clipped

        gradient[:] = 0
        self._bind(parameters)
        self._set_mode(training=True)
        batch = self._prepared(features), _targets(targets, self._parameters[0].device)
        with self.code.running(f"{self.name}: the module, sample by sample (torch.func.vmap)"):
            add_clipped(self.module, self.name, self.loss, *batch, clip, self._tensors_of(gradient))

    def scores(self, parameters: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return float32[batch, outputs]: what the module gives in evaluation mode."""
        self._bind(parameters)
        self._set_mode(training=False)
        with self.code.running(f"{self.name}: the module"), torch.no_grad():
            scores = self._scores_of(features)
        return library_of(parameters).asarray(scores.detach())

    def try_out(self, features: np.ndarray, targets: np.ndarray) -> None:
        """See `Model.try_out`: a pass forwards and backwards of zeros, which leaves nothing behind."""
        tried = features.shape[1:], features.dtype, targets.shape[1:], targets.dtype
        if self._tried == tried:
            return
        if self._inputs is not None and math.prod(self._inputs) != math.prod(features.shape[1:]):
            raise ModelError(
                f"{self.name}: inputs = {list(self._inputs)} are {math.prod(self._inputs)} numbers a "
                f"sample, the data has {list(features.shape[1:])}; change inputs under [model]"
            )
        batch = [np.zeros((TRIED_SAMPLES, *each.shape[1:]), each.dtype) for each in (features, targets)]
        told = f"{self.name}: trying the module with features {batch[0].dtype}{list(batch[0].shape)}" + (
            f", as [{TRIED_SAMPLES}, {', '.join(map(str, self._inputs))}]," if self._inputs else ""
        )
        before = self.buffers()
        hooked, self._hooked = self._hooked, False
        self._set_mode(training=True)
        try:
            with self.code.running(told), torch.random.fork_rng(devices=[]), torch.enable_grad():
                scores = self._scores_of(batch[0])
                self.outputs = scores.shape[1]
                if not self.loss.complaint(batch[1][:0], self.outputs):  # that is told of the data
                    self._start_backward(scores, batch[1])
        finally:
            self._hooked = hooked
            for parameter in self._parameters:
                parameter.grad = None
            self.set_buffers(before)
        self._tried = tried

    def begin_step(self, seed: int, rank: int, step: int) -> None:
        number = _mixed(seed, rank, step)
        torch.default_generator.manual_seed(number)  # torch.manual_seed also notes who called, slowly
        if self._parameters[0].device.type == "cuda":
            torch.cuda.manual_seed(number)

    def buffers(self) -> dict[str, np.ndarray]:
        return {name: _on_host(tensor).copy() for name, tensor in self._others().items()}

    def set_buffers(self, arrays: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, tensor in self._others().items():
                tensor.copy_(torch.from_numpy(np.array(arrays[name])).reshape(tensor.shape))

    def state_dict(self, parameters: np.ndarray) -> dict[str, torch.Tensor]:
        """Return copies of all that `load_state_dict` of such a module takes, with these parameters."""
        self._bind(parameters)
        state = self.module.state_dict()
        return {_plain(name): each.detach().cpu().clone() for name, each in state.items()}

    def _made(self, seed):
        """Return a new module, checked."""
        with self.code.running(self.name), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._make()
        return check_module(module, self.name)

    def _take(self, module):
        """Have `module` be the one that is trained."""
        named = {_plain(name): each for name, each in module.named_parameters() if each.requires_grad}
        self.module, self._parameters = module, list(named.values())
        self.shapes = {name: tuple(each.shape) for name, each in named.items()}
        self.dtypes = {name: str(each.dtype).removeprefix("torch.") for name, each in named.items()}
        lasts = [0, *itertools.accumulate(each.numel() for each in self._parameters)]
        self._slices = [slice(first, last) for first, last in itertools.pairwise(lasts)]
        self._masters = [each.dtype != torch.float32 for each in self._parameters]
        self._dtype = self._parameters[0].dtype
        self._bound = self._gradient = self._training = None
        self._hooked = True  # whether gradients that arrive are those of a step
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, index))

    def _others(self):
        """Return name -> tensor of what is kept besides the trained parameters."""
        kept = self.module.state_dict(keep_vars=True).keys()
        frozen = {name: each for name, each in self.module.named_parameters() if not each.requires_grad}
        named = {name: each for name, each in self.module.named_buffers() if name in kept} | frozen
        return {_plain(name): each.detach() for name, each in named.items()}

    def _bind(self, parameters):
        """Have the module's parameters be views of `parameters`, or those rounded to their dtype."""
        if self._bound is not parameters:
            if not (library_name(parameters) == "cupy" or parameters.flags.writeable):
                parameters = parameters.copy()
            tensors = self._tensors_of(parameters)
            if tensors[0].device != self._parameters[0].device:
                self.module.to(tensors[0].device)
            for parameter, tensor, is_master in zip(self._parameters, tensors, self._masters):
                if not is_master:
                    parameter.data = tensor
            self._bound, self._values = parameters, tensors
        with torch.no_grad():
            for parameter, tensor, is_master in zip(self._parameters, self._values, self._masters):
                if is_master:
                    parameter.data.copy_(tensor)

    def _tensors_of(self, vector):
        """Return a view of the flat `vector` for each parameter."""
        flat = (
            torch.as_tensor(vector, device="cuda")
            if library_name(vector) == "cupy"
            else torch.from_numpy(vector)
        )
        return [flat[part].view(shape) for part, shape in zip(self._slices, self.shapes.values())]

    def _set_mode(self, training):
        if self._training is not training:
            self.module.train(training)
            self._training = training

    def _backward(self, features, targets):
        """Make a step's passes; return the batch's summed loss."""
        return self._start_backward(self._scores_of(features), targets)

    def _start_backward(self, scores, targets):
        """Go backwards from the summed loss of `scores`; return it."""
        if isinstance(self.loss, OwnLoss):
            summed = self.loss.sum_of(scores, _targets(targets, scores.device))
            check_depends(summed, self.name)
            summed.backward()
            return float(summed.detach())
        check_depends(scores, self.name)
        plain = scores.detach()
        given = plain.numpy() if plain.device.type == "cpu" else _cupy().asarray(plain)
        total, slope = self.loss.value_and_slope(given, targets)
        Sloped.apply(
            scores, torch.as_tensor(slope, device=scores.device).reshape(scores.shape)
        ).backward()
        return total

    def _scores_of(self, features):
        """Return what the module makes of a batch, as float32[batch, outputs]."""
        scores = self.module(self._prepared(features))
        if not isinstance(scores, torch.Tensor) or not scores.ndim or len(scores) != len(features):
            given = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise ModelError(
                f"{self.name}: the module gives {given} for {len(features)} samples; have its forward "
                "return a tensor [batch, outputs]"
            )
        if scores.ndim > 2 and not isinstance(self.loss, OwnLoss):
            raise ModelError(
                f"{self.name}: the module gives {list(scores.shape)}; have its forward return "
                "[batch, outputs], or name a loss of your own under [model]"
            )
        return scores.float() if scores.ndim > 1 else scores.float()[:, None]

    def _prepared(self, features):
        """Return the batch as the tensor that the module takes."""
        shape = features.shape[1:] if self._inputs is None else self._inputs
        if features.dtype.kind in "iub" and features.dtype != np.uint8:
            features = features.astype(np.int64)
        values = torch.from_numpy(np.ascontiguousarray(features)).reshape(len(features), *shape)
        values = values.to(self._parameters[0].device)
        if features.dtype == np.uint8:
            return values.to(torch.float32).mul_(1 / 255).sub_(0.5).to(self._dtype)
        return values if values.dtype == torch.int64 else values.to(self._dtype)

    def _arrived(self, index, parameter):
        """Take a parameter's gradient, and tell how much of the vector's end is final."""
        if not self._hooked:
            return
        if self._done[index]:
            raise ModelError(
                f"{self.name}: the gradient of {list(self.shapes)[index]} arrives twice in one step, as "
                "with checkpoint(..., use_reentrant=True); set use_reentrant=False"
            )
        gradient, parameter.grad = parameter.grad, None
        self._parts[index].copy_(gradient.to_dense() if gradient.is_sparse else gradient)
        self._done[index] = True
        before = self._tail
        while self._tail and self._done[self._tail - 1]:
            self._tail -= 1
        if self._tail < before and gradient.device.type == "cpu":
            try:
                self._ready(self._slices[self._tail].start)
            except BaseException as problem:
                self._problem = problem
                raise
        elif self._tail == 0:
            self._tail = 1  # told at the end, by the thread that asked for the step


def _plain(name):
    """Return a parameter's name without what torch.compile puts before it."""
    return name.replace("_orig_mod.", "")


def _targets(targets, device):
    kind = np.int64 if targets.dtype.kind in "iub" else np.float32
    return torch.from_numpy(np.ascontiguousarray(targets, kind)).to(device)


def _on_host(tensor):
    """Return a tensor as an array; 16 bits as float32, as MPI and NumPy know no other."""
    host = tensor.detach().cpu()
    return (host.float() if host.dtype in (torch.bfloat16, torch.float16) else host).numpy()


def _mixed(seed, rank, step):
    """Return 63 bits that differ for any two of (seed, rank, step): splitmix64's mixing."""
    mixed = 0
    for number in (seed, rank, step):
        mixed = (mixed + number + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed >> 1


def _cupy():
    import cupy

    return cupy
