"""A module's tensors on all ranks: those of one rank everywhere, and the mean of statistics."""

from typing import TYPE_CHECKING

import torch

from isthmus.links.means import mean_over_ranks, shares_of
from isthmus.links.world import World, broadcast

if TYPE_CHECKING:  # cluster files need what not every machine has
    from collections.abc import Iterable


def copy_from_first(world: World, tensors: "Iterable[torch.Tensor]") -> None:
    """Overwrite `tensors` on every rank with rank 0's. Collective."""
    with torch.no_grad():
        for tensor in tensors:
            host = tensor.detach().cpu().contiguous().reshape(-1)  # one without dimensions has no view
            if host.numel():
                broadcast(world, host.view(torch.uint8).numpy())
                tensor.copy_(host.view(tensor.shape))


def average_over_ranks(world: World, tensors: "Iterable[torch.Tensor]", weight: float) -> None:
    """Overwrite `tensors` with their mean over all ranks, of the same bits on each. Collective.

    weight: of this rank. The mean of real numbers is taken in float64 and rounded once; of whole
    numbers, which are counts, and of booleans it is the largest.
    """
    shares = shares_of(world, weight)
    with torch.no_grad():
        for tensor in tensors:
            wide = tensor.dtype
            if tensor.is_complex():
                wide = torch.complex128
            elif tensor.is_floating_point():
                wide = torch.float64
            elif wide is torch.bool:
                wide = torch.uint8
            host = tensor.detach().to("cpu", wide).contiguous().reshape(-1).numpy()
            if host.size:
                mean = mean_over_ranks(world, host, shares)
                tensor.copy_(torch.from_numpy(mean).view(tensor.shape))
