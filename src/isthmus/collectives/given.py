"""What a rank gives for a bucket of its vector, weighted chunk by chunk as it is used."""

import threading

import numpy as np
from mpi4py import MPI

from isthmus import kernels
from isthmus.errors import MachineError

FLOAT32, MAIN_THREAD = np.dtype(np.float32), threading.main_thread().ident


class GivenBucket:
    """A bucket's arrays, in order, and this rank's share of the mean.

    A chunk is weighted just before it is summed, encoded or sent, while it is in the cache: that is no
    pass of its own over memory.

    part: the bucket, a slice of the vector. pieces: the float32 arrays that it is made of; none of them
    stands for a vector that could not be made: then every chunk is NaN.
    """

    __slots__ = ("bounds", "part", "pieces", "share")

    def __init__(self, part, pieces, share):
        self.part, self.pieces, self.share = part, pieces, share
        self.bounds = [part.start]
        for piece in pieces:
            self.bounds.append(self.bounds[-1] + piece.size)

    def write(self, total, part):
        """Overwrite total[part] with this rank's share of that part of the vector."""
        if not self.pieces:
            total[part] = np.nan
            return
        scale = kernels.for_array(total).scale
        for piece, first, last in zip(self.pieces, self.bounds, self.bounds[1:]):
            start, stop = max(first, part.start), min(last, part.stop)
            if start < stop:
                scale(piece[start - first : stop - first], self.share, total[start:stop])


def check_pieces(residence, pieces, size):
    """Raise ValueError unless `pieces` make a bucket of `size` entries that kernels take."""
    if len(pieces) == 1:
        residence.check(pieces[0], size)
        return
    for piece in pieces:
        residence.check(piece, getattr(piece, "size", 0))
    given = sum(piece.size for piece in pieces)
    if given != size:
        raise ValueError(f"a bucket's {len(pieces)} pieces hold {given} entries, not {size}")


def room_at_once(vector, size):
    """Return room for the mean of a `vector` that compiled code takes as it is: in the main thread, and
    contiguous float32[size] on the host. None: it may be right all the same, or there is no room.
    """
    if (
        threading.get_ident() == MAIN_THREAD
        and type(vector) is np.ndarray
        and vector.dtype is FLOAT32
        and vector.shape == (size,)
        and vector.flags.carray
    ):
        try:
            return np.empty(size, FLOAT32)
        except MemoryError:  # which the other ranks must be told
            pass
    return None


def check_thread(first):
    """Raise MachineError unless MPI may be called from this thread; first: the one that has begun."""
    if threading.get_ident() != first and MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise MachineError(
            "MPI was started for one thread alone, and a gradient is sent from another; leave "
            'mpi4py.rc.thread_level as it is, or set it to "serialized"'
        )
