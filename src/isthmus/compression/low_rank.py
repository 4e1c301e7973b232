"""Each matrix of the vector travels as the product of a thin and a flat one."""

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np

from isthmus import kernels
from isthmus.compression.compressor import Compressor, Vector, Wire, check_arrays
from isthmus.devices import library_name
from isthmus.errors import NoDeviceError
from isthmus.kernels import reference
from isthmus.quantities import whole

KEY = 0x9E3779B97F4A7C15  # of the first guess: the same on every rank


class Matrix(NamedTuple):
    """A matrix in the flat vector, and where its factors start on the wire, in entries."""

    rows: int
    columns: int
    first: int
    wire_first: int


@dataclass(frozen=True)
class LowRank(Compressor):
    """Send a matrix of n x m as P Q of rank r = `rank`: 32 r (n + m) / (n m) bits an entry.

    PowerSGD (Vogels, Karimireddy and Jaggi 2019, arXiv:1905.13727): P = M Q', made orthonormal, and
    Q = P^T M, where Q' is the Q of the call before, so that calls on one matrix are a power iteration
    towards its best approximation. Biased: needs error feedback. A projection, so the contraction
    factor is never below 0; it tends to that of the best approximation, the share of M's squared
    singular values that are the r largest, at least r / min(n, m).

    shapes: those of the model's tensors in the order of the flat vector. More than two dimensions are
    taken as (first, all others). Fewer than two, or so small that factors would not be smaller, and
    the entries travel as they are. (): the whole vector is one matrix, as square as can be, and what is
    left over travels as it is.

    Encodes NumPy arrays alone: a device whose products differ would start another sequence of Q.

    Carries Q' as its state, each row of norm 1; where a row is zero, as before the first call, a keyed
    guess takes its place. Encoding uses the machine's own matrix products, which may differ from one
    to the other in the last bits; decoding does not.

    The wire, float32: P (n x r) and Q (r x m) of each matrix, then the entries that travel as they
    are. A NaN or an infinity anywhere, or a matrix whose rows or columns have a norm that float32 does
    not hold, decodes to NaN.
    """

    rank: int = 2
    shapes: tuple[tuple[int, ...], ...] = ()
    grain: ClassVar[None] = None

    def __post_init__(self):
        object.__setattr__(self, "rank", whole("rank", self.rank, least=1))
        object.__setattr__(
            self,
            "shapes",
            tuple(tuple(whole("shapes", length, least=0) for length in shape) for shape in self.shapes),
        )

    @property
    def portable(self) -> bool:
        return False  # libraries of linear algebra differ in the last bits

    def wire_nbytes(self, size: int) -> int:
        matrices, plain = self._layout(size)
        factors = sum(self.rank * (matrix.rows + matrix.columns) for matrix in matrices)
        return 4 * (factors + sum(part.stop - part.start for part in plain))

    def state_entries(self, size: int) -> int:
        return sum(self.rank * matrix.columns for matrix in self._layout(size)[0])

    def piece(self, part: slice) -> Self:
        """Return a LowRank of the tensors in that part of the vector; ValueError if it cuts one."""
        if not self.shapes:
            return self
        lasts = list(itertools.accumulate(map(math.prod, self.shapes)))
        inside = tuple(
            shape
            for shape, last in zip(self.shapes, lasts)
            if part.start <= last - math.prod(shape) and last <= part.stop
        )
        if sum(map(math.prod, inside)) != part.stop - part.start:
            raise ValueError(
                f"a bucket of the entries {part.start} to {part.stop} cuts a tensor, which "
                "LowRank needs whole; cut buckets between tensors"
            )
        return replace(self, shapes=inside)

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
        size = vector.size
        check_arrays(vector, wire, self.wire_nbytes(size), residual, state, self.state_entries(size))
        if library_name(vector) != "numpy":
            raise NoDeviceError(
                "LowRank encodes on CPUs alone: products of matrices differ from device "
                "to device in the last bits; pass NumPy arrays"
            )
        kernel, given, words = kernels.for_array(vector), vector, wire.view("f4")
        if residual is not None:
            kernel.add(vector, residual)
            given = residual
        if not kernel.all_finite(given):
            words[:] = np.nan
            return
        state = np.zeros(self.state_entries(size), "f4") if state is None else state
        used = 0
        for matrix, p, q in self._factors(words, size):
            guess = state[used : used + q.size].reshape(q.shape)
            used += q.size
            m = _matrix_of(given, matrix)
            _factorise(m, guess, p, q)
            if residual is not None:
                kernel.add_low_rank(-p, q, m)
        for part, entries in self._plain(words, size):
            entries[:] = given[part]
            if residual is not None:
                residual[part] = 0

    def decode(self, wire: Wire, vector: Vector) -> None:
        check_arrays(vector, wire, self.wire_nbytes(vector.size))
        kernel, words = kernels.for_array(vector), wire.view("f4")
        for matrix, p, q in self._factors(words, vector.size):
            kernel.decode_low_rank(p, q, _matrix_of(vector, matrix))
        for part, entries in self._plain(words, vector.size):
            vector[part] = entries

    def add_decoded(self, wire: Wire, total: Vector) -> None:
        check_arrays(total, wire, self.wire_nbytes(total.size))
        kernel, words = kernels.for_array(total), wire.view("f4")
        for matrix, p, q in self._factors(words, total.size):
            kernel.add_low_rank(p, q, _matrix_of(total, matrix))
        for part, entries in self._plain(words, total.size):
            kernel.add(entries, total[part])

    def _layout(self, size):
        return _layout(self.rank, self.shapes, size)

    def _factors(self, words, size):
        """Yield each matrix with its P and Q on the wire."""
        for matrix in self._layout(size)[0]:
            split = matrix.wire_first + self.rank * matrix.rows
            last = split + self.rank * matrix.columns
            yield (
                matrix,
                words[matrix.wire_first : split].reshape(matrix.rows, self.rank),
                words[split:last].reshape(self.rank, matrix.columns),
            )

    def _plain(self, words, size):
        """Yield where entries travel as they are, in the vector and on the wire."""
        plain = self._layout(size)[1]
        first = words.size - sum(part.stop - part.start for part in plain)
        for part in plain:
            last = first + part.stop - part.start
            yield part, words[first:last]
            first = last


