"""Models of a user's own, from `[model] kind = "my_models:make_net"` in a run's settings."""

import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.errors import ModelError
from isthmus.models.losses import LOSSES
from isthmus.models.model import Model
from isthmus.models.own_code import OwnCode, is_own

CONTRACT = ("size", "shapes", "tensor_slices", "outputs", "initial", "gradient", "scores")
"""What a model that is no nn.Module has to have: see `models.model.Model`."""


class OwnFlatModel(Model):
    """An object of the user's that fulfils `Model`, or so much of it as `CONTRACT` names.

    made: that object. name: of the function that gave it, for messages. loss: what it has where it names
    none itself.
    """

    size, shapes, tensor_slices, outputs, loss = 0, {}, [], 0, None
    inputs_shape, matrix_shapes = None, ()

    def __init__(self, made: Any, name: str, code: OwnCode, loss: Any):
        missing = [each for each in CONTRACT if not hasattr(made, each)]
        if missing:
            raise ModelError(
                f"{name}: gives a {type(made).__name__}; return a torch.nn.Module, or an object with "
                f"{', '.join(missing)} (isthmus.models.model.Model)"
            )
        self.loss = loss
        for each in CONTRACT[:4] + ("inputs_shape", "matrix_shapes", "loss"):
            if hasattr(made, each):
                setattr(self, each, getattr(made, each))
        if self.size < 1:
            raise ModelError(f"{name}: the model has no parameters; there is nothing to train")
        for each in ("try_out", "begin_step", "buffers", "set_buffers", "views"):
            if hasattr(made, each):
                setattr(self, each, _told(getattr(made, each), f"{name}: {each}", code))
        self.initial, self.gradient, self.scores = (
            _told(getattr(made, each), f"{name}: {each}", code) for each in CONTRACT[4:]
        )


def _told(function, what, code):
    """Return `function` with what it raises told as the user's."""

    def call(*given, **named):
        with code.running(what):
            return function(*given, **named)

    return call


def make_own(
    kind: str,
    arguments: Mapping[str, Any],
    *,
    folder: Path | None = None,
    loss: str = "cross_entropy",
    metrics: Sequence[str] = (),
    inputs: Sequence[int] | None = None,
    sources: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> Any:
    """Return the Model that the function `kind` gives for `arguments`.

    folder: where modules are looked for first. loss: a name in `LOSSES`, or "module:function".
    metrics: what an own loss is told with: "accuracy", or "module:function". inputs: the shape of a
    sample's features; the function is given it too where it has an argument of that name. sources: what
    `OwnCode.sources` has to say here. threads: of PyTorch's arithmetic. Raises ModelError.
    """
    code = OwnCode(folder)
    if sources is not None:
        _check_sources(code.sources(*references(kind, loss, metrics)), sources)
    function = code.find(kind)
    arguments = dict(arguments)
    if inputs is not None and "inputs" in _names(function):
        arguments["inputs"] = tuple(inputs)
    _check_arguments(kind, function, arguments)

    def make():
        return function(**arguments)

    with code.running(kind):
        made = make()
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(made, torch.nn.Module):
        return OwnFlatModel(made, kind, code, _named_loss(loss))
    from isthmus.models.torch_model import TorchModel

    if threads is not None:
        torch.set_num_threads(threads)
    return TorchModel(make, kind, code, _loss(loss, metrics, code), inputs)


def references(kind: str, loss: str, metrics: Sequence[str]) -> list[str]:
    """Return those that name a function of the user's own."""
    return [kind, *filter(is_own, [loss, *metrics])]


def _loss(loss, metrics, code):
    if not is_own(loss):
        return _named_loss(loss)
    from isthmus.models.own_loss import METRICS, OwnLoss

    functions = {}
    for metric in metrics:
        if not is_own(metric) and metric not in METRICS:
            raise ModelError(
                f"metrics: there is no {metric!r}; name {', '.join(METRICS)}, or a function of your "
                'own as in "my_models:top5"'
            )
        functions[metric.rpartition(":")[2]] = code.find(metric) if is_own(metric) else METRICS[metric]
    return OwnLoss(code.find(loss), loss, code, functions)


def _named_loss(loss):
    if loss not in LOSSES:
        raise ModelError(
            f"loss must be one of {', '.join(LOSSES)} or a function of your own, as in "
            f'"my_models:loss", not {loss!r}'
        )
    return LOSSES[loss]()


def _check_sources(here, sources):
    for name in {**sources, **here}:
        if sources.get(name) != here.get(name):
            raise ModelError(
                f"{name} on this host is not the one that the job's rank 0 has; copy the same modules "
                "to all hosts"
            )


def _names(function):
    """Return the arguments that a function names; none where it does not tell."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _check_arguments(kind, function, arguments):
    """Raise ModelError unless the function may be called with `arguments`."""
    names = _names(function)
    if not names:
        return
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as problem:
        unknown = next((name for name in arguments if name not in names), None)
        close = difflib.get_close_matches(str(unknown), names, n=1)
        wrong = str(problem) if unknown is None else f"there is no {unknown!r}"
        raise ModelError(
            f"{kind} takes {', '.join(names)}; {wrong}" + (f", did you mean {close[0]!r}?" * bool(close))
        ) from None
