"""What isthmus asks of a communicator, and the base of all that stand around one.

A link is a stack of wrappers over MPI's communicator, or over anything else that fulfils `Comm`:
counted, paced, traced, on a device. Everything between ranks is written on these verbs, so that no
wrapper has a back door. To add one, derive it from `Wrapped`, change what it changes, and hand it to
`Tiers.through`.
"""

from typing import Any, Protocol

import numpy as np

from isthmus.vectors import chunk_slices

MOST_NBYTES = 1 << 30
"""Of a message: MPI counts what one holds in 31 bits, and a seal is as long."""


def bytes_of(buffer: np.ndarray) -> np.ndarray:
    """Return the uint8[n] of a contiguous array, in the same memory. ValueError where it is not."""
    if not buffer.flags.c_contiguous:
        raise ValueError("what is sent or received must be a contiguous array")
    return buffer.reshape(-1).view(np.uint8)


class Request(Protocol):
    """A message under way."""

    def Wait(self) -> Any:  # noqa: N802
        """Return when the message is done."""

    def Test(self) -> bool:  # noqa: N802
        """Return at once whether the message is done."""


class Comm(Protocol):
    """Messages between ranks, as mpi4py's upper-case methods have them: contiguous arrays, no pickle.

    Messages from one rank to another with one tag arrive in the order in which they were sent.
    """

    @property
    def rank(self) -> int:
        """Number of this rank among those of the communicator, from 0."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def Isend(self, buffer: Any, /, dest: int, tag: int = 0) -> Request:  # noqa: N802
        """Start to send the array `buffer`, which stays as it is until the request is done."""

    def Irecv(self, buffer: Any, /, source: int, tag: int = 0) -> Request:  # noqa: N802
        """Start to overwrite the array `buffer` with a message of its size."""

    def Send(self, buffer: Any, /, dest: int, tag: int = 0) -> Any:  # noqa: N802
        """Send the array `buffer`."""

    def Recv(self, buffer: Any, /, source: int, tag: int = 0) -> Any:  # noqa: N802
        """Overwrite the array `buffer` with a message of its size."""


class Wrapped:
    """A communicator around another: it passes every verb on, and a wrapper changes some of them.

    lets_past: whether MPI's other methods, its own collectives among them, may be used past this
    wrapper. False where what travels must be changed by it.
    """

    lets_past: bool = False
    rank: int
    size: int

    def __init__(self, comm: Comm):
        self.comm, self.rank, self.size = comm, comm.rank, comm.size

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Request:  # noqa: N802
        return self.comm.Isend(buffer, dest, tag)

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Request:  # noqa: N802
        return self.comm.Irecv(buffer, source, tag)

    def Send(self, buffer: Any, dest: int, tag: int = 0) -> None:  # noqa: N802
        self.Isend(buffer, dest, tag).Wait()

    def Recv(self, buffer: Any, source: int, tag: int = 0) -> None:  # noqa: N802
        self.Irecv(buffer, source, tag).Wait()

    def overhead_nbytes(self, nbytes: int, dest: int) -> int:
        """Return by how many bytes a message of `nbytes` to `dest` grows, here and in all below.

        It is added where bytes are counted and where they are predicted.
        """
        return message_nbytes(self.comm, nbytes, dest) - nbytes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self.lets_past:
            raise AttributeError(
                f"{type(self).__name__} has no {name}: MPI's own would go past it; use "
                "Isend, Irecv, Send and Recv"
            )
        return getattr(self.comm, name)


def parts_of(array: np.ndarray) -> list[np.ndarray]:
    """Return the contiguous `array` as what messages take: itself, or where it is too long its bytes, in
    parts."""
    if array.nbytes <= MOST_NBYTES:
        return [array]
    whole = bytes_of(array)
    return [whole[part] for part in chunk_slices(0, whole.size, MOST_NBYTES)]


def send(comm: Comm, array: np.ndarray, dest: int, tag: int = 0) -> None:
    """Send an array of any length."""
    for part in parts_of(array):
        comm.Send(part, dest, tag)


def receive(comm: Comm, array: np.ndarray, source: int, tag: int = 0) -> None:
    """Overwrite `array` with what `send` sends, of its length and dtype."""
    for part in parts_of(array):
        comm.Recv(part, source, tag)


def message_nbytes(comm: Comm, nbytes: int, dest: int) -> int:
    """Return the bytes that a message of `nbytes` to `dest` comes to, with what wrappers and sockets
    add to it."""
    overhead_nbytes = getattr(comm, "overhead_nbytes", None)  # MPI's communicators have none
    return nbytes if overhead_nbytes is None else nbytes + overhead_nbytes(nbytes, dest)


def innermost(comm: Comm) -> Any:
    """Return the communicator, MPI's as a rule, that is inside all wrappers."""
    while isinstance(comm, Wrapped):
        comm = comm.comm
    return comm
