"""In which order samples are packed, and which of them are set apart."""

import numpy as np

from isthmus.errors import ShardError
from isthmus.quantities import real


def packing_order(
    samples: int, shuffle: int | None = None, labels: np.ndarray | None = None
) -> np.ndarray | None:
    """Return the numbers of all samples in the order in which they are packed; None for their own.

    shuffle: the seed of a random order. labels: int[samples]; then every stretch of the order has of
    each class its share of the whole, to within one sample, and samples of a class keep their order.
    It takes 4 bytes a sample (8 from 2**32 samples on), and with labels 40 while it is made.
    """
    order = None
    if shuffle is not None:
        order = np.arange(samples, dtype=np.uint32 if samples < 1 << 32 else np.int64)
        np.random.Generator(np.random.PCG64(shuffle)).shuffle(order)
    if labels is None:
        return order
    mixed = labels if order is None else labels[order]
    by_class = np.argsort(mixed, kind="stable")
    _, first, counts = np.unique(mixed[by_class], return_index=True, return_counts=True)
    number = np.arange(samples) - np.repeat(first, counts)  # of a sample in its class
    place = np.empty(samples)
    place[by_class] = (number + 0.5) / np.repeat(counts, counts)
    spread = np.argsort(place, kind="stable")
    return spread if order is None else order[spread]


def set_apart(samples: int, share: float) -> int:
    """Return how many of `samples` are `share` of them; ShardError unless both parts have some."""
    share = real("validation", share)
    if not 0 <= share < 1:
        raise ValueError(f"validation must be a share from 0 up to 1, not {share:g}")
    apart = round(share * samples)
    if share and not 0 < apart < samples:
        raise ShardError(
            f"{share:g} of {samples} samples are {apart}: both sets need one at least; give "
            "another share"
        )
    return apart
