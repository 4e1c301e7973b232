"""Vectors as wires: how a float vector becomes fewer bytes, and comes back.

To add a compressor: a frozen dataclass, a `compressor.Compressor` with its names, its loops in
`kernels/reference.py`, `cpu.py` and `gpu.py`, and a line in `COMPRESSORS`; the tests of all compressors
then run on it too.
"""

from isthmus.compression.dense import Dense
from isthmus.compression.low_rank import LowRank
from isthmus.compression.one_bit import OneBit
from isthmus.compression.quantized import Int4, Int8
from isthmus.compression.top_k import TopK

COMPRESSORS = {
    "dense": Dense,
    "int8": Int8,
    "int4": Int4,
    "one_bit": OneBit,
    "top_k": TopK,
    "low_rank": LowRank,
}
"""Name in a settings file -> class."""
