"""What a sum of finite numbers may be too large for."""

from collections.abc import Iterable

from isthmus.compression.compressor import Compressor
from isthmus.compression.dense import Dense


def overflow_in_words(compressors: Iterable[Compressor]) -> str:
    """Return what has overflowed where all vectors are finite and their mean is not, and the cure."""
    wire = min(compressors, key=lambda each: each.largest)
    if wire.largest < Dense().largest:
        return (
            f"gradients are finite, but a sum of them is more than a wire of {wire} holds, "
            f"{wire.largest:.6g}; take a compressor that holds float32's numbers, such as "
            '{ kind = "dense", dtype = "bfloat16" } or "int8"'
        )
    return (
        "gradients are finite, but a sum of them overflows float32; lower "
        "training.learning_rate, or scale features and targets down"
    )
