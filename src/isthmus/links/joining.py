"""How a site calls the one that listens, or those that may: each in turn, as often as it takes."""

import socket
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from isthmus.errors import SiteError
from isthmus.links.frames import make_quick
from isthmus.links.greeting import (
    PARTS,
    SECONDS_TO_GREET,
    ElsewhereError,
    Introduction,
    Met,
    RefusedError,
    introduce,
)
from isthmus.links.meeting import SECONDS_BETWEEN_CALLS, Address, Connections, Tell, in_words

SECONDS_OF_A_CALL = 10.0
SECONDS_OF_A_SHORT_CALL = 2.0
"""Of one to a site that may be gone, where others may be called."""


class Joined(NamedTuple):
    """The site that was joined, with the connections to it, what it said at the start, and where."""

    connections: Connections
    words: dict[str, Any]
    address: Address

    @property
    def site(self) -> str:
        """Its name."""
        return next(iter(self.connections))


class SilentError(Exception):
    """Nobody answers a call, or hangs up in the place of a word, for a reason in words."""


NOT_NOW = (SiteError, SilentError, ElsewhereError)
"""What a call may come to that may come to something later."""


def join(
    addresses: Sequence[Address],
    me: Introduction,
    wait_seconds: float,
    tell: Tell,
    is_hub: Callable[[], bool] = lambda: False,
) -> Joined | None:
    """Call the sites that listen until the hub is among them, and return who that is.

    wait_seconds: for which a hub is called, and then waited for, as it waits for others as long.
    is_hub: asked now and then whether it is this site itself; None then.
    SiteError if no hub answers in time, or who answers refuses this site, or is not who it should be.
    """
    end, told = time.monotonic() + wait_seconds, False
    while not is_hub():
        why, silent, listen = [], "", False
        for address in addresses:
            where = in_words(address)
            try:
                site, connections = call(address, me, SECONDS_OF_A_CALL)
                tell(f"site {me.site}: joined site {site} at {where}")
                words = wait_for_start(connections, site, where, time.monotonic() + wait_seconds)
                return Joined({site: connections}, words, address)
            except SilentError as problem:
                silent = str(problem)
            except ElsewhereError as problem:
                why.append(str(problem))
                listen = True
            except RefusedError as problem:
                raise SiteError(str(problem)) from None
            except SiteError as problem:
                if len(addresses) == 1:
                    raise
                why.append(str(problem))
        if time.monotonic() > end:
            where = " or ".join(map(in_words, addresses))
            for each in why:
                if "; " in each:  # it says itself what to do
                    raise SiteError(each)
            found = "; ".join(why) or f"{where}: nobody answers there"
            cure = "start the site that listens, with --listen, or look at the address and at firewalls"
            if listen:
                cure = "start all sites, each with the --join of every other one that listens"
            raise SiteError(f"{found} for {wait_seconds:g} s{f' ({silent})' * bool(silent)}; {cure}")
        if not told:
            tell(f"waiting for {' or '.join(map(in_words, addresses))} to answer")
            told = True
        time.sleep(SECONDS_BETWEEN_CALLS)
    return None


def join_one_under_way(
    addresses: Collection[Address], me: Introduction, wait_seconds: float, tell: Tell
) -> Joined | None:
    """Return who is the hub of a run under way that takes this site back; None if nobody says so."""
    for address in addresses:
        try:
            site, connections = call(address, me, SECONDS_OF_A_SHORT_CALL)
            where, end = in_words(address), time.monotonic() + wait_seconds
            tell(f"site {me.site}: joined site {site} at {where}")
            words = wait_for_start(connections, site, where, end)
        except RefusedError as problem:
            raise SiteError(str(problem)) from None
        except NOT_NOW:
            continue
        return Joined({site: connections}, words, address)
    return None


def call(address: Address, me: Introduction, seconds: float) -> tuple[str, dict[str, Met]]:
    """Return the name of the site that takes this one there, and the connections to it, by PARTS.

    seconds: for which an answer is waited for. RefusedError where it is no, NOT_NOW where there is none.
    """
    where, site = in_words(address), ""
    connections: dict[str, Any] = {}
    try:
        for part in PARTS:
            connections[part] = _connected(address, seconds)
            site, connections[part] = _introduced(connections[part], me, part, where, seconds)
    except BaseException:
        _close(connections)
        raise
    return site, connections


def wait_for_start(connections: dict[str, Met], site: str, where: str, end: float) -> dict[str, Any]:
    """Return what the site that listens says once this one takes part; end: on `time.monotonic`."""
    answer: dict[str, Any] = {}
    try:
        for connection in connections.values():
            try:
                answer = connection.begun(max(end, time.monotonic()) + SECONDS_TO_GREET)
            except SiteError as problem:
                raise SiteError(
                    f"{where}: site {site!r} {problem}, before all sites had joined"
                ) from None
    except BaseException:
        _close(connections)
        raise
    return answer


def _close(connections):
    for connection in connections.values():
        connection.close()


def _connected(address, seconds):
    try:
        return socket.create_connection(address, timeout=seconds)
    except OSError as problem:
        raise SilentError(problem.strerror or str(problem)) from None


def _introduced(connection, me, part, where, seconds):
    try:
        make_quick(connection)
        return introduce(connection, me, part, min(seconds, SECONDS_TO_GREET))
    except (SiteError, RefusedError, ElsewhereError) as problem:
        if isinstance(problem, SiteError) and problem.hung_up:  # it may have too many callers
            raise SilentError(str(problem)) from None
        raise type(problem)(f"{where}: {problem}") from None
    except OSError as problem:
        raise SilentError(problem.strerror or str(problem)) from None
