"""The link between two sites on one machine, which can be cut, closed and slowed down. Needs no root."""

import socket
import threading
import time
from contextlib import suppress

CHUNK_NBYTES, SLOW_CHUNK_NBYTES = 1 << 16, 1 << 12
"""That are taken at a time; of a slow link, little enough for its connections to take turns."""
SECONDS_TO_CALL, SECONDS_BETWEEN_TRIES = 5.0, 0.05
TO, FROM = range(2)


class Relay:
    """Passes on what comes over TCP to `address` to the address `to`, and back, from `open` to `end`.

    address: where to call instead; nobody answers there while it is not open.
    """

    def __init__(self, to: tuple[str, int]):
        self.to = to
        self._place = reserved()
        self.address: tuple[str, int] = self._place.getsockname()
        self._lock = threading.RLock()
        self._door: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._whole = threading.Event()
        self._ended, self._mends_at = False, 0.0
        self._bytes_per_second: float | None = None
        self._flips: int | None = None
        self._turn = threading.Lock(), threading.Lock()  # of what crosses each way

    def open(self) -> None:
        """Answer, and let all through."""
        with self._lock:
            self._bytes_per_second = None
            self._whole.set()
            if self._door is None and not self._ended:
                self._door = socket.create_server(self.address)
                threading.Thread(target=self._admit, args=(self._door,), daemon=True).start()

    def cut(self, seconds: float | None) -> None:
        """Let nothing through, answer no call for so long; None: for ever. What waits goes on then."""
        with self._lock:
            self._whole.clear()
            self._shut()
            self._mend_in(seconds)

    def close(self, seconds: float | None) -> None:
        """Close all connections, and answer no call for so long."""
        with self._lock:
            self.cut(seconds)
            self._close_all()

    def slow(self, bytes_per_second: float, seconds: float | None) -> None:
        """Let no more through each way, of all connections together, for so long; None: for ever."""
        with self._lock:
            self._bytes_per_second = bytes_per_second
            self._mend_in(seconds)

    @property
    def carries(self) -> int:
        """How many connections go through it, now."""
        return len(self._connections) // 2

    def flip(self, bit: int) -> None:
        """Have a bit of what crosses next, either way, be another one: counted from its first."""
        self._flips = bit

    def end(self) -> None:
        """Close everything."""
        with self._lock:
            self._ended = True
            self._shut()
            self._close_all()
            self._place.close()
        self._whole.set()

    def _mend_in(self, seconds):
        """Be open again in so many seconds, where nothing else happens until then."""
        self._mends_at = at = time.monotonic() + (seconds or 0.0)

        def mend():
            with self._lock:
                if self._mends_at == at:
                    self.open()

        if seconds is not None:
            timer = threading.Timer(seconds, mend)
            timer.daemon = True
            timer.start()

    def _shut(self):
        if self._door is not None:
            with suppress(OSError):
                self._door.shutdown(socket.SHUT_RDWR)  # which wakes who accepts
            self._door.close()
            self._door = None

    def _close_all(self):
        for each in self._connections:
            _close(each)
        self._connections.clear()

    def _admit(self, door):
        while True:
            try:
                caller, _ = door.accept()
            except OSError:
                with self._lock:
                    if self._door is not door:  # it is shut
                        return
                time.sleep(SECONDS_BETWEEN_TRIES)  # else too much is open, for now
                continue
            try:
                called = socket.create_connection(self.to, timeout=SECONDS_TO_CALL)
            except OSError:
                _close(caller)
                continue
            called.settimeout(None)
            for each in (caller, called):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._door is not door:
                    _close(caller)
                    _close(called)
                    return
                self._connections |= {caller, called}
            threading.Thread(target=self._carry, args=(caller, called), daemon=True).start()

    def _carry(self, caller, called):
        """Pass on both ways until both have ended, and close both ends."""
        back = threading.Thread(target=self._pass_on, args=(called, caller, FROM), daemon=True)
        back.start()
        self._pass_on(caller, called, TO)
        back.join()
        with self._lock:
            self._connections -= {caller, called}
        _close(caller)
        _close(called)

    def _pass_on(self, source, target, way):
        """Pass on what comes from one end until that has closed its connection."""
        try:
            while came := source.recv(SLOW_CHUNK_NBYTES if self._bytes_per_second else CHUNK_NBYTES):
                if rate := self._bytes_per_second:
                    with self._turn[way]:
                        time.sleep(len(came) / rate)
                self._whole.wait()
                target.sendall(self._as_it_comes(came))
            self._whole.wait()
            target.shutdown(socket.SHUT_WR)
        except OSError:  # one end is gone without a word, and so is the other
            self._whole.wait()
            _close(source)
            _close(target)

    def _as_it_comes(self, came):
        with self._lock:
            bit, self._flips = self._flips, None
        if bit is None:
            return came
        changed = bytearray(came)
        changed[bit // 8 % len(changed)] ^= 1 << bit % 8
        return changed


def reserved() -> socket.socket:
    """Return a socket with a free port of this machine, where somebody else may listen."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(("127.0.0.1", 0))
    return place


def _close(connection):
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # which wakes who reads it
    connection.close()
