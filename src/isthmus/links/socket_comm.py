"""Messages between jobs over TCP, as MPI's are inside one: the verbs of `Comm`, arrays and no pickle.

A rank's sockets are read and written by whoever waits for a message, in its own thread, as MPI does it:
nothing is handed from one thread to another, which would take longer than the message.
"""

import contextlib
import select
import socket
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isthmus.errors import MachineError, SiteError
from isthmus.json_text import dumps, loads
from isthmus.links.comm import bytes_of
from isthmus.links.frames import BYE, DATA, GONE, HEADER_NBYTES, MEMBERS, Header, Outgoing, Stream

WORLD, LEADERS, TIER = range(3)
"""Channels: messages of one communicator never answer another's."""
CHANNELS, GENERATIONS = 3, 64
"""Of one set of members; and how many sets of members have channels of their own, before the first
ones' are used again."""
SPIN_SECONDS = 1e-4
"""For which a waiting rank looks again and again: a message of a near rank is there sooner."""
SECONDS_TO_CLOSE = 5.0


class LostSitesError(Exception):
    """Sites have gone or come while others go on: what all do together is to be done again."""


class Endpoint:
    """One rank's sockets, and the messages that wait for it.

    rank: in the cluster. peers: (socket, what is at its other end, cluster ranks that it reaches); the
    last one that reaches a rank is not asked where an earlier one does.

    generation: how often members have changed. survives: whether the others go on where one is gone;
    then whoever waits raises LostSitesError, and so does everything until `renew`. Messages of
    generations before are dropped, those of the next are kept. connections: site -> the number of the
    one to it, as this site's `Switch` counts them, of the sites that take part.
    """

    def __init__(self, rank: int, peers: Sequence[tuple[socket.socket, str, Sequence[int]]]):
        self.rank = rank
        self.streams: list[Stream] = []
        self.stream_to: dict[int, Stream] = {}
        self._posted: dict[tuple[int, int, int], deque[Received]] = defaultdict(deque)
        self._early: dict[tuple[int, int, int], deque[memoryview]] = defaultdict(deque)
        self._poll = select.poll()
        self._watched: dict[int, int] = {}
        self.generation, self.survives = 0, False
        self.connections: Mapping[str, int] = {}
        self.broken: LostSitesError | None = None
        self.said: deque[tuple[Stream, dict[str, Any]]] = deque()  # of MEMBERS, and not heard yet
        self._reading: Stream | None = None
        for connection, who, ranks in peers:
            self.add(connection, who, ranks)

    def add(self, connection: socket.socket, who: str, ranks: Sequence[int]) -> Stream:
        """Reach ranks that are not reached yet through another connection."""
        stream = Stream(connection, who, self._room, self._take)
        self.streams.append(stream)
        for each in ranks:
            self.stream_to.setdefault(each, stream)
        return stream

    def reach(self, ranks: Iterable[int], stream: Stream) -> None:
        """Reach ranks through this connection from now on."""
        self.stream_to.update(dict.fromkeys(ranks, stream))

    def lose(self, stream: Stream) -> None:
        """Ask no more of a connection whose other end is gone."""
        if stream in self.streams:
            self.streams.remove(stream)
            if self._watched.pop(stream.fileno(), None):
                self._poll.unregister(stream.fileno())
            stream.close()
            self.stream_to = {rank: each for rank, each in self.stream_to.items() if each is not stream}

    def say(self, stream: Stream, words: dict[str, Any]) -> None:
        """Say something of who goes on; that the other end is gone is noticed later."""
        with contextlib.suppress(SiteError):
            stream.send(MEMBERS, 0, self.rank, self.rank, 0, dumps(words).encode())

    def hear(self, wanted: str, seconds: float) -> tuple[Stream, dict[str, Any]] | None:
        """Return what was said of who goes on that has `wanted`, and by whom; None within `seconds`.

        Whoever is gone is lost. What is for a generation to come is kept until then.
        """
        found = self._heard(wanted)
        if found is None:
            self.progress(seconds, settling=True)
            found = self._heard(wanted)
        return found

    def _heard(self, wanted):
        found, kept = None, deque()
        for said in self.said:
            if found is None and wanted in said[1]:
                found = said
            elif found is not None or self._age(said[1]) < 0:
                kept.append(said)
        self.said = kept
        return found

    def renew(self, generation: int) -> None:
        """Begin anew with others: forget all messages of those before, and what was wrong."""
        self.generation, self.broken = generation, None
        self._posted.clear()
        for key in [key for key in self._early if self._is_stale(key[0])]:
            del self._early[key]
        for stream in self.streams:
            stream.forget_callers()
        said, self.said = self.said, deque()
        for stream, words in said:
            self._take_words(stream, words)

    def send(self, channel: int, buffer: Any, dest: int, tag: int) -> "Sent":
        """Start to send a contiguous array to the cluster rank `dest`."""
        self.check(dest)
        stream = self.stream_to[dest]
        try:
            frame = stream.send(DATA, channel, self.rank, dest, tag, bytes_of(buffer).data)
        except SiteError as problem:
            raise self.gone(stream, problem) from None
        return Sent(self, frame)

    def receive(self, channel: int, buffer: Any, source: int, tag: int) -> "Received":
        """Start to receive into a contiguous array from the cluster rank `source`."""
        self.check(source)
        key = channel, source, tag
        request = Received(self, self.stream_to[source], buffer)
        if self._early[key]:
            request.fill(self._early[key].popleft())
        else:
            self._posted[key].append(request)
        return request

    def check(self, rank: int) -> None:
        """Raise LostSitesError where sites have changed, so that `rank` may not be reached."""
        if self.broken is None and rank not in self.stream_to:
            self.broken = LostSitesError(f"rank {rank} is reached no more")
        if self.broken is not None:
            raise self.broken

    def gone(self, stream: Stream, problem: SiteError) -> Exception:
        """Return what is to be raised because the other end of `stream` is gone, as `problem` says."""
        if not self.survives:
            return problem
        self.lose(stream)
        self.broken = self.broken or LostSitesError(str(problem))
        return self.broken

    def progress(self, wait_seconds: float | None = 0.0, settling: bool = False) -> None:
        """Take and send on what can be, and wait so long for something; None: without end.

        settling: whether to go on where sites have changed.
        """
        end = time.monotonic() + SPIN_SECONDS
        while True:
            if self._pass(settling):
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
        self._pass(settling)

    def finish(self) -> None:
        """Say good-bye on all sockets; close them once the other ends have had all and said it too."""
        end = time.monotonic() + SECONDS_TO_CLOSE
        with contextlib.suppress(SiteError):  # who has gone has nothing to say
            for stream in [*self.streams]:
                try:
                    stream.send(BYE, 0, self.rank, self.rank, 0, b"")
                except SiteError:
                    if not self.survives:
                        raise
                    self.lose(stream)
            while time.monotonic() < end and not all(
                stream.closed or (stream.ended and stream.confirmed and not stream.writes)
                for stream in self.streams
            ):
                self.progress(0.05, settling=self.survives)
        for stream in self.streams:
            stream.close()

    def _pass(self, settling=False):
        """Read and write all sockets once, without waiting; return whether anything has come."""
        came = False
        for stream in [*self.streams]:
            self._reading = stream
            try:
                if stream.writes:
                    stream.write()
                if not stream.closed:
                    came = stream.read() or came
            except SiteError as problem:
                if not self.survives:
                    raise
                self.gone(stream, problem)
                came = True
        if self.broken is not None and not settling:
            raise self.broken
        return came

    def _is_stale(self, channel):
        """Whether messages of this channel are of a generation before."""
        ahead = (channel // CHANNELS - self.generation) % GENERATIONS
        return ahead >= GENERATIONS // 2

    def _take_words(self, stream, words):
        """Keep what is said of who goes on; of this generation, it is a change."""
        age = self._age(words)
        if age > 0:
            return
        self.said.append((stream, words))
        if age == 0:
            self.broken = self.broken or LostSitesError(
                "another site has gone or come meanwhile; start this site again with the same command"
            )

    def _age(self, words):
        """Return how much is newer than these words: above 0 they are old, below they are of later."""
        if "gone" in words:  # a connection: it may be read long after, or before the site takes part
            number = words["connection"]
            return self.connections.get(words["gone"], number - 1) - number
        return self.generation - words.get("generation", self.generation)

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
        if header.kind == MEMBERS:
            self._take_words(self._reading, loads(bytes(view)))
            return
        key = header.channel, header.source, header.tag
        if self._is_stale(header.channel):
            return
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
        self.endpoint, self.stream, self.view = endpoint, stream, bytes_of(buffer).data
        self.done, self.came_nbytes = False, self.view.nbytes

    def Wait(self) -> None:  # noqa: N802
        while not self.done:
            if self.stream.closed:
                raise self.endpoint.gone(self.stream, self.stream.gone())
            self.endpoint.progress(None)
        self._check()

    def Test(self) -> bool:  # noqa: N802
        if not self.done:
            self.endpoint.progress()
        if self.done:
            self._check()
        return self.done

    def fill(self, came: memoryview) -> None:
        """Take what has come: it is in its place, or is brought there."""
        self.came_nbytes, self.done = came.nbytes, True
        if came is not self.view and came.nbytes == self.view.nbytes:
            self.view[:] = came

    def _check(self):
        if self.came_nbytes != self.view.nbytes:
            raise MachineError(
                f"a message of {self.came_nbytes} bytes came over a socket where {self.view.nbytes} "
                "were due; start all sites with the same version and settings"
            )


class SocketComm:
    """Ranks of several jobs, one communicator: a `Comm` whose messages all cross sockets.

    ranks: cluster rank of each rank. channel: no other communicator's of these members.
    """

    def __init__(self, endpoint: Endpoint, channel: int, ranks: Sequence[int]):
        self.endpoint, self.ranks = endpoint, ranks
        self.channel = CHANNELS * (endpoint.generation % GENERATIONS) + channel
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

    def Revoke(self) -> None:  # noqa: N802
        """Nothing: whoever waits for a site that is gone is woken by its sockets."""

    def Free(self) -> None:  # noqa: N802
        """Nothing: the sockets are those of all communicators, and are closed with the world."""
