"""Messages over a TCP connection: framed, numbered, checked, and sent again where they came damaged.

A frame is a header of 48 bytes and what is sent. Its CRC32C finds what TCP's 16 bits let through; the
receiver then asks for all from that number on, and drops what comes before it. A sender keeps what it
has sent until it is told that it came: short frames as copies, long ones in the caller's memory, whose
request is not done before. Where a header is damaged, the next good one is looked for.
"""

import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from isthmus.errors import MachineError, SiteError
from isthmus.extras import how_to_install

DATA, BYE, GONE, ACKNOWLEDGED, AGAIN, ALIVE, MEMBERS = range(7)
"""Kinds of frames. What GONE carries says who is gone and why; what MEMBERS does, who goes on."""
NUMBERED = (DATA, BYE, GONE, MEMBERS)
VOUCHED = (BYE, GONE, MEMBERS)
"""What a site says itself, and proves where the connection has a voucher."""
MARK = b"\xa7\x1c"
_FIELDS = struct.Struct("!2sBBIIiQQQI")
_CHECK = struct.Struct("!I")
HEADER_NBYTES = _FIELDS.size + _CHECK.size
"""By which each message grows."""
EAGER_NBYTES = 1 << 16
"""Up to which a frame is copied: what it was made of may change as soon as it is handed over."""
INBOX_NBYTES = 1 << 17
ACKNOWLEDGE_NBYTES, ACKNOWLEDGE_FRAMES = 1 << 18, 16
"""After which the sender is told that frames came, where nothing is sent that would tell it."""
MOST_REPEATS = 100
"""Of one frame; a link that damages so many in a row is broken."""
KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6}


class Header(NamedTuple):
    """What a frame says of itself; acknowledged: all of the other end's below this number came."""

    mark: bytes
    kind: int
    channel: int
    source: int
    dest: int
    tag: int
    nbytes: int
    number: int
    acknowledged: int
    check: int


class Outgoing:
    """A frame on its way out. `done` once the memory that it was made of is free again."""

    __slots__ = ("done", "head", "kept", "nbytes", "number", "payload")

    def __init__(self, head: tuple[int, ...], payload: Any, number: int | None):
        self.head, self.payload, self.number = head, payload, number
        self.nbytes = HEADER_NBYTES + len(payload)
        self.done = False
        self.kept = len(payload) > EAGER_NBYTES  # by the caller, until it is acknowledged


