"""Where a module's gradients are in one flat vector, and which of its buckets each is in."""

import hashlib
import math
from collections.abc import Iterable

import numpy as np
import torch

from isthmus.json_text import dumps
from isthmus.vectors import bucket_slices

GRAIN = 16
"""Entries that the vector's head is rounded up to: gradients begin where vector instructions like it."""


class FlatGradients:
    """The gradients of the parameters of `model` that are trained, as pieces of one float32 vector.

    The vector begins with its head, which travels exactly: a 1, and for each parameter whether this rank
    has a gradient for it. Then come the gradients, in the order in which the module names them.

    parameters: those that are trained, tied ones once. names, places: of them, and their slices.
    buckets: slices of the vector, the last gradients first; the head is in the last of them, alone there
    where `head_apart`. bucket_of: number of the bucket of each parameter. size: entries of the vector.
    ValueError for a model that has nothing to train, or parameters that are no real numbers.
    """

    def __init__(self, model: torch.nn.Module, buckets: int, head_apart: bool):
        if not isinstance(model, torch.nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, not {model!r:.80}")
        named = list(model.named_parameters())
        _check(named)
        trained = [(name, each) for name, each in named if each.requires_grad]
        self.names = [name for name, _ in trained]
        self.parameters = [each for _, each in trained]
        self.frozen = [(name, each) for name, each in named if not each.requires_grad]
        self.head = np.zeros(-(-(1 + len(trained)) // GRAIN) * GRAIN, np.float32)
        self.head[0] = 1
        lasts = self.head.size + np.cumsum([0, *(each.numel() for each in self.parameters)])
        self.places = [slice(*ends) for ends in zip(lasts.tolist(), lasts[1:].tolist())]
        self.size = self.places[-1].stop
        self.buckets = bucket_slices(self.places, buckets)
        if head_apart:
            self.buckets.append(slice(0, self.head.size))
        else:
            self.buckets[-1] = slice(0, self.buckets[-1].stop)
        self.bucket_of = [
            next(
                number
                for number, bucket in enumerate(self.buckets)
                if bucket.start <= min(place.start, self.size - 1) < bucket.stop
            )
            for place in self.places
        ]
        self.members = [
            [number for number, home in enumerate(self.bucket_of) if home == bucket]
            for bucket in range(len(self.buckets))
        ]
        self._zeros = np.zeros(max(place.stop - place.start for place in self.places), np.float32)
        self.shapes = [tuple(each.shape) for each in self.parameters]
        self._lengths = [self.head.size, *(place.stop - place.start for place in self.places)]
        self._converted = [
            each.dtype != torch.float32 or each.device.type != "cpu" for each in self.parameters
        ]
        self._pinned = [  # memory that a CUDA device copies from and to by itself
            torch.empty(each.shape, pin_memory=True) if each.device.type == "cuda" else None
            for each in self.parameters
        ]

    def pieces(self, bucket: int) -> list[np.ndarray]:
        """Return this rank's part of a bucket as float32 arrays, zeros where there is no gradient.

        ValueError for gradients that are sparse.
        """
        pieces = []
        if bucket == len(self.buckets) - 1:
            for number, each in enumerate(self.parameters, 1):
                self.head[number] = each.grad is not None
            pieces.append(self.head)
        for number in self.members[bucket]:
            gradient = self.parameters[number].grad
            if gradient is None:
                pieces.append(self._zeros[: self._lengths[number + 1]])
                continue
            if gradient.layout is not torch.strided:
                raise ValueError(
                    f"the gradient of {self.names[number]!r} is sparse; make it with sparse=False"
                )
            if (pinned := self._pinned[number]) is not None:
                gradient = pinned.copy_(gradient)
            elif self._converted[number]:
                gradient = gradient.to(torch.float32)
            pieces.append(gradient.detach().reshape(-1).numpy())
        return pieces

    def give(self, mean: np.ndarray) -> None:
        """Have every `.grad` be its part of the vector `mean`, of which a float32 one is a view.

        It is None where no rank with a weight had one.
        """
        used = (mean[1 : 1 + len(self.parameters)] > 0).tolist()
        parts = torch.from_numpy(mean).split_with_sizes(self._lengths)[1:]
        for each, shape, part, there, converted, pinned in zip(
            self.parameters, self.shapes, parts, used, self._converted, self._pinned
        ):
            if not there:
                each.grad = None
                continue
            gradient = part.view(shape)
            if pinned is not None:
                gradient = pinned.copy_(gradient)
            each.grad = gradient.to(each.device, each.dtype) if converted else gradient

    def unexpected(self) -> str | None:
        """Return the name of a parameter that was frozen at first and has a gradient now, or None."""
        return next((name for name, each in self.frozen if each.grad is not None), None)


def described(model: torch.nn.Module) -> list[list[object]]:
    """Return what must be alike on all ranks: name, shape, dtype and kind of all that a module holds."""
    kinds: Iterable[tuple[str, list[tuple[str, torch.Tensor]]]] = (
        ("parameter", list(model.named_parameters())),
        ("buffer", list(model.named_buffers())),
    )
    return [
        [
            name,
            list(each.shape),
            str(each.dtype).removeprefix("torch."),
            "frozen parameter" if kind == "parameter" and not each.requires_grad else kind,
        ]
        for kind, named in kinds
        for name, each in named
    ]


def difference(mine: list[list[object]], first: list[list[object]]) -> str | None:
    """Return in words where `mine`, of `described`, is not as that of rank 0; None where it is."""
    for own, other in zip(mine, first):
        if own != other:
            return f"it has {_in_words(own)} where rank 0 has {_in_words(other)}"
    if len(mine) != len(first):
        more, who = (mine, "it") if len(mine) > len(first) else (first, "rank 0")
        return f"{who} alone has {_in_words(more[min(len(mine), len(first))])}"
    return None


def digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of what is alike on all ranks, by which a state finds its model again."""
    return hashlib.sha256(dumps(described(model)).encode()).hexdigest()


def _in_words(row):
    name, shape, dtype, kind = row
    return f"the {kind} {name!r}, {dtype} of shape {tuple(shape)}"


def _check(named):
    """Raise ValueError where there is nothing that can be trained, or a parameter is no real number."""
    if not named:
        raise ValueError("model has no parameters: there is nothing to train")
    for name, each in named:
        if isinstance(each, torch.nn.parameter.UninitializedParameter):
            raise ValueError(
                f"the parameter {name!r} has no shape yet; call the model once before it is shared"
            )
        if not each.is_floating_point():
            raise ValueError(
                f"the parameter {name!r} is of {each.dtype}: parameters are real numbers; make it a "
                "buffer (register_buffer), or split a complex one in two"
            )
    if not any(each.requires_grad for _, each in named):
        raise ValueError("all parameters of model are frozen; set requires_grad on those to be trained")
    if not any(math.prod(each.shape) for _, each in named if each.requires_grad):
        raise ValueError("the parameters of model have no entries: there is nothing to train")
