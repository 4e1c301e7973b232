"""A rank's own samples as tensors."""

from collections.abc import Iterator

import torch

from isthmus.shards.batches import LocalSamples


def batches(
    local: LocalSamples,
    seed: int = 0,
    epoch: int = 0,
    *,
    size: int | None = None,
    steps: int | None = None,
    start: int = 0,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the batches of `local`, which `scatter_shards` gives, as tuples of tensors.

    In the order that depends on (seed, epoch) alone. size, steps, start: as `LocalSamples.batches` has
    them; neither size nor steps is batches of 32. Whole numbers come as int64, which torch's losses
    take, but for bytes, which are pictures and stay bytes; floats stay what they are.
    """
    if size is None and steps is None:
        size = 32
    for arrays in local.batches(size, seed, steps=steps, epoch=epoch, start=start):
        yield tuple(
            torch.from_numpy(
                array.astype("i8") if array.dtype.kind in "iu" and array.ndim == 1 else array
            )
            for array in arrays
        )
