"""The first words of two sites: each proves who it is before anything else is believed.

    joins  -> listens   hello: version, site, which connection this is, settings' digest, a nonce
    listens -> joins    hello: version, site, a nonce
    joins  -> listens   proof: of its site, on both hellos
    listens -> joins    proof: of its own site, on the same; or why the other is refused
    listens -> joins    start, once all sites are there; or why there is none

Words are JSON behind a mark and a length, of at most 4 KiB and within ten seconds, so that nobody who
happens to call keeps others waiting.
"""

import secrets
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import isthmus
from isthmus.errors import IsthmusError, SiteError
from isthmus.json_text import dumps, loads
from isthmus.security.admission import Admission

PROTOCOL = 2
MARK = b"isthmus\0"
MOST_NBYTES = 4096
SECONDS_TO_GREET = 10.0
PARTS = ("leaders", "switch")
"""The connections of two sites: of their leaders, and of their switches for all else."""
_LENGTH = struct.Struct("!I")


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
    ):
        raise SiteError("says what is no hello of isthmus")
    mine = me.hello(hello["part"])
    say(connection, mine)
    if wrong := other_version(me, hello):
        raise SiteError(wrong)
    _, answer = hear(connection, end)
    said = theirs + b"\0" + mine
    if not _proven(me.admission, hello["site"], b"joins\0" + said, answer):
        refuse(connection, "it has another token, or is not known by its key")
        raise SiteError(f"site {hello['site']!r} has another token, or is not known by its key")
    return hello | {"said": said}


def admit(connection: socket.socket, me: Introduction, hello: dict[str, Any]) -> None:
    """Let a site in, and prove to it who this one is."""
    say(connection, {"proof": me.admission.prove(b"listens\0" + hello["said"]).hex()})


def refuse(connection: socket.socket, why: str, elsewhere: bool = False) -> None:
    """Tell the other end why it is not taken, if it still listens; elsewhere: by this site, now."""
    try:
        say(connection, {"refused": why} | ({"elsewhere": True} if elsewhere else {}))
    except OSError:
        return


def introduce(
    connection: socket.socket, me: Introduction, part: str, seconds: float | None = None
) -> str:
    """Say who calls; return the name of the site that listens. SiteError where one is not who it
    should be, and as `raise_refused` does.

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
    say(connection, {"proof": me.admission.prove(b"joins\0" + said).hex()})
    _, answer = hear(connection, end)
    raise_refused(answer, site)
    if not _proven(me.admission, site, b"listens\0" + said, answer):
        raise SiteError(f"site {site!r} cannot prove itself: it has another token, or another key")
    return site


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
    came = b""
    while len(came) < count:
        connection.settimeout(max(1e-3, end - time.monotonic()))
        try:
            more = connection.recv(count - len(came))
        except TimeoutError:
            what = "stops in the middle of a word" if came else "says nothing"
            raise SiteError(f"{what} for {SECONDS_TO_GREET:g} s") from None
        except OSError as problem:
            raise SiteError(f"closed the connection: {problem.strerror}") from None
        if not more:
            what = "in the middle of a word" if came else "without a word"
            raise SiteError(f"closed the connection {what}")
        came += more
        if mark and not came.startswith(mark[: len(came)]):
            raise SiteError(f"is not isthmus: it begins with {came[:16]!r}")
    return came
