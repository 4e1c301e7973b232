"""How the jobs of the sites find one another: the hub listens, all others call it, in any order."""

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from isthmus.errors import SiteError
from isthmus.links.frames import make_quick
from isthmus.links.greeting import PARTS, Introduction, Met, admit, greet, refuse, start_of

log = logging.getLogger("isthmus")
SECONDS_BETWEEN_CALLS = 0.25
MOST_AT_ONCE = 64
"""Callers who are greeted at one time; the one that has called first gives way to one more."""

Address = tuple[str, int]
Tell = Callable[[str], Any]
Connections = dict[str, dict[str, Met]]
"""site -> which of PARTS -> the connection to it."""


def address_of(text: str) -> Address:
    """Return the host and the port in "HOST:PORT", of an IPv6 address in brackets; ValueError if not."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        host.encode("idna")
    except UnicodeError:  # else it would be raised wherever the name is looked up
        colon = ""
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no HOST:PORT, as in cloud.example.org:7000")
    return host, int(port)


def in_words(address: Address) -> str:
    """Return HOST:PORT, as `address_of` takes it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass
class _Caller:
    """A site that has called: its hello, its connections so far, and whether it takes part."""

    hello: dict[str, Any]
    address: str
    connections: dict[str, Met]
    takes_part: bool = False

    @property
    def is_gone(self):
        return any(_closed(each) for each in self.connections.values())

    @property
    def is_ready(self):
        """Whether it waits to take part."""
        return not self.takes_part and len(self.connections) == len(PARTS) and not self.is_gone

    def start(self, words):
        """Tell it that it takes part; others read and close its connections then."""
        for connection in self.connections.values():
            with suppress(OSError):  # it is found gone when it is waited for
                connection.begin(words)
        return self.connections

    def close(self):
        for each in self.connections.values() if not self.takes_part else ():
            each.close()


