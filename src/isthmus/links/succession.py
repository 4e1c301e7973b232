"""How sites whose hub is gone find the next: they call one another, and vote by the rule of `quorum`.

The next hub is the first, in the order of the cluster file, of those that listen and are reached: who
listens votes for another one only if that comes first. A site is bound to whom it votes for as long as
their connection lasts.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from isthmus.errors import SiteError
from isthmus.links.greeting import Introduction, RefusedError
from isthmus.links.joining import NOT_NOW, SECONDS_OF_A_SHORT_CALL, Joined, call, wait_for_start
from isthmus.links.meeting import Address, Connections, Listener, in_words
from isthmus.links.quorum import Quorum, Vote, may_vote, next_number, those_who_go_on

SECONDS_BETWEEN_ROUNDS = 0.05
SECONDS_FOR_OTHERS = 2.0
"""For which a hub that has votes enough waits for those that may notice later."""
SECONDS_TO_BE_REACHED = 10.0
"""Beyond the deadline after which all have noticed."""


class Succession:
    """Of a site's leader. me: what the site says of itself; addresses: of those who may be the next hub.

    door: where others call, None where this site does not listen. site_at: who was found where.
    """

    def __init__(
        self,
        quorum: Quorum,
        me: Introduction,
        addresses: Sequence[Address],
        door: Listener | None,
        joined: Joined | None = None,
    ):
        self.quorum, self.me, self.addresses, self.door = quorum, me, addresses, door
        self.site_at = {joined.address: joined.site} if joined is not None else {}

    def next_hub(
        self, vote: Vote, gone: str, members: Sequence[str], deadline_seconds: float
    ) -> tuple[str, int, Connections]:
        """Return the next hub, the number of the change to come, and the connections to the hub, or of
        it to all others. Where none is found that is this site itself, which may be alone.

        vote: of this site. gone: the hub before. members: sites that took part. deadline_seconds: after
        which the others have noticed, too. SiteError where the others go on without this site.
        """
        me = replace(self.me, vote=_told(vote))
        end = time.monotonic() + deadline_seconds + SECONDS_TO_BE_REACHED
        enough = None
        while True:
            self._gather(True)
            if (found := self._joined(me, vote, gone, end)) is not None:
                return found
            votes = [vote, *self._votes()]
            stay = those_who_go_on(votes)
            sites = [each.site for each in stay]
            now = time.monotonic()
            if vote in stay and self.quorum.is_reached(sites):
                enough = now if enough is None else enough
                if {*members} - {gone} <= {*sites} or now > enough + SECONDS_FOR_OTHERS:
                    break
            else:
                enough = None
            if now > end:
                break
            time.sleep(SECONDS_BETWEEN_ROUNDS)
        if vote not in stay:
            raise SiteError("the others go on without this site")
        number, door = next_number(each.promised for each in votes), self.door
        if door is None:
            return vote.site, number, {}
        door.gathers = False
        taken = {site: door.take(site, number) for site in sites if site != vote.site}
        connections = {site: parts for site, parts in taken.items() if parts is not None}
        sites = [vote.site, *connections]  # without who has gone again
        goes_on = self.quorum.is_reached(sites)
        door.dismiss("the others go on without it" if goes_on else "too few are left", not goes_on)
        return vote.site, number, connections

    def _joined(self, me, vote, gone, end):
        """Return what `next_hub` does where another site is the hub; None where none that is reached."""
        for address in self.addresses:
            if self.site_at.get(address) == gone:
                continue
            try:
                site, connections = call(address, me, SECONDS_OF_A_SHORT_CALL)
                self.site_at[address] = site
                self._gather(False)
                words = wait_for_start(connections, site, in_words(address), end)
            except RefusedError as problem:
                raise SiteError(str(problem)) from None
            except NOT_NOW:  # it is not there, no hub, or has gone
                self._gather(True)
                continue
            if may_vote(vote.promised, words["generation"]):
                return site, words["generation"], {site: connections}
        return None

    def _gather(self, whether):
        if self.door is not None:
            self.door.gathers = whether
            if not whether:
                self.door.dismiss("another site is the next hub", elsewhere=True)

    def _votes(self):
        if self.door is None:
            return []
        found = []
        for site, told in self.door.votes.items():
            with suppress(KeyError, TypeError, ValueError):  # what says no vote has none
                found.append(_vote_of(site, told))
        return found


def _told(vote: Vote) -> dict[str, Any]:
    return asdict(vote) | {"members": sorted(map(list, vote.members))}


def _vote_of(site, told):
    """Return the Vote that `_told` gave a table of, of a site that has proven itself."""
    return Vote(
        site,
        str(told["start"]),
        int(told["taken"]),
        frozenset((str(name), str(start)) for name, start in told["members"]),
        int(told["promised"]),
    )
