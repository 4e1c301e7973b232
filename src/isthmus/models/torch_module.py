"""What can be trained of what a user's function gives, and where its backward pass begins."""

from typing import Any

import torch

from isthmus.errors import ModelError


def check_module(module: Any, name: str) -> Any:
    """Return `module` if it can be trained: an nn.Module with parameters that are real floats.

    Raises ModelError that names the function `name` which gave it.
    """
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{name}: gives a {type(module).__name__}; return a torch.nn.Module")
    named = list(module.named_parameters())
    if not named:
        raise ModelError(f"{name}: the module has no parameters; there is nothing to train")
    for key, parameter in named:
        if torch.nn.parameter.is_lazy(parameter):
            raise ModelError(
                f"{name}: the parameter {key} has no shape yet; give its layer all sizes, or have "
                f"{name} pass a sample through the module once"
            )
        if not parameter.is_floating_point():
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name}: the parameter {key} is of {kind}; train real floats, and have other "
                "numbers as buffers (register_buffer)"
            )
    if not any(parameter.requires_grad for _, parameter in named):
        raise ModelError(f"{name}: all parameters are frozen; set requires_grad on those to train")
    return module


def check_depends(tensor: torch.Tensor, name: str) -> None:
    """Raise ModelError unless a backward pass may begin at `tensor`, which the module `name` led to."""
    if not tensor.requires_grad:
        raise ModelError(
            f"{name}: the loss does not depend on the trained parameters; look for detach(), "
            "no_grad() or argmax() in forward or in the loss"
        )


class Sloped(torch.autograd.Function):
    """A number whose gradient by the scores is known.

    To go backwards from several numbers, PyTorch imports sympy first: seconds in every rank.
    """

    @staticmethod
    def forward(context, scores, slope):
        context.slope = slope
        return scores.new_zeros(())

    @staticmethod
    def backward(context, _):
        return context.slope, None