class Listener:
    """Where other sites call; kept by `with`. SiteError where one cannot listen there.

    others: the names of the sites that are to join. Whoever else calls is told of in one line, and
    nobody waits for it. before: those of them that are the next hub before this one is. is_hub: whether
    sites join here. gathers: whether those whose hub is gone vote here. members: (site, start) of those
    who take part, once they have changed. words: what all are told when they take part.
    """

    def __init__(
        self,
        address: Address,
        me: Introduction,
        others: Collection[str],
        tell: Tell,
        before: Collection[str] = (),
        is_hub: bool = True,
    ):
        self.me, self.others, self.tell = me, list(others), tell
        self.before, self.is_hub, self.gathers = before, is_hub, False
        self.members: Collection[tuple[str, str]] = ()
        self.words: dict[str, Any] = {}
        self._callers: dict[str, _Caller] = {}
        self._hello_of: dict[str, dict[str, Any]] = {}  # of those that take part
        self._twins: set[str] = set()  # sessions of second sites of one name, which are told of once
        self._listens: dict[str, bool] = {}  # site -> what it has said at the start
        self._lock = threading.Lock()
        self._greeted: list[socket.socket] = []  # who have called, and not proven themselves yet
        self._places = threading.Lock()  # of the list of these
        self._attending: threading.Thread | None = None
        self._closed = threading.Event()
        self._socket = _server(address)
        self.where = in_words((address[0] or "*", self._socket.getsockname()[1]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closed.set()
        if self._attending is not None:
            self._attending.join()
            self.dismiss("the run has ended")
        self._socket.close()

    def attend(self) -> None:
        """Take calls until the end, of sites that come back, too."""
        if self._attending is not None:
            return

        def act():
            while not self._closed.is_set():
                if select.select([self._socket], [], [], SECONDS_BETWEEN_CALLS)[0]:
                    self._take_call()

        self._attending = threading.Thread(target=act, name="isthmus-listener", daemon=True)
        self._attending.start()

    @property
    def begins(self) -> bool:
        """Whether all sites before this one have said that they do not listen: then it is the hub."""
        return all(self._listens.get(site) is False for site in self.before)

    @property
    def ready(self) -> list[str]:
        """The sites that have called since the others began, and wait to take part."""
        return sorted(site for site, hello in self._waiting().items() if hello["vote"] is None)

    @property
    def votes(self) -> dict[str, dict[str, Any]]:
        """Site -> what it says whose hub is gone, and which votes here."""
        return {site: hello["vote"] for site, hello in self._waiting().items() if hello["vote"]}

    def _waiting(self):
        with self._lock:
            return {site: caller.hello for site, caller in self._callers.items() if caller.is_ready}

    def hello_of(self, site: str) -> dict[str, Any]:
        """Return what a site that takes part has said of itself."""
        return self._hello_of[site]

    def take(self, site: str, generation: int) -> dict[str, Met] | None:
        """Return the connections of a site that waits, which is told that it takes part; None where it
        has gone meanwhile.

        generation: how often members have changed before.
        """
        words = {"generation": generation} | self.words
        if (caller := self._bound([site]).get(site)) is None:
            return None
        return caller.start(words)

    def _bound(self, sites):
        """Return site -> caller if all these sites wait, and from now on take part; else nothing."""
        with self._lock:
            found = {site: self._callers.get(site) for site in sites}
            if not all(caller is not None and caller.is_ready for caller in found.values()):
                return {}
            for site, caller in found.items():
                caller.takes_part, self._hello_of[site] = True, caller.hello
            return found

    def meet(
        self,
        wait_seconds: float,
        survives: bool = False,
        elsewhere: Callable[[], bool] = lambda: False,
        may_begin: Callable[[Collection[str]], bool] = lambda sites: False,
    ) -> Connections | None:
        """Return the connections of all other sites, or of those that have called in time, if these may
        begin; else SiteError.

        survives: whether the others go on where one is gone, this one too if another one listens.
        elsewhere: asked now and then whether the run is under way under another hub; None then.
        may_begin: whether some sites, this one among them, may begin without the others.
        """
        end = time.monotonic() + wait_seconds
        self.tell(f"site {self.me.site}: waits at {self.where} for {', '.join(self.others)}")
        while late := self._missing():
            if time.monotonic() > end:
                if may_begin([self.me.site, *(name for name in self.others if name not in late)]):
                    break
                port = self.where.rpartition(":")[2]
                may_not = ", and those who are there may not begin without it" * survives
                why = (
                    f"site {', '.join(map(repr, late))} did not join within {wait_seconds:g} s"
                    f"{may_not}; start `isthmus train RUN.toml --site {late[0]} --join HOST:{port}` "
                    "there, or give recovery.wait_seconds more"
                )
                self.dismiss(why)
                raise SiteError(f"{self.where}: {why}")
            if self._attending is not None:
                time.sleep(SECONDS_BETWEEN_CALLS)
            elif select.select([self._socket], [], [], SECONDS_BETWEEN_CALLS)[0]:
                self._take_call()
            if elsewhere():
                return None
        there = [name for name in self.others if name not in late]
        callers = self._bound(there)
        if len(callers) < len(there):  # one has gone, or called anew, since
            return self.meet(wait_seconds, survives, elsewhere, may_begin)
        hellos = {name: caller.hello for name, caller in callers.items()}
        others_listen = any(each["listens"] for each in hellos.values()) or bool(late and self.me.calls)
        self.words |= {"quorum": survives and others_listen, "late": late}
        for name, hello in hellos.items():
            if self.words["quorum"] and not hello["listens"] and hello["calls"] == 1:
                self.tell(
                    f"site {name}: has one address to --join, and ends where the hub is gone; give it "
                    "that of another site that listens as well"
                )
        return {name: caller.start(self.words) for name, caller in callers.items()}

    def _take_call(self):
        with suppress(OSError):  # it has hung up
            connection, address = self._socket.accept()
            with self._places, suppress(OSError):
                self._greeted.append(connection)
                if len(self._greeted) > MOST_AT_ONCE:
                    self._greeted.pop(0).shutdown(socket.SHUT_RDWR)
            threading.Thread(
                target=self._greet, args=(connection, f"{address[0]}:{address[1]}"), daemon=True
            ).start()

    def _greet(self, called, address):
        connection = called
        try:
            make_quick(connection)
            hello = greet(connection, self.me)
            with self._lock:
                twin = self._twin(hello)
                if why := self._not_here(hello) or twin:
                    refuse(connection, why, elsewhere=True)
                    if why == twin and hello["session"] not in self._twins:
                        self._twins.add(hello["session"])
                        log.warning(f"{self.where}: caller {address}: {twin}")
                    connection.close()
                    return
                if why := self._complaint(hello):
                    refuse(connection, why)
                    raise SiteError(f"site {hello['site']!r} is refused: {why}")
                connection = admit(connection, self.me, hello)
                connection.setblocking(False)
                caller = self._callers.setdefault(hello["site"], _Caller(hello, address, {}))
                caller.connections[hello["part"]] = connection
            if hello["vote"] is None and len(caller.connections) == len(PARTS):
                self.tell(f"site {hello['site']}: joined from {address}")
        except SiteError as problem:
            log.warning(f"{self.where}: caller {address}: {problem}; others are still waited for")
            connection.close()
        except OSError as problem:
            log.warning(f"{self.where}: caller {address}: has gone: {problem.strerror}")
            connection.close()
        finally:
            with self._places, suppress(ValueError):  # it has given way
                self._greeted.remove(called)

    def _not_here(self, hello):
        """Return why a site is to ask others, and may ask again; None if it is not to."""
        site, votes = hello["site"], hello["vote"] is not None
        if not votes and hello["settings"] == self.me.settings:
            self._listens[site] = hello["listens"]
        if not (self.gathers if votes else self.is_hub):
            left_out = votes and self.members and (site, start_of(hello["session"])) not in self.members
            why = f"site {self.me.site!r} is not the hub"
            unheard = [name for name in self.before if name not in self._listens]
            if unheard and not votes:
                why += f", and has not heard from {', '.join(unheard)}, before it in the cluster file,"
            return None if left_out else why
        if votes and hello["listens"] and site in self.before:
            return f"site {site!r} is the hub before site {self.me.site!r} is"
        return None

    def _complaint(self, hello):
        """Return why a site that has proven itself is not taken; None if it is."""
        site = hello["site"]
        if site == self.me.site:
            return f"two sites of one name, {site!r}: it is the one that listens"
        if site not in self.others:
            known = ", ".join([self.me.site, *self.others])
            return f"the cluster file has no site {site!r}; it has {known}"
        if hello["settings"] != self.me.settings:
            return "its settings or cluster file are not those of this run; copy both files there"
        if hello["vote"] is not None and not self.gathers:
            return "the others go on without it; start it again with the same command"
        caller = self._callers.get(site)
        if caller is not None and (
            caller.takes_part
            or caller.hello["session"] != hello["session"]
            or caller.hello["vote"] != hello["vote"]
        ):
            self._forget(site)
        return None

    def _twin(self, hello):
        """Return why a site is not taken as long as another one of its name is there; None if none is.

        It may have been started anew before it is noticed that it was gone.
        """
        caller = self._callers.get(hello["site"])
        if caller is None or caller.is_gone or caller.hello["session"] == hello["session"]:
            return None
        return (
            f"two sites of one name, {hello['site']!r}: one has joined from {caller.address}; if it "
            "lives, end one of them"
        )

    def _missing(self):
        """Return the sites that have not joined, or have gone again."""
        with self._lock:
            for site in [site for site, caller in self._callers.items() if caller.is_gone]:
                log.warning(f"site {site}: has gone again before the start")
                self._forget(site)
            return [
                site
                for site in self.others
                if site not in self._callers or len(self._callers[site].connections) < len(PARTS)
            ]

    def _forget(self, site):
        self._callers.pop(site).close()

    def dismiss(self, why: str, elsewhere: bool = False) -> None:
        """Tell all who wait to take part why they do not; elsewhere: here, now."""
        with self._lock:
            for site, caller in [*self._callers.items()]:
                if not caller.takes_part:
                    for connection in caller.connections.values():
                        refuse(connection, why, elsewhere)
                    self._forget(site)


def _server(address):
    host, port = address
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=MOST_AT_ONCE)
    except OSError as problem:
        raise SiteError(
            f"{in_words(address)}: cannot listen there: {problem.strerror}; end what has the port, or "
            "give --listen another address of this host"
        ) from None


def _closed(connection):
    """Whether the other end has closed a connection over which nothing is due yet."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
