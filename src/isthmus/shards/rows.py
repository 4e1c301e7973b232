"""Arrays that lie on a disk, of which rows are read when they are asked for."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from isthmus.cures import explained
from isthmus.errors import ShardError

PIECE_NBYTES = 4 << 20
"""Bytes that are read at a time, where rows lie close to each other."""


class Rows:
    """What an array in memory is to who reads its rows: `shape`, `dtype`, `len`, and rows by `[...]`.

    classes: names of the classes whose numbers these are, where they have names.
    told: what else a user wants to know of it, in words.
    """

    near_nbytes = 4096
    """Rows that are asked for are read in one go where no more bytes than these lie between them."""

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.classes: tuple[str, ...] | None = None
        self.told = ""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def row_nbytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return the rows of a slice without a step, or of whole numbers, in their order."""
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self))
            return self.between(first, max(first, last))
        order = np.argsort(rows, kind="stable")
        wanted = rows[order].astype(np.int64)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for part in self._close_together(wanted):
            first = wanted[part.start]
            block = self.between(first, wanted[part.stop - 1] + 1)
            found[order[part]] = block[wanted[part] - first]
        return found

    def between(self, first: int, last: int) -> np.ndarray:
        """Return the rows from `first` up to `last`, in an array of its own."""
        raise NotImplementedError

    def _close_together(self, wanted):
        """Cut the ascending numbers `wanted` into slices of rows to be read at once."""
        row = max(self.row_nbytes, 1)
        window = max(1, PIECE_NBYTES // row)
        cuts = np.diff(wanted) > max(1, self.near_nbytes // row)
        cuts |= np.diff(wanted // window) > 0
        bounds = [0, *(np.flatnonzero(cuts) + 1).tolist(), len(wanted)]
        return [slice(*pair) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]


class StoredRows(Rows):
    """Rows that follow one another in an open file, from byte `start` on; ShardError where it is cut.

    given_as: the dtype that they are given in, where that is not the one in which they lie there.
    """

    def __init__(
        self,
        path: Any,
        file: BinaryIO,
        start: int,
        shape: tuple[int, ...],
        dtype: Any,
        given_as: Any = None,
    ):
        super().__init__(shape, given_as or dtype)
        self.path, self.file, self.start, self.stored = path, file, start, np.dtype(dtype)

    def between(self, first: int, last: int) -> np.ndarray:
        block = np.empty((last - first, *self.shape[1:]), self.stored)
        row = block.nbytes // max(len(block), 1)
        self.file.seek(self.start + int(first) * row)
        if block.size and self.file.readinto(block.reshape(-1).view(np.uint8)) < block.nbytes:  # type: ignore[attr-defined]
            raise ShardError(f"{self.path}: became shorter while it was read; pack it again")
        return block.astype(self.dtype, copy=False)


class ColumnRows(Rows):
    """Rows of an array that lies in a file column by column, as Fortran has it."""

    def __init__(self, file: BinaryIO, start: int, shape: tuple[int, ...], dtype: Any):
        super().__init__(shape, dtype)
        self.file, self.start = file, start

    def between(self, first: int, last: int) -> np.ndarray:
        columns = np.memmap(self.file, self.dtype, "r", self.start, self.shape, "F")
        return np.array(columns[first:last], order="C")


class DatasetRows(Rows):
    """Rows of an HDF5 dataset, along its dimension `axis`.

    reverse: dimensions are in reverse order, as MATLAB writes them. A vector may lie in a matrix.
    """

    def __init__(
        self, path: Any, dataset: Any, axis: int = 0, reverse: bool = False, vector: bool = False
    ):
        shape = dataset.shape[::-1] if reverse else dataset.shape
        super().__init__((dataset.shape[axis],) if vector else shape, dataset.dtype)
        self.path, self.dataset, self.axis = path, dataset, axis
        self.reverse, self.vector = reverse, vector
        if dataset.chunks:  # each is unpacked as a whole
            self.near_nbytes = dataset.chunks[axis] * self.row_nbytes

    def between(self, first: int, last: int) -> np.ndarray:
        places = [slice(None)] * self.dataset.ndim
        places[self.axis] = slice(int(first), int(last))
        with told_in_one_line(self.path):
            block = self.dataset[tuple(places)]
        if self.vector:
            return block.ravel()
        return np.ascontiguousarray(block.T) if self.reverse else block


@contextmanager
def told_in_one_line(path: Any) -> Iterator[None]:
    """Turn what libraries raise for a bad file, which can be anything, into a ShardError."""
    try:
        yield
    except ShardError:
        raise
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file; check the name and the folder you are in") from None
    except IsADirectoryError:
        raise ShardError(f"{path}: is a folder; name a file in it") from None
    except MemoryError:
        raise ShardError(f"{path}: does not fit in this machine's memory; pack it in parts") from None
    except Exception as problem:
        if "allow_pickle" in str(problem):
            raise ShardError(f"{path}: holds Python objects; write numbers into it") from None
        otherwise = "it is cut, damaged or not the kind of file that it seems"
        raise ShardError(f"{path}: cannot be read: {explained(problem, otherwise)}") from None
