"""Messages between jobs over TCP, as MPI's are inside one: the verbs of `Comm`, arrays and no pickle.

A rank's sockets are read and written by whoever waits for a message, in its own thread, as MPI does it:
nothing is handed from one thread to another, which would take longer than the message.
"""

import contextlib
import select
import socket
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from isthmus.errors import MachineError, SiteError
from isthmus.links.frames import BYE, DATA, GONE, HEADER_NBYTES, Header, Outgoing, Stream

WORLD, LEADERS, TIER = range(3)
"""Channels: messages of one communicator never answer another's."""
SPIN_SECONDS = 1e-4
"""For which a waiting rank looks again and again: a message of a near rank is there sooner."""
SECONDS_TO_CLOSE = 5.0


class Endpoint:
    """One rank's sockets, and the messages that wait for it.

    rank: in the cluster. peers: (socket, what is at its other end, cluster ranks that it reaches); the
    last one that reaches a rank is not asked where an earlier one does.
    """

    def __init__(self, rank: int, peers: Sequence[tuple[socket.socket, str, Sequence[int]]]):
        self.rank = rank
        self.streams: list[Stream] = []
        self.stream_to: dict[int, Stream] = {}
        self._posted: dict[tuple[int, int, int], deque[Received]] = defaultdict(deque)
        self._early: dict[tuple[int, int, int], deque[memoryview]] = defaultdict(deque)
        self._poll = select.poll()
        self._watched: dict[int, int] = {}
        for connection, who, ranks in peers:
            stream = Stream(connection, who, self._room, self._take)
            self.streams.append(stream)
            for each in ranks:
                self.stream_to.setdefault(each, stream)

    def send(self, channel: int, buffer: Any, dest: int, tag: int) -> "Sent":
        """Start to send a contiguous array to the cluster rank `dest`."""
        frame = self.stream_to[dest].send(DATA, channel, self.rank, dest, tag, _bytes(buffer))
        return Sent(self, frame)

    def receive(self, channel: int, buffer: Any, source: int, tag: int) -> "Received":
        """Start to receive into a contiguous array from the cluster rank `source`."""
        key = channel, source, tag
        request = Received(self, self.stream_to[source], buffer)
        if self._early[key]:
            request.fill(self._early[key].popleft())
        else:
            self._posted[key].append(request)
        return request

    def progress(self, wait_seconds: float | None = 0.0) -> None:
        """Take and send on what can be, and wait so long for something; None: without end."""
        end = time.monotonic() + SPIN_SECONDS
        while True:
            if self._pass():
                return
            if wait_seconds == 0 or time.monotonic() >= end:
                break
        if wait_seconds == 0:
            return
        for stream in self.streams:
            number, events = stream.fileno(), select.POLLIN | select.POLLOUT * stream.writes
            if stream.closed:
                if self._watched.pop(number, None):
                    self._poll.unregister(number)
            elif self._watched.get(number) != events:
                self._watched[number] = events
                self._poll.register(number, events)
        self._poll.poll(None if wait_seconds is None else 1e3 * wait_seconds)
        self._pass()

    def finish(self) -> None:
        """Say good-bye on all sockets; close them once the other ends have had all and said it too."""
        end = time.monotonic() + SECONDS_TO_CLOSE
        with contextlib.suppress(SiteError):  # who has gone has nothing to say
            for stream in self.streams:
                stream.send(BYE, 0, self.rank, self.rank, 0, b"")
            while time.monotonic() < end and not all(
                stream.closed or (stream.ended and stream.confirmed and not stream.writes)
                for stream in self.streams
            ):
                self.progress(0.05)
        for stream in self.streams:
            stream.close()

    def _pass(self):
        """Read and write all sockets once, without waiting; return whether anything has come."""
        came = False
        for stream in self.streams:
            if stream.writes:
                stream.write()
            if not stream.closed:
                came = stream.read() or came
        return came

    def _room(self, header: Header) -> memoryview:
        key = header.channel, header.source, header.tag
        if header.kind == DATA and self._posted[key] and not self._early[key]:
            posted = self._posted[key][0]
            if posted.view.nbytes == header.nbytes:
                return posted.view
        return memoryview(bytearray(header.nbytes))

    def _take(self, header: Header, view: memoryview) -> None:
        if header.kind == GONE:
            why = bytes(view).decode(errors="replace")
            for stream in self.streams:
                stream.reason = stream.reason or why
            raise self.streams[-1].gone()
        key = header.channel, header.source, header.tag
        if self._posted[key]:
            self._posted[key].popleft().fill(view)
        else:
            self._early[key].append(view)


class Sent:
    """A message on its way out."""

    def __init__(self, endpoint: Endpoint, frame: Outgoing):
        self.endpoint, self.frame = endpoint, frame

    def Wait(self) -> None:  # noqa: N802
        while not self.frame.done:
            self.endpoint.progress(None)

    def Test(self) -> bool:  # noqa: N802
        if not self.frame.done:
            self.endpoint.progress()
        return self.frame.done


class Received:
    """A message that is to come."""

    def __init__(self, endpoint: Endpoint, stream: Stream, buffer: Any):
        self.endpoint, self.stream, self.view = endpoint, stream, _bytes(buffer)
        self.done = False

    def Wait(self) -> None:  # noqa: N802
        while not self.done:
            if self.stream.closed:
                raise self.stream.gone()
            self.endpoint.progress(None)

    def Test(self) -> bool:  # noqa: N802
        if not self.done:
            self.endpoint.progress()
        return self.done

    def fill(self, came: memoryview) -> None:
        """Take what has come: it is in its place, or is brought there."""
        if came is not self.view:
            if came.nbytes != self.view.nbytes:
                raise MachineError(
                    f"a message of {came.nbytes} bytes came over a socket where {self.view.nbytes} were "
                    "due; start all sites with the same version and settings"
                )
            self.view[:] = came
        self.done = True


class SocketComm:
    """Ranks of several jobs, one communicator: a `Comm` whose messages all cross sockets.

    ranks: cluster rank of each rank. channel: no other communicator's.
    """

    def __init__(self, endpoint: Endpoint, channel: int, ranks: Sequence[int]):
        self.endpoint, self.channel, self.ranks = endpoint, channel, ranks
        self.rank, self.size = ranks.index(endpoint.rank), len(ranks)

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Sent:  # noqa: N802
        return self.endpoint.send(self.channel, buffer, self.ranks[dest], tag)

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Received:  # noqa: N802
        return self.endpoint.receive(self.channel, buffer, self.ranks[source], tag)

    def Send(self, buffer: Any, dest: int, tag: int = 0) -> None:  # noqa: N802
        self.Isend(buffer, dest, tag).Wait()

    def Recv(self, buffer: Any, source: int, tag: int = 0) -> None:  # noqa: N802
        self.Irecv(buffer, source, tag).Wait()

    def overhead_nbytes(self, nbytes: int, dest: int) -> int:
        """Return by how many bytes a message grows: its header."""
        return HEADER_NBYTES

    def Free(self) -> None:  # noqa: N802
        """Nothing: the sockets are those of all communicators, and are closed with the world."""


def _bytes(buffer: Any) -> memoryview:
    if not buffer.flags.c_contiguous:
        raise ValueError("what is sent or received must be a contiguous array")
    flat: np.ndarray = buffer.reshape(-1).view(np.uint8)
    return flat.data
