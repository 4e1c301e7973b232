"""Which ranks are left of a job, by MPI's fault tolerance (ULFM: `mpirun --with-ft ulfm` of Open MPI 5).

A rank that finds another one gone revokes every communicator it is in, which wakes all that wait for a
neighbour that lives, and all ranks agree whether what they have just done was done by all. If not,
those that are left make a communicator without the dead, and build all else anew on it.
"""

from collections.abc import Callable, Iterable
from typing import Any

from mpi4py import MPI

from isthmus.links.comm import innermost


class LostRanksError(Exception):
    """Not all ranks have done what was to be done; some are gone."""


class Membership:
    """What the ranks of `comm`, MPI's, agree on. `comm` is from then on that of those who are left."""

    def __init__(self, comm: MPI.Comm):
        self.comm = comm

    def agree(self, well: bool = True) -> None:
        """Return on every rank if all say that all is well, or raise LostRanksError on every one."""
        try:
            all_well = self.comm.Agree(int(well)) == 1
        except MPI.Exception:  # a rank is gone, of which not all knew
            all_well = False
        if not all_well:
            raise LostRanksError

    def may_be_of_a_loss(self, problem: Exception) -> bool:
        """Whether an error may come from a rank that is gone.

        Of a message that a rank was sending as it died MPI may say nothing, and there is no data then:
        what is made of that ends in errors of any kind.
        """
        if isinstance(problem, (MPI.Exception, LostRanksError)):
            return True
        gone = self.comm.Get_failed()
        try:
            return gone.Get_size() > 0
        finally:
            gone.Free()

    def rebuild(self, build: Callable[[MPI.Comm, list[Any]], Any]) -> Any:
        """Return what `build(comm, made)` gives on every rank that is left, on which all agree.

        made: where `build` puts each communicator as soon as it has it. It is called again, with one
        rank less, where one dies meanwhile.
        """
        while True:
            self.comm = self.comm.Shrink()
            self.comm.Set_errhandler(MPI.ERRORS_RETURN)
            made: list[Any] = []
            result, well = None, True
            try:
                result = build(self.comm, made)
            except Exception as problem:
                if not self.may_be_of_a_loss(problem):
                    raise
                well = False
                revoke([*made, self.comm])
            try:
                self.agree(well)
            except LostRanksError:
                revoke([*made, self.comm])
                continue
            return result


def revoke(comms: Iterable[Any]) -> None:
    """Have every rank that waits in one of these communicators raise."""
    for comm in comms:
        if comm != MPI.COMM_NULL and comm.size > 1:
            innermost(comm).Revoke()
