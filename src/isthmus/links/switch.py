"""A site's switch: a thread of its leader's that passes on what its ranks and other sites send.

Leaders of sites that are joined talk over sockets of their own; all other messages between sites go
through the switches of both. It is also what notices that a site is silent: each switch gives a sign of
life every second, and a site without one for `deadline_seconds` is gone, frozen or cut off.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from isthmus.errors import SiteError
from isthmus.links.frames import ALIVE, BYE, DATA, GONE, Header, Stream
from isthmus.links.socket_comm import SECONDS_TO_CLOSE

SECONDS_BETWEEN_SIGNS = 1.0
SECONDS_TO_TELL = 0.5
"""In which a leader whose connection is closed hears from its switch who is gone, if it is another."""


class Switch(threading.Thread):
    """Passes frames on by the cluster rank that they are for, until it is closed or a site is gone.

    near: cluster rank of this site -> the socket to it. far: name of a site -> (the socket to its
    switch, cluster ranks that are reached there). direct: the leader's own sockets to other leaders,
    which are shut down where a site is gone, so that whoever waits there wakes up.
    """

    def __init__(
        self,
        near: Mapping[int, socket.socket],
        far: Mapping[str, tuple[socket.socket, Sequence[int]]],
        direct: Sequence[Stream],
        deadline_seconds: float,
    ):
        super().__init__(name="isthmus-switch", daemon=True)
        self.direct, self.deadline_seconds = direct, deadline_seconds
        for stream in direct:
            stream.patience_seconds = SECONDS_TO_TELL
        self._stream_to: dict[int, Stream] = {}
        self._near: list[Stream] = []
        self._far: list[Stream] = []
        self._answered: set[Stream] = set()  # of those near, that have said good-bye
        for rank, connection in near.items():
            stream = Stream(connection, f"rank {rank}", _room, self._pass_on)
            self._near.append(stream)
            self._stream_to[rank] = stream
        for site, (connection, ranks) in far.items():
            stream = Stream(connection, f"site {site!r}", _room, self._pass_on)
            self._far.append(stream)
            self._stream_to.update(dict.fromkeys(ranks, stream))
        self._heard = dict.fromkeys(self._far, time.monotonic())
        self._watch = selectors.DefaultSelector()
        self._events: dict[Stream, int] = {}
        self._wake, self._woken = socket.socketpair()
        self._watch.register(self._woken, selectors.EVENT_READ)
        self._closing = False

    def close(self) -> None:
        """Say good-bye to the other sites' switches, once this site's ranks have said it, and end."""
        self._closing = True
        with contextlib.suppress(OSError):  # it has ended
            self._wake.send(b"\0")
        self.join(2 * SECONDS_TO_CLOSE)

    def run(self) -> None:
        """Pass on until the end."""
        try:
            self._serve()
        except SiteError as problem:
            self._tell(str(problem).partition(";")[0])
        finally:
            for stream in self._near + self._far:
                stream.close()
            self._woken.close()
            self._wake.close()

    def _serve(self):
        sign, end, said = time.monotonic(), None, False
        while end is None or time.monotonic() < end:
            self._watch_all()
            for key, _ in self._watch.select(SECONDS_BETWEEN_SIGNS):
                if key.data is not None:
                    self._work(key.data)
            now = time.monotonic()
            if now >= sign:
                sign = now + SECONDS_BETWEEN_SIGNS
                for stream in self._far:
                    if not stream.ended:
                        stream.say(ALIVE)
            for stream in self._far:
                silent = now - self._heard[stream]
                if silent > self.deadline_seconds and not stream.ended:
                    raise SiteError(f"{stream.who} has gone: no sign of life for {silent:.0f} s")
            if self._closing and not said:
                said, end = True, now + SECONDS_TO_CLOSE
                self._watch.unregister(self._woken)
                for stream in self._far:
                    stream.send(BYE, 0, 0, 0, 0, b"")
            if said and all(
                stream.closed or (stream.ended and stream.confirmed and not stream.writes)
                for stream in self._far
            ):
                return

    def _work(self, stream):
        """Read and write one socket; a rank of this site that is lost is mpirun's to tell."""
        try:
            if stream.writes:
                stream.write()
            if stream.read() and stream in self._heard:
                self._heard[stream] = time.monotonic()
            if stream in self._near and stream.ended and stream not in self._answered:
                self._answered.add(stream)
                stream.send(BYE, 0, 0, 0, 0, b"")
        except SiteError:
            if stream in self._far:
                raise
            stream.closed = True

    def _watch_all(self):
        """Ask for what each socket waits for."""
        for stream in self._near + self._far:
            events = selectors.EVENT_READ | selectors.EVENT_WRITE * stream.writes
            if stream.closed:
                if self._events.pop(stream, None):
                    self._watch.unregister(stream)
            elif stream not in self._events:
                self._watch.register(stream, events, stream)
                self._events[stream] = events
            elif self._events[stream] != events:
                self._watch.modify(stream, events, stream)
                self._events[stream] = events

    def _pass_on(self, header: Header, view: memoryview) -> None:
        if header.kind == GONE:
            raise SiteError(bytes(view).decode(errors="replace"))
        stream = self._stream_to.get(header.dest)
        if stream is None or header.kind != DATA:
            raise SiteError(f"a message came for rank {header.dest}, which no site here has")
        if not stream.closed:
            stream.send(DATA, header.channel, header.source, header.dest, header.tag, view)

    def _tell(self, why: str) -> None:
        """Tell this site's ranks and the other sites who is gone, and wake whoever waits for them."""
        for stream in self.direct:
            stream.reason = stream.reason or why
        for stream in self._far + self._near:
            try:
                stream.send(GONE, 0, 0, 0, 0, why.encode())
            except SiteError:
                continue
        end = time.monotonic() + 1.0
        while time.monotonic() < end and any(s.writes and not s.closed for s in self._near + self._far):
            for stream in self._near + self._far:
                try:
                    stream.write()
                except SiteError:
                    stream.closed = True
            time.sleep(0.01)
        for stream in self.direct:
            try:
                stream.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def _room(header: Header) -> memoryview:
    return memoryview(bytearray(header.nbytes))
