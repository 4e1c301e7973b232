"""The first words of two sites: each proves who it is before anything else is believed.

    joins  -> listens   hello: version, site, which connection this is, settings' digest, a nonce
    listens -> joins    hello: version, site, a nonce
    joins  -> listens   proof: of its site, on both hellos
    listens -> joins    proof: of its own site, on the same; or why the other is refused
    listens -> joins    start, once all sites are there, with a proof; or why there is none

Words are JSON behind a mark and a length, of at most 4 KiB and within ten seconds, so that nobody who
happens to call keeps others waiting. What the two say later of who takes part has a proof as well.
"""

import secrets
import socket
import struct
import time
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Self

import isthmus
from isthmus.errors import IsthmusError, SiteError
from isthmus.json_text import dumps, loads
from isthmus.security.admission import Admission

PROTOCOL = 3
MARK = b"isthmus\0"
MOST_NBYTES = 4096
SECONDS_TO_GREET = 10.0
PARTS = ("leaders", "switch")
"""The connections of two sites: of their leaders, and of their switches for all else."""
_LENGTH, _NUMBER = struct.Struct("!I"), struct.Struct("!Q")
_JOINS, _LISTENS = b"joins\0", b"listens\0"


@dataclass(frozen=True)
class Introduction:
    """What a site says of itself. settings: a digest of what all sites must have alike.

    listens: whether it may be the next hub. calls: how many addresses it knows. vote: where the hub of a
    run under way is gone, what `succession` tells who would be the next.
    """

    site: str
    settings: str
    admission: Admission
    version: str = isthmus.__version__
    listens: bool = False
    calls: int = 0
    vote: dict[str, Any] | None = None
    session: str = field(default_factory=lambda: secrets.token_hex(16))
    """Tells connections of one job apart from those of another that says to be the same site."""

    @property
    def start(self) -> str:
        """Tells this start of the site from others, in few letters."""
        return start_of(self.session)

    def hello(self, part: str) -> bytes:
        """Return the first words, with a nonce of their own."""
        return dumps(
            {
                "protocol": PROTOCOL,
                "version": self.version,
                "site": self.site,
                "part": part,
                "session": self.session,
                "settings": self.settings,
                "listens": self.listens,
                "calls": self.calls,
                "vote": self.vote,
                "nonce": secrets.token_hex(32),
            }
        ).encode()


def start_of(session: str) -> str:
    """Return the few letters for a session of `Introduction`."""
    return session[:8]


def say(connection: socket.socket, words: bytes | dict[str, Any]) -> None:
    """Send words; a dict as JSON."""
    text = words if isinstance(words, bytes) else dumps(words).encode()
    connection.sendall(MARK + _LENGTH.pack(len(text)) + text)


def hear(connection: socket.socket, end: float) -> tuple[bytes, dict[str, Any]]:
    """Return the next words, and what they say. SiteError for what are none by the moment `end`.

    end: on `time.monotonic`.
    """
    head = _exactly(connection, len(MARK) + _LENGTH.size, end, MARK)
    (count,) = _LENGTH.unpack(head[len(MARK) :])
    if count > MOST_NBYTES:
        raise SiteError(f"says {count} bytes at once where {MOST_NBYTES} are the most")
    text = _exactly(connection, count, end)
    try:
        table = loads(text)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise SiteError("says what is no JSON")
    return text, table


class Voucher:
    """Proofs that words are of the site at one end of a connection, for the other, and none is missing.

    admission: what this end proves itself with. site: the other. said: what both have said at first.
    ends: the part of this end, and that of the other.
    """

    def __init__(self, admission: Admission, site: str, said: bytes, ends: tuple[bytes, bytes]):
        self.admission, self.site, self.said = admission, site, sha256(said).digest()
        self.ends, self.numbers = ends, [0, 0]

    def signed(self, words: bytes) -> bytes:
        """Return the words behind their proof."""
        proof = self.admission.prove(self._next(0, words))
        return bytes([len(proof)]) + proof + words

    def opened(self, signed: bytes) -> bytes:
        """Return the words. SiteError where they are not those that the other end says next."""
        count = 1 + signed[0] if signed else 0
        proof, words = signed[1:count], signed[count:]
        try:
            if self.admission.holds(self.site, self._next(1, words), proof):
                return words
        except (IsthmusError, ValueError):
            pass
        raise SiteError("does not prove what it says of who takes part")

    def _next(self, end, words):
        number, self.numbers[end] = self.numbers[end], self.numbers[end] + 1
        return b"words\0" + self.ends[end] + self.said + _NUMBER.pack(number) + words


class Met(socket.socket):
    """A connection of two sites that have proven themselves, and its `voucher`."""

    voucher: Voucher

    @classmethod
    def of(cls, connection: socket.socket, voucher: Voucher) -> Self:
        """Return one in the place of `connection`, which is closed with it."""
        seconds = connection.gettimeout()
        met = cls(fileno=connection.detach())
        met.settimeout(seconds)
        met.voucher = voucher
        return met

    def begin(self, words: dict[str, Any]) -> None:
        """Tell the other end that it takes part."""
        say(self, {"start": self.voucher.signed(dumps(words).encode()).hex()})

    def begun(self, end: float) -> dict[str, Any]:
        """Return what the other end has told by `begin`; end: on `time.monotonic`.

        SiteError where it does not, or not itself; and as `raise_refused` does.
        """
        _, answer = hear(self, end)
        raise_refused(answer, self.voucher.site)
        try:
            return loads(self.voucher.opened(bytes.fromhex(str(answer.get("start")))))
        except ValueError:
            raise SiteError("says what is no start") from None


