"""A site's switch: a thread of its leader's that passes on what its ranks and other sites send.

Leaders of sites that are joined talk over sockets of their own; all other messages between sites go
through the switches of both. It is also what notices that a site is silent: each switch gives a sign of
life twice a second, and a site without one for `deadline_seconds` is gone, frozen or cut off. Where the
others go on without it, the site's ranks are told, and its leader has the switch forget the site. Some
ranks read that late: it names the connection, so that nobody takes it for news of a later one.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from isthmus.errors import SiteError
from isthmus.json_text import dumps
from isthmus.links.frames import ALIVE, BYE, DATA, GONE, MEMBERS, Header, Stream
from isthmus.links.socket_comm import SECONDS_TO_CLOSE

SECONDS_BETWEEN_SIGNS = 0.5
PATIENCE_SECONDS = 30.0
"""Without a sign of life, where nobody says how long."""
SECONDS_TO_TELL = 0.5
"""In which a leader whose connection is closed hears from its switch who is gone, if it is another."""


class Switch(threading.Thread):
    """Passes frames on by the cluster rank that they are for, until it is closed or a site is gone.

    near: cluster rank of this site -> the socket to it. far: name of a site -> (the socket to its
    switch, cluster ranks that are reached there). direct: the leader's own sockets to other leaders,
    in the order of `far`, which are shut down where a site is gone, so that who waits there wakes up.
    survives: whether the others go on where a site is gone. given: whether the deadline was.
    """

    survives = False

    def __init__(
        self,
        near: Mapping[int, socket.socket],
        far: Mapping[str, tuple[socket.socket, Sequence[int]]],
        direct: Sequence[Stream],
        deadline_seconds: float | None,
    ):
        super().__init__(name="isthmus-switch", daemon=True)
        self.direct, self.given = direct, deadline_seconds is not None
        self.deadline_seconds = PATIENCE_SECONDS if deadline_seconds is None else deadline_seconds
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
        self._heard: dict[Stream, float] = {}
        self._site_of: dict[Stream, str] = {}
        self._number_of: dict[Stream, int] = {}  # of the connections to a site, one after another
        self._added = 0
        self._direct_of = dict(zip(far, direct))
        for site, (connection, ranks) in far.items():
            self._add(site, connection, ranks, 0)
        self._asked: deque[Callable[[], None]] = deque()  # by the leader's thread
        self._watch = selectors.DefaultSelector()
        self._events: dict[Stream, int] = {}
        self._reading: Stream | None = None
        self._wake, self._woken = socket.socketpair()
        self._watch.register(self._woken, selectors.EVENT_READ)
        self._closing = False

    def close(self) -> None:
        """Say good-bye to the other sites' switches, once this site's ranks have said it, and end."""
        self._closing = True
        self._nudge()
        self.join(2 * SECONDS_TO_CLOSE)

    def forget(self, site: str) -> None:
        """Pass nothing on to a site any more, and have its connections be closed."""
        self._ask(lambda: self._lose_all(site))

    def add(self, site: str, connection: socket.socket, ranks: Sequence[int], direct: Stream) -> int:
        """Pass on to a site that has come, too. Return the number of the connection, above 0.

        What this site's ranks are told of the site says of which connection it is.
        """
        direct.patience_seconds = SECONDS_TO_TELL
        self._added += 1
        number = self._added

        def act():
            self._lose_all(site)
            self._direct_of[site] = direct
            self._add(site, connection, ranks, number)

        self._ask(act)
        return number

    def _ask(self, act):
        self._asked.append(act)
        self._nudge()

    def _nudge(self):
        with contextlib.suppress(OSError):  # it has ended
            self._wake.send(b"\0")

    def _add(self, site, connection, ranks, number):
        stream = Stream(connection, f"site {site!r}", _room, self._pass_on)
        self._far.append(stream)
        self._heard[stream], self._site_of[stream] = time.monotonic(), site
        self._number_of[stream] = number
        self._stream_to.update(dict.fromkeys(ranks, stream))

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
                elif not self._closing:
                    self._woken.recv(4096)
            while self._asked:
                self._asked.popleft()()
            now = time.monotonic()
            if now >= sign:
                sign = now + SECONDS_BETWEEN_SIGNS
                for stream in [*self._far]:
                    if not stream.ended:
                        self._try(stream, lambda stream=stream: stream.say(ALIVE))
            for stream in [*self._far]:
                silent = now - self._heard[stream]
                if silent > self.deadline_seconds and not stream.ended:
                    why = f"{stream.who} has gone: no sign of life for {silent:.0f} s"
                    self._lose(stream, SiteError(why))
            if self._closing and not said:
                said, end = True, now + SECONDS_TO_CLOSE
                self._watch.unregister(self._woken)
                for stream in [*self._far]:
                    self._try(stream, lambda stream=stream: stream.send(BYE, 0, 0, 0, 0, b""))
            if said and all(
                stream.closed or (stream.ended and stream.confirmed and not stream.writes)
                for stream in self._far
            ):
                return

    def _work(self, stream):
        """Read and write one socket."""
        self._reading = stream
        try:
            if stream.writes:
                stream.write()
            if stream.read() and stream in self._heard:
                self._heard[stream] = time.monotonic()
            if stream in self._near and stream.ended and stream not in self._answered:
                self._answered.add(stream)
                stream.send(BYE, 0, 0, 0, 0, b"")
        except SiteError as problem:  # a rank of this site that is lost is mpirun's to tell
            if stream in self._far:
                self._lose(stream, problem)
            stream.closed = True

    def _try(self, stream, act):
        """Send to somebody who may be gone."""
        try:
            act()
        except SiteError as problem:
            if stream in self._far:
                self._lose(stream, problem)
            stream.closed = True

    def _lose(self, stream, problem):
        """Go on without a site, if the others do; this site's ranks hear of it."""
        if not self.survives:
            raise problem
        site = self._site_of.pop(stream)
        self._far.remove(stream)
        self._heard.pop(stream)
        self._stream_to = {rank: each for rank, each in self._stream_to.items() if each is not stream}
        if self._events.pop(stream, None):
            self._watch.unregister(stream)
        stream.close()
        direct = self._direct_of.pop(site, None)
        if direct is not None:
            direct.reason = direct.reason or str(problem).partition(";")[0]
            with contextlib.suppress(OSError):  # it is closed
                direct.socket.shutdown(socket.SHUT_RDWR)
        self._tell_near({"gone": site, "connection": self._number_of.pop(stream)})

    def _lose_all(self, site):
        for stream in [stream for stream, name in self._site_of.items() if name == site]:
            self._lose(stream, SiteError(f"{stream.who} has been left out"))

    def _tell_near(self, words):
        text = dumps(words).encode()
        for stream in self._near:
            if not stream.closed:
                self._try(stream, lambda stream=stream: stream.send(MEMBERS, 0, 0, 0, 0, text))

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
        if header.kind == MEMBERS:  # a rank wakes all others, of its site and of those joined with it
            words = bytes(view)
            targets = self._near if self._reading in self._far else self._near + self._far
            for stream in [each for each in targets if not each.closed]:
                self._try(stream, lambda stream=stream: stream.send(MEMBERS, 0, 0, 0, 0, words))
            return
        stream = self._stream_to.get(header.dest)
        if stream is None and self.survives:
            return  # it is gone
        if stream is None or header.kind != DATA:
            raise SiteError(f"a message came for rank {header.dest}, which no site here has")
        if not stream.closed:
            of = header.channel, header.source, header.dest, header.tag
            self._try(stream, lambda: stream.send(DATA, *of, view))

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
