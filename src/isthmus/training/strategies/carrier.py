"""How a vector goes one way between the hub and a site, or from a leader to its site's ranks.

And a number that says which vector comes next.
"""

from typing import Any

import numpy as np

from isthmus.collectives.messages import wait_for
from isthmus.compression.compressor import Compressor, Vector
from isthmus.links.comm import Comm, message_nbytes
from isthmus.vectors import chunk_slices


class Note:
    """Sends a whole number to one peer of `comm`, or takes it from it."""

    def __init__(self, comm: Comm, peer: int):
        self.comm, self.peer, self.number = comm, peer, np.zeros(1, np.int64)
        self.wire = self.number.view(np.uint8)
        self.requests: list[Any] = []

    def send(self, number: int) -> None:
        wait_for(self.requests)
        self.number[:] = number
        self.requests = [self.comm.Isend(self.wire, self.peer)]

    def take(self) -> int:
        """Wait for it, and return it."""
        wait_for([self.comm.Irecv(self.wire, self.peer)])
        return int(self.number[0])

    def nbytes(self) -> int:
        """Return its bytes on the way, from the formula alone."""
        return message_nbytes(self.comm, self.wire.size, self.peer)


class Carrier:
    """Sends float32[size] vectors to one peer of `comm`, or takes them from it, on the host.

    compressor: None sends float32 as it is. feedback: keep what a wire does not say and add it to the
    next. chunk_nbytes: most bytes of a message. stride, offset: wire n rounds by the key
    n stride + offset, so that no two carriers round alike.
    """

    def __init__(
        self,
        comm: Comm,
        peer: int,
        size: int,
        compressor: Compressor | None,
        feedback: bool,
        chunk_nbytes: int,
        stride: int = 1,
        offset: int = 0,
    ):
        self.comm, self.peer, self.size, self.compressor = comm, peer, size, compressor
        self.stride, self.offset = stride, offset
        wire_nbytes = 4 * size if compressor is None else compressor.wire_nbytes(size)
        self.wire = np.empty(wire_nbytes, np.uint8)
        self.messages = chunk_slices(0, wire_nbytes, max(4, chunk_nbytes // 4 * 4))
        self.residual = np.zeros(size if feedback and compressor is not None else 0, "f4")
        self.state = np.zeros(0 if compressor is None else compressor.state_entries(size), "f4")
        self.sent = np.zeros(1, np.int64)
        self.requests: list[Any] = []

    def send(self, vector: Vector) -> Vector:
        """Start to send `vector`; return what the other side reads from the wire."""
        wait_for(self.requests)
        if self.compressor is None:
            self.wire[:] = vector.view(np.uint8)
        else:
            self._encode(vector)
        self.sent += 1
        self.requests = [self.comm.Isend(self.wire[each], self.peer) for each in self.messages]
        return self.read()

    def expect(self) -> None:
        """Make a place for a vector that the peer sends."""
        self.requests = [self.comm.Irecv(self.wire[each], self.peer) for each in self.messages]

    def here(self) -> bool:
        """Return at once whether it has come, or what was sent has gone."""
        return all(request.Test() for request in self.requests)

    def take(self) -> Vector:
        """Wait for it, and return it."""
        wait_for(self.requests)
        return self.read()

    def nbytes(self) -> int:
        """Return the bytes of a vector on its way, from the formula alone."""
        lengths = (each.stop - each.start for each in self.messages)
        return sum(message_nbytes(self.comm, length, self.peer) for length in lengths)

    def read(self) -> Vector:
        """Return the vector that the wire holds."""
        if self.compressor is None:
            return self.wire.view("f4").copy()
        vector = np.empty(self.size, "f4")
        self.compressor.decode(self.wire, vector)
        return vector

    def _encode(self, vector):
        """Write the wire; what is not finite is sent as it is, and nothing of it is kept."""
        key = int(self.sent[0]) * self.stride + self.offset
        finite = np.isfinite(vector).all()
        residual = self.residual if self.residual.size and finite else None
        before = (self.residual.copy(), self.state.copy())
        self.compressor.encode(vector, self.wire, residual, key=key, state=self.state)
        if not (finite and np.isfinite(self.residual).all() and np.isfinite(self.state).all()):
            self.residual[:], self.state[:] = before