class RefusedError(Exception):
    """The site that was called does not take this one."""


class ElsewhereError(Exception):
    """The site that was called is not the hub, now."""


def greet(connection: socket.socket, me: Introduction) -> dict[str, Any]:
    """Hear who calls, and answer; return the hello. SiteError for whom this site does not take.

    Whether its settings are those of this site, its name one of the cluster's: `refuse` or `admit` it.
    """
    end = time.monotonic() + SECONDS_TO_GREET
    theirs, hello = hear(connection, end)
    wanted = {"site", "part", "session", "settings", "nonce", "version"}
    if (
        not all(isinstance(hello.get(key), str) for key in wanted)
        or hello["part"] not in PARTS
        or not isinstance(hello.get("vote"), dict | None)
        or not isinstance(hello.get("listens"), bool)
        or not isinstance(hello.get("calls"), int)
    ):
        raise SiteError("says what is no hello of isthmus")
    mine = me.hello(hello["part"])
    say(connection, mine)
    if wrong := other_version(me, hello):
        raise SiteError(wrong)
    _, answer = hear(connection, end)
    said = theirs + b"\0" + mine
    if not _proven(me.admission, hello["site"], _JOINS + said, answer):
        refuse(connection, "it has another token, or is not known by its key")
        raise SiteError(f"site {hello['site']!r} has another token, or is not known by its key")
    return hello | {"said": said}


def admit(connection: socket.socket, me: Introduction, hello: dict[str, Any]) -> Met:
    """Let a site in, and prove to it who this one is. Return the connection in the place of this one."""
    said = hello["said"]
    say(connection, {"proof": me.admission.prove(_LISTENS + said).hex()})
    return Met.of(connection, Voucher(me.admission, hello["site"], said, (_LISTENS, _JOINS)))


def refuse(connection: socket.socket, why: str, elsewhere: bool = False) -> None:
    """Tell the other end why it is not taken, if it still listens; elsewhere: by this site, now."""
    try:
        say(connection, {"refused": why} | ({"elsewhere": True} if elsewhere else {}))
    except OSError:
        return


def introduce(
    connection: socket.socket, me: Introduction, part: str, seconds: float | None = None
) -> tuple[str, Met]:
    """Say who calls; return the name of the site that listens, and the connection, in the place of this
    one. SiteError where one is not who it should be, and as `raise_refused` does.

    seconds: for which it is waited for, if not SECONDS_TO_GREET.
    """
    end = time.monotonic() + (SECONDS_TO_GREET if seconds is None else seconds)
    mine = me.hello(part)
    say(connection, mine)
    theirs, hello = hear(connection, end)
    site = hello.get("site")
    if not isinstance(site, str):
        raise SiteError("says what is no hello of isthmus")
    if wrong := other_version(me, hello):
        raise SiteError(wrong)
    said = mine + b"\0" + theirs
    say(connection, {"proof": me.admission.prove(_JOINS + said).hex()})
    _, answer = hear(connection, end)
    raise_refused(answer, site)
    if not _proven(me.admission, site, _LISTENS + said, answer):
        raise SiteError(f"site {site!r} cannot prove itself: it has another token, or another key")
    return site, Met.of(connection, Voucher(me.admission, site, said, (_JOINS, _LISTENS)))


def raise_refused(answer: dict[str, Any], site: str) -> None:
    """Raise RefusedError where an answer of `site` is a refusal, ElsewhereError where others are to be
    asked."""
    if "refused" in answer:
        kind = ElsewhereError if answer.get("elsewhere") is True else RefusedError
        raise kind(f"site {site!r} refuses this one: {str(answer['refused'])[:500]}")


def other_version(me: Introduction, hello: dict[str, Any]) -> str | None:
    """Return what is wrong with the version that another site has; None where it is this one's."""
    if hello.get("protocol") == PROTOCOL and hello.get("version") == me.version:
        return None
    return (
        f"site {str(hello.get('site'))[:100]!r} has isthmus {str(hello.get('version'))[:40]}, "
        f"site {me.site!r} has {me.version}; install one version on both"
    )


def _proven(admission, site, said, answer):
    try:
        return admission.holds(site, said, bytes.fromhex(str(answer.get("proof"))))
    except (IsthmusError, ValueError):
        return False


def _exactly(connection, count, end, mark=b""):
    """Return so many bytes, which begin with `mark`; SiteError if they do not come by `end`."""
    came, began = b"", time.monotonic()
    while len(came) < count:
        connection.settimeout(max(1e-3, end - time.monotonic()))
        try:
            more = connection.recv(count - len(came))
        except TimeoutError:
            what = "stops in the middle of a word" if came else "says nothing"
            raise SiteError(f"{what} for {round(time.monotonic() - began, 1):g} s") from None
        except OSError as problem:
            raise _hung_up(f"closed the connection: {problem.strerror}") from None
        if not more and came:
            raise SiteError("closed the connection in the middle of a word")
        if not more:
            raise _hung_up("closed the connection without a word")
        came += more
        if mark and not came.startswith(mark[: len(came)]):
            raise SiteError(f"is not isthmus: it begins with {came[:16]!r}")
    return came


def _hung_up(why):
    problem = SiteError(why)
    problem.hung_up = True
    return problem
