"""The gradient of each sample of a batch through a PyTorch module, clipped and added up.

By `torch.func`: the module as a function of its parameters, its gradient for one sample, mapped over a
batch. So many gradients of samples at a time as memory is given to.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call, grad, vmap

from isthmus.errors import ModelError
from isthmus.models.losses import CrossEntropy
from isthmus.models.own_loss import OwnLoss

NBYTES = 1 << 23
"""Of gradients of samples that are made at once."""


def check_samples_apart(module: torch.nn.Module, name: str) -> None:
    """Raise ModelError where what a module makes of a sample depends on the others of its batch."""
    for key, part in module.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            raise ModelError(
                f"{name}: {key or 'the module'} is a {type(part).__name__}: what becomes of a sample "
                "depends on the others of its batch, so that none is clipped alone; take GroupNorm"
            )


def add_clipped(
    module: torch.nn.Module,
    name: str,
    loss: Any,
    features: torch.Tensor,
    targets: torch.Tensor,
    clip: float,
    sums: Sequence[torch.Tensor],
) -> None:
    """Add the gradients of all samples to `sums`, each scaled to at most the norm `clip`.

    name: of the module, for messages. sums: a float32 tensor for each trained parameter, of its shape. A
    sample whose gradient is not finite counts as zeros. Each draws its own dropout. ModelError where
    samples meet.
    """
    check_samples_apart(module, name)
    if len(targets) == 0:
        return
    trained = {key: each.detach() for key, each in module.named_parameters() if each.requires_grad}

    def loss_of(parameters, sample, target):
        scores = functional_call(module, parameters, (sample[None],)).float()
        return _summed(loss, scores if scores.ndim > 1 else scores[:, None], target[None])

    of_samples = vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="different")
    size = sum(each.numel() for each in trained.values())
    for part in torch.arange(len(targets)).split(max(1, NBYTES // (4 * size))):
        found = of_samples(trained, features[part], targets[part])
        rows = [each.reshape(len(part), -1).float() for each in found.values()]
        squares = sum(torch.linalg.vector_norm(each, dim=1, dtype=torch.float64) ** 2 for each in rows)
        kept = torch.isfinite(squares)
        # A norm is rounded: what it may be too small by is taken off.
        factors = (clip * (1 - 1e-5) / squares.sqrt().clamp(min=1e-30)).clamp(max=1.0).float()
        if not kept.all():
            factors, rows = factors[kept], [each[kept] for each in rows]
        for total, each in zip(sums, rows):
            total += (factors @ each).view(total.shape)


def _summed(loss, scores, targets):
    """Return the summed loss as torch knows it: the named ones are those of `models.losses`."""
    if isinstance(loss, OwnLoss):
        return loss.sum_of(scores, targets)
    if isinstance(loss, CrossEntropy):
        return torch.nn.functional.cross_entropy(scores, targets, reduction="sum")
    error = scores - targets.to(scores.dtype).reshape(scores.shape)
    return (error * error).sum() / scores.shape[1]