@functools.lru_cache(maxsize=64)
def _layout(rank, shapes, size):
    """Return the matrices in a vector of `size` entries, and the slices that travel as they are."""
    if not shapes and size:
        rows = math.isqrt(size)
        shapes = ((rows, size // rows), (size % rows,))
    held = sum(map(math.prod, shapes))
    if held != size:
        raise ValueError(
            f"shapes hold {held} entries, the vector has {size}; give the shapes of all its tensors"
        )
    matrices, plain, first, wire_first = [], [], 0, 0
    for shape in shapes:
        last = first + math.prod(shape)
        rows, columns = (*shape[:1], math.prod(shape[1:])) if len(shape) > 1 else (1, last - first)
        if rank * (rows + columns) < rows * columns:
            matrices.append(Matrix(rows, columns, first, wire_first))
            wire_first += rank * (rows + columns)
        elif plain and plain[-1].stop == first:
            plain[-1] = slice(plain[-1].start, last)
        else:
            plain.append(slice(first, last))
        first = last
    return tuple(matrices), tuple(plain)


def _matrix_of(vector, matrix):
    last = matrix.first + matrix.rows * matrix.columns
    return vector[matrix.first : last].reshape(matrix.rows, matrix.columns)


def _factorise(m, guess, p, q):
    """Write orthonormal P near the leading columns of `m`, Q = P^T m, and leave Q as the next guess."""
    for number, row in enumerate(guess):
        if not row.any():
            row[:] = reference.dither(KEY, number * row.size, row.size)
    with np.errstate(all="ignore"):
        np.matmul(m, guess.T, out=p)
        # In double precision columns that are nearly alike still become orthogonal.
        p[:] = np.linalg.qr(p.astype(np.float64))[0] if np.isfinite(p).all() else np.nan
        np.matmul(p.T, m, out=q)
        norms = np.linalg.norm(q.astype(np.float64), axis=1, keepdims=True)
        guess[:] = np.where((norms > 0) & np.isfinite(norms), q / norms, 0)