class Stream:
    """One end of a connection, used by one thread at a time; it never waits.

    who: what the other end is called in messages. room(header): gives the memory, a writable view of
    bytes, into which a numbered frame goes. take(header, view): is told that it has come. SiteError is
    raised, by all verbs alike, once the other end has gone without a BYE.
    """

    def __init__(
        self,
        connection: socket.socket,
        who: str,
        room: Callable[[Header], memoryview],
        take: Callable[[Header, memoryview], None],
    ):
        self.socket, self.who, self.room, self.take = connection, who, room, take
        self.voucher = getattr(connection, "voucher", None)  # none inside a site
        self.crc32c = checksum()
        make_quick(connection)
        connection.setblocking(False)
        self.reason: str | None = None  # why the other end is gone, where somebody has told
        self.patience_seconds = 0.0  # for which somebody who may tell is waited for
        self.ended = self.closed = False  # it has said BYE; and has closed the connection
        self._queue: deque[list[Any]] = deque()  # of [frame, packed header or None, bytes written]
        self._unconfirmed: deque[Outgoing] = deque()
        self._next, self._expected, self._told = 0, 0, 0
        self._came_nbytes = 0  # since the other end was last told what came
        self._inbox = memoryview(bytearray(INBOX_NBYTES))
        self._start = self._end = 0
        self._header: Header | None = None
        self._into: memoryview | None = None
        self._filled = 0
        self._lost, self._repeats = (
            False,
            0,
        )  # whether frames were asked for again, and how often in a row

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def writes(self) -> bool:
        """Whether something waits for the connection to take it."""
        return bool(self._queue)

    @property
    def confirmed(self) -> bool:
        """Whether all that was sent has come."""
        return not self._unconfirmed

    def send(self, kind: int, channel: int, source: int, dest: int, tag: int, payload: Any) -> Outgoing:
        """Send a numbered frame; payload: bytes, or a view of them, which stays until it is `done`."""
        head = kind, channel, source, dest, tag
        if self.voucher is not None and kind in VOUCHED:
            payload = self.voucher.signed(bytes(payload))
        frame = Outgoing(head, payload, self._next)
        if not frame.kept:
            frame.payload = bytes(payload)
        self._next += 1
        self._unconfirmed.append(frame)
        self._queue.append([frame, None, 0])
        if len(self._queue) == 1:
            self.write()
        return frame

    def say(self, kind: int) -> None:
        """Send a frame that has no number and nothing in it."""
        self._queue.append([Outgoing((kind, 0, 0, 0, 0), b"", None), None, 0])
        self.write()

    def write(self) -> None:
        """Hand on what the connection takes now."""
        while self._queue:
            entry = self._queue[0]
            frame, packed, written = entry
            if packed is None:
                packed = entry[1] = self._pack(frame)
            parts = (
                [memoryview(packed)[written:], frame.payload]
                if written < HEADER_NBYTES
                else [memoryview(frame.payload)[written - HEADER_NBYTES :]]
            )
            try:
                entry[2] += self.socket.sendmsg(parts)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as problem:
                raise self.gone(problem) from None
            if entry[2] == frame.nbytes:
                self._queue.popleft()
                frame.done = frame.done or not frame.kept

    def read(self) -> bool:
        """Take what has come; return whether anything has."""
        came = False
        while True:
            direct = self._into is not None and self._start == self._end
            try:
                room = self._into[self._filled :] if direct else self._inbox[self._end :]  # type: ignore[index]
                found = self.socket.recv_into(room)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as problem:
                raise self.gone(problem) from None
            if not found:
                if not self.ended:
                    raise self.gone()
                self.closed = True
                break
            came = True
            if direct:
                self._filled += found
                if found == len(room):
                    self._complete()
            else:
                self._end += found
            self._parse()
            if found < len(room):
                break
        if (
            self._came_nbytes >= ACKNOWLEDGE_NBYTES or self._expected - self._told >= ACKNOWLEDGE_FRAMES
        ) and not (self._queue and self._queue[-1][1] is None):  # that will tell it
            self.say(ACKNOWLEDGED)
        return came

    def gone(self, problem: OSError | None = None) -> SiteError:
        """Return what is to be raised because the other end is not there any more."""
        end = time.monotonic() + self.patience_seconds
        while self.reason is None and time.monotonic() < end:
            time.sleep(0.01)
        why = self.reason or (
            f"{self.who} has gone: it closed the connection"
            if problem is None or isinstance(problem, ConnectionResetError | BrokenPipeError)
            else f"{self.who} has gone: {problem.strerror or problem}"
        )
        return SiteError(f"{why}; see what it says itself, and start all sites again with --resume")

    def forget_callers(self) -> None:
        """Use no memory of others any more, neither of what is to be sent nor for what is to come."""
        for frame in self._unconfirmed:
            if frame.kept:
                frame.payload, frame.done = bytes(frame.payload), True
        if self._header is not None and self._into is not None:
            into = memoryview(bytearray(len(self._into)))
            into[: self._filled] = self._into[: self._filled]
            self._into = into

    def close(self) -> None:
        self.socket.close()

    def _pack(self, frame):
        check = self.crc32c(frame.payload) if len(frame.payload) else 0
        self._told, self._came_nbytes = self._expected, 0
        number = self._next if frame.number is None else frame.number
        fields = _FIELDS.pack(MARK, *frame.head, len(frame.payload), number, self._expected, check)
        return fields + _CHECK.pack(self.crc32c(fields))

    def _parse(self):
        """Take frames out of the inbox."""
        inbox = self._inbox
        while True:
            if self._into is None:
                if self._end - self._start < HEADER_NBYTES:
                    if self._start == self._end:
                        self._start = self._end = 0
                    elif self._start > INBOX_NBYTES // 2:
                        left = bytes(inbox[self._start : self._end])
                        inbox[: len(left)] = left
                        self._start, self._end = 0, len(left)
                    return
                if not self._begin():
                    continue
            assert self._into is not None
            count = min(self._end - self._start, len(self._into) - self._filled)
            self._into[self._filled : self._filled + count] = inbox[self._start : self._start + count]
            self._start += count
            self._filled += count
            if self._filled < len(self._into):
                self._start = self._end = 0
                return
            self._complete()

    def _begin(self):
        """Take a header; return whether a frame's content follows it."""
        place = self._start
        fields = self._inbox[place : place + _FIELDS.size]
        (check,) = _CHECK.unpack_from(self._inbox, place + _FIELDS.size)
        if fields[:2] != MARK or self.crc32c(fields) != check:
            self._ask_again()
            rest = bytes(self._inbox[place + 1 : self._end])
            found = rest.find(MARK)
            self._start = place + 1 + (found if found >= 0 else max(0, len(rest) - 1))
            return False
        header = Header(*_FIELDS.unpack_from(self._inbox, place))
        self._start += HEADER_NBYTES
        self._confirm(header.acknowledged)
        if header.kind not in NUMBERED:  # its number is that of the next one that has
            if header.number == self._expected:
                self._lost = False
            if header.kind == AGAIN:
                self._repeat(header.acknowledged)
            return False
        if header.number > self._expected:
            self._ask_again()
        self._header, self._filled = header, 0
        self._into = (
            self.room(header)
            if header.number == self._expected
            else memoryview(bytearray(header.nbytes))  # came before, or comes again
        )
        return True

    def _complete(self):
        header, into = self._header, self._into
        self._header = self._into = None
        if header.number != self._expected:
            return
        if header.nbytes and self.crc32c(into) != header.check:
            self._lost = False
            self._ask_again()
            return
        self._expected += 1
        self._lost, self._repeats = False, 0
        # Who has sent a long frame, or its last, waits to hear of it.
        waited_for = header.nbytes > EAGER_NBYTES or header.kind == BYE
        self._came_nbytes += ACKNOWLEDGE_NBYTES if waited_for else header.nbytes
        if self.voucher is not None and header.kind in VOUCHED:
            into = self._opened(into)
        if header.kind == BYE:
            self.ended = True
        else:
            self.take(header, into)

    def _opened(self, signed):
        """Return the words of the other end's site; whoever else says something ends the connection."""
        try:
            return memoryview(self.voucher.opened(bytes(signed)))
        except SiteError as problem:
            raise SiteError(f"{self.who} {problem}; look at what lies between") from None

    def _ask_again(self):
        """Ask for all frames from the next one on, once until that comes."""
        if self._lost:
            return
        self._lost, self._repeats = True, self._repeats + 1
        if self._repeats > MOST_REPEATS:
            raise SiteError(
                f"{self.who}: {MOST_REPEATS} frames in a row came damaged; look at the network cards "
                "and what lies between"
            )
        self.say(AGAIN)

    def _confirm(self, number):
        while self._unconfirmed and self._unconfirmed[0].number < number:
            self._unconfirmed.popleft().done = True

    def _repeat(self, number):
        """Send all frames from `number` on again, after the rest of one that is under way."""
        under_way = [entry for entry in self._queue if entry[2]]
        again = [[frame, None, 0] for frame in self._unconfirmed if frame.number >= number]
        unnumbered = [e for e in self._queue if e[0].head[0] not in NUMBERED and not e[2]]
        self._queue = deque(under_way + unnumbered + again)
        if self._lost:  # what was asked for may have been lost as well
            self._queue.append([Outgoing((AGAIN, 0, 0, 0, 0), b"", None), None, 0])
        self.say(ACKNOWLEDGED)


def make_quick(connection: socket.socket) -> None:
    """Have a connection send at once, and notice by itself that nobody is there any more."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def checksum() -> Callable[..., int]:
    """Return the library's CRC32C; MachineError where it is not installed."""
    try:
        from crc32c import crc32c
    except ImportError as problem:
        raise MachineError(
            f"sites as jobs of their own need the extra isthmus[sites] ({problem}); "
            f"{how_to_install('sites')}"
        ) from None
    return crc32c
