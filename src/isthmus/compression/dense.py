"""Every entry travels, as float32, float16 or bfloat16."""

from dataclasses import dataclass
from typing import ClassVar

from isthmus import kernels
from isthmus.compression.compressor import Compressor, Vector, Wire, check_arrays

BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True)
class Dense(Compressor):
    """Send every entry; 32 or 16 bits an entry.

    float32 loses nothing. float16 (IEEE binary16, relative error 2^-11, infinite past 65504) and
    bfloat16 (relative error 2^-8, range of float32) round to nearest even: unbiased only in that
    sense, contraction factor 1 - 2^-22 and 1 - 2^-16 for normal numbers.
    """

    dtype: str = "float32"
    grain: ClassVar[int] = 1

    def __post_init__(self):
        if self.dtype not in BITS:
            raise ValueError(f"dtype must be one of {', '.join(BITS)}, not {self.dtype!r}")

    @property
    def largest(self) -> float:
        return 65504.0 if self.dtype == "float16" else super().largest

    def wire_nbytes(self, size: int) -> int:
        return size * BITS[self.dtype] // 8

    def encode(
        self,
        vector: Vector,
        wire: Wire,
        residual: Vector | None = None,
        *,
        key: int = 0,
        first: int = 0,
        state: Vector | None = None,
    ) -> None:
        check_arrays(vector, wire, self.wire_nbytes(vector.size), residual)
        kernel = kernels.for_array(vector)
        if self.dtype == "float32":
            kernel.encode_dense(vector, residual, wire.view("f4"))
        elif self.dtype == "float16":
            kernel.encode_float16(vector, residual, wire.view("u2"))
        else:
            kernel.encode_bfloat16(vector, residual, wire.view("u2"))

    def decode(self, wire: Wire, vector: Vector) -> None:
        check_arrays(vector, wire, self.wire_nbytes(vector.size))
        kernel = kernels.for_array(vector)
        if self.dtype == "float32":
            vector[:] = wire.view("f4")
        elif self.dtype == "float16":
            kernel.decode_float16(wire.view("u2"), vector)
        else:
            kernel.decode_bfloat16(wire.view("u2"), vector)

    def add_decoded(self, wire: Wire, total: Vector) -> None:
        check_arrays(total, wire, self.wire_nbytes(total.size))
        kernel = kernels.for_array(total)
        if self.dtype == "float32":
            kernel.add(wire.view("f4"), total)
        elif self.dtype == "float16":
            kernel.add_float16(wire.view("u2"), total)
        else:
            kernel.add_bfloat16(wire.view("u2"), total)
