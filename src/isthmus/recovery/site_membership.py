"""Which sites are left of a job whose sites are jobs of their own: what `membership` does, for these.

Nobody is asked whether all have the sum of a step: nobody has that of the next one before all have it.
So where a site goes, those who are left have come at most one step apart, and those who are ahead go
back (`Undoing.go_back`). Only ranks of one site are woken by MPI, for which it needs its fault
tolerance.
"""

from collections.abc import Callable, Iterable
from typing import Any

from mpi4py import MPI

from isthmus.errors import SealError
from isthmus.links.circle import Circle, Decision
from isthmus.links.socket_comm import LostSitesError
from isthmus.recovery.membership import revoke

OF_A_LOSS = (MPI.Exception, LostSitesError, SealError)
"""What a site that is gone, or a rank of this one, or a message that was changed, leads to."""


class SiteMembership:
    """What the sites of a `Circle` agree on."""

    def __init__(self, circle: Circle):
        self.circle = circle
        circle.survive()

    def agree(self, well: bool = True) -> None:
        """Nothing: see above."""

    def leave_out_the_gone(self, problem: Exception, comms: Iterable[Any]) -> None:
        """Wake who waits in `comms`; `rebuild` asks who is gone. Raise what is no loss of a site."""
        if not isinstance(problem, OF_A_LOSS):
            raise problem
        revoke(comms)

    def rebuild(
        self, point: Callable[[], tuple[int, bool]], build: Callable[[Decision, list[Any]], Any]
    ) -> Any:
        """Return what `build(change, made)` gives on every rank that goes on.

        point: gives the last step that this rank has made, and whether all that is due after it is done.
        made: as in `Membership.rebuild`. It is called again where sites change meanwhile.
        """
        made: list[Any] = []
        while True:
            self.circle.wake()
            revoke(made)
            made = []
            try:
                return build(self.circle.settle(*point()), made)
            except Exception as problem:
                if not isinstance(problem, OF_A_LOSS):
                    raise
