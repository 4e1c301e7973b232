"""Which sites are left of a job whose sites are jobs of their own: what `membership` does, for these.

Nobody is asked whether all have the sum of a step: nobody has that of the next one before all have it.
So where a site goes, those who are left have come at most one step apart, and those who are ahead go
back (`Undoing.go_back`). With rounds that is so of what they exchange, and of rounds. Only ranks of one
site are woken by MPI, for which it needs its fault tolerance.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from mpi4py import MPI

from isthmus.errors import SealError, SecurityError
from isthmus.links.circle import Circle, Decision
from isthmus.links.socket_comm import LostSitesError
from isthmus.recovery.membership import Borne, revoke

log = logging.getLogger("isthmus")
OF_A_LOSS = (MPI.Exception, LostSitesError, SealError)
"""What a site that is gone, or a rank of this one, or a message that was changed, leads to."""

SECONDS_TO_END = 5.0
"""At most, for a site that has heard why it does not take part: it says so itself, and ends."""


class SiteMembership:
    """What the sites of a `Circle` agree on. step: gives the last step that this rank has made."""

    def __init__(self, circle: Circle, step: Callable[[], int]):
        self.circle, self.borne = circle, Borne(step)
        circle.survive()

    def agree(self, well: bool = True) -> None:
        """Nothing: see above."""

    def look(self, world: Any) -> None:
        """Raise LostSitesError where others have said that sites change; nothing is sent."""
        self.circle.endpoint.progress()

    def leave_out_the_gone(self, problem: Exception, comms: Iterable[Any]) -> None:
        """Wake who waits in `comms`; `rebuild` asks who is gone. Raise what is no loss of a site."""
        self._bear(problem)
        revoke(comms)

    def _bear(self, problem):
        """Raise what is no loss of a site, and leads to none; return whether others are to be woken.

        It leads to one where keys could not be agreed on with a site that was let in just now, which all
        know; and at the hub, where too many messages of a site are changed.
        """
        if isinstance(problem, SecurityError) and self.circle.came:
            self.circle.part_from(self.circle.came, SECONDS_TO_END)
            speaks = self.circle.is_hub and self.circle.switch is not None  # its first rank
            self._tell(self.circle.came if speaks else [], problem)
            return False
        if not isinstance(problem, OF_A_LOSS):
            raise problem
        if self.borne.too_many(problem):
            source = getattr(problem, "source", None)
            whose = [] if source is None else [self.circle.site_of(source)]
            if not self.circle.part_from(whose, 0.0):
                raise problem
            self._tell(whose, problem)
        return True

    def _tell(self, sites, problem):
        if sites:
            log.warning(f"site {', '.join(sites)}: is left out: {problem}")

    def rebuild(
        self, point: Callable[[], tuple[int, bool]], build: Callable[[Decision, list[Any]], Any]
    ) -> Any:
        """Return what `build(change, made)` gives on every rank that goes on.

        point: gives the last step that this rank has made, and whether all that is due after it is done.
        made: as in `Membership.rebuild`. It is called again where sites change meanwhile.
        """
        made: list[Any] = []
        wakes = True
        while True:
            if wakes:
                self.circle.wake()
            revoke(made)
            made = []
            before = [*self.circle.ranks]
            try:
                change = self.circle.settle(*point())
                if [*self.circle.ranks] != before:
                    self.borne.somebody_is_gone()
                result = build(change, made)
                self.circle.came = []
                return result
            except Exception as problem:
                wakes = self._bear(problem)
