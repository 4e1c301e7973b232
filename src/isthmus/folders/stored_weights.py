"""Tensors as a model's file may hold them: codes of a few bits an entry in the place of float32.

int8    a code an entry and a float32 scale an output: Int8's wire, a block an output
int4    two codes a byte, scales a block of 64 entries: Int4's wire
pruned  as int8, without the codes of entries that are 0, and a bit an entry that says which are not
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from isthmus.compression.quantized import Int4, Int8

FORMS = ("int8", "int4", "pruned")


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """One tensor's bytes, and what it takes to have its float32 again.

    form: one of FORMS. shape: of the tensor. outputs_last: whether the last axis is that of a layer's
    outputs, as in the built-in models, or the first one, as in PyTorch's. wire: uint8, the bytes.
    """

    form: str
    shape: tuple[int, ...]
    outputs_last: bool
    wire: np.ndarray

    @classmethod
    def of(cls, form: str, tensor: np.ndarray, outputs_last: bool) -> Self | None:
        """Return how `tensor` is stored; None where float32 takes no more bytes, as of a bias."""
        made = cls(form, tensor.shape, outputs_last, np.empty(0, np.uint8))
        if tensor.ndim < 2 or not tensor.size:
            return None
        matrix = tensor.reshape(-1, tensor.shape[-1]).T if outputs_last else tensor
        vector = np.ascontiguousarray(matrix, np.float32).reshape(-1)
        compressor = made._compressor()
        wire = np.empty(compressor.wire_nbytes(vector.size), np.uint8)
        compressor.encode(vector, wire)
        if form == "pruned":
            codes = wire.size - vector.size
            wire = np.concatenate([wire[:codes], np.packbits(vector != 0), wire[codes:][vector != 0]])
        return cls(form, tensor.shape, outputs_last, wire) if wire.size < tensor.nbytes else None

    def tensor(self) -> np.ndarray:
        """Return float32 of `shape`; ValueError where the bytes are not those of such a tensor."""
        if self.form not in FORMS or len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"no tensor of shape {list(self.shape)} is stored as {self.form!r:.40}")
        size, compressor = int(np.prod(self.shape, dtype=object)), self._compressor()
        wire, nbytes = self.wire, compressor.wire_nbytes(size)
        if self.form == "pruned":
            wire = self._with_zeros(wire, nbytes - size, size)
        if wire.dtype != np.uint8 or wire.shape != (nbytes,):
            raise ValueError(
                f"{list(wire.shape)} {wire.dtype} are not the {nbytes} bytes of a tensor of shape "
                f"{list(self.shape)} in {self.form}"
            )
        vector = np.empty(size, np.float32)
        compressor.decode(np.ascontiguousarray(wire), vector)
        if not self.outputs_last:
            return vector.reshape(self.shape)
        return np.ascontiguousarray(vector.reshape(self.shape[-1], -1).T).reshape(self.shape)

    def _compressor(self):
        """Return what makes the wire of a tensor of this shape, its outputs first."""
        if self.form == "int4":
            return Int4(block=64)
        outputs = self.shape[-1 if self.outputs_last else 0]
        return Int8(block=int(np.prod(self.shape, dtype=object)) // max(outputs, 1) or 1)

    def _with_zeros(self, wire, scales, size):
        """Return Int8's wire of a pruned one, or what is too short where bits and codes do not fit."""
        bits = scales + -(-size // 8)
        if wire.dtype != np.uint8 or wire.ndim != 1 or wire.size < bits:
            return wire
        kept = np.unpackbits(wire[scales:bits], count=size).astype(bool)
        if kept.sum() != wire.size - bits:
            return wire[:bits]
        codes = np.zeros(size, np.uint8)
        codes[kept] = wire[bits:]
        return np.concatenate([wire[:scales], codes])
