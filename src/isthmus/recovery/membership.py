"""Which ranks are left of a job, by MPI's fault tolerance (ULFM: `mpirun --with-ft ulfm` of Open MPI 5).

A rank that finds another one gone revokes every communicator it is in, which wakes all that wait for a
neighbour that lives, and all ranks agree whether what they have just done was done by all. If not,
those that are left make a communicator without the dead, and build all else anew on it.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from mpi4py import MPI

from isthmus.errors import SealError
from isthmus.links.comm import innermost


class LostRanksError(Exception):
    """Not all ranks have done what was to be done; some are gone."""


class AnotherFailsError(Exception):
    """Another rank has raised what is no loss: it tells that, and the job ends."""


MOST_CHANGED = 3
"""Messages that one rank may find changed within two steps, and have them be made again: who changes
more does so on purpose, or is broken."""


MOST_FAILURES = 5
"""Errors of MPI on one rank with nobody gone, and no step made between, that are borne."""


class Borne:
    """What this rank has found wrong of late with nobody gone: messages that were changed, errors of
    MPI. step: gives the last step that it has made."""

    def __init__(self, step: Callable[[], int]):
        self.step = step
        self.steps: list[int] = []  # after which changed messages were found
        self.failures, self.furthest = 0, -1  # of MPI in a row, and the last step made at one of them
        self.changed = self.failure = ""  # in words, until they are told

    @property
    def words(self) -> str:
        """What was wrong since it was told last."""
        return "; ".join(filter(None, (self.changed, self.failure)))

    def told(self) -> None:
        """Have what was wrong so far not be told again."""
        self.changed = self.failure = ""

    def somebody_is_gone(self) -> None:
        """Take no more of what MPI has raised for errors of its own."""
        self.failures, self.failure = 0, ""

    def too_many(self, problem: Exception | None) -> bool:
        """Whether `problem` is one more of them than is borne."""
        if _is_of_mpi(problem):
            step, self.failure = self.step(), f"MPI fails: {problem}"
            self.failures = 1 if step > self.furthest else self.failures + 1
            self.furthest = max(step, self.furthest)
            return self.failures > MOST_FAILURES
        if not isinstance(problem, SealError):
            return False
        step, self.changed = self.step(), str(problem).partition(";")[0]
        self.steps = [*(each for each in self.steps if each >= step - 1), step]
        if len(self.steps) <= MOST_CHANGED:
            return False
        self.steps.clear()
        return True


def _is_of_mpi(problem):
    """Whether MPI itself has raised this, and not because another rank has found something wrong."""
    if isinstance(problem, LostRanksError):
        problem = problem.__cause__
    return isinstance(problem, MPI.Exception) and problem.Get_error_class() != MPI.ERR_REVOKED


class Membership:
    """What the ranks of `comm`, MPI's, agree on. `comm` is from then on that of those who are left.

    step: gives the last step that this rank has made.
    """

    def __init__(self, comm: MPI.Comm, step: Callable[[], int]):
        self.comm, self.borne = comm, Borne(step)

    def agree(self, well: bool = True) -> None:
        """Return on every rank if all say that all is well, or raise LostRanksError on every one."""
        try:
            all_well = self.comm.Agree(int(well)) == 1
        except MPI.Exception as problem:  # a rank is gone, of which not all knew
            raise LostRanksError from problem
        if not all_well:
            raise LostRanksError

    def look(self, world: Any) -> None:
        """Raise MPI.Exception where MPI knows of a rank of `world` that is gone, or of others who found
        so; nothing is sent."""
        if world.size > 1:
            innermost(world).Iprobe()

    def leave_out_the_gone(self, problem: Exception, comms: Iterable[Any]) -> None:
        """Go on without those that are gone. Collective over those that are left.

        problem: what this rank has raised, of any kind: of a message that a rank was sending as it died
        MPI may say nothing, and there is no data then. Where nobody is gone, what is not of MPI nor of a
        changed message, or is one too many, is raised again, and AnotherFailsError on ranks that have no
        such problem.
        comms: in which others may wait.
        """
        revoke(comms)
        if not isinstance(problem, LostRanksError):
            with suppress(LostRanksError):
                self.agree(False)
        self._leave_out_the_gone(problem)

    def _leave_out_the_gone(self, problem):
        """Do so where all know already that something is wrong; problem: None on ranks without one."""
        fails = not (problem is None or isinstance(problem, (MPI.Exception, LostRanksError, SealError)))
        fails = self.borne.too_many(problem) or fails
        while True:
            before = self.comm.size
            self.comm = self.comm.Shrink()
            self.comm.Set_errhandler(MPI.ERRORS_RETURN)
            if self.comm.size < before:
                self.borne.somebody_is_gone()
                return
            try:
                somebody_fails = self.comm.Agree(int(not fails)) != 1
            except MPI.Exception:  # who has died meanwhile is left out the next time
                continue
            if not somebody_fails:
                return
            raise problem if fails else AnotherFailsError

    def rebuild(self, build: Callable[[MPI.Comm, list[Any]], Any]) -> Any:
        """Return what `build(comm, made)` gives on every rank that is left, on which all agree.

        made: where `build` puts each communicator as soon as it has it. It is called again, with one
        rank less, where one dies meanwhile.
        """
        while True:
            made: list[Any] = []
            result, problem = None, None
            try:
                result = build(self.comm, made)
            except Exception as caught:
                problem = caught
                revoke([*made, self.comm])
            try:
                self.agree(problem is None)
            except LostRanksError as lost:
                revoke([*made, self.comm])
                self._leave_out_the_gone(problem or lost)
                continue
            return result


def revoke(comms: Iterable[Any]) -> None:
    """Have every rank that waits in one of these communicators raise.

    They are never freed: where another rank's word that one is revoked comes after that, Open MPI 5.0
    crashes (in ompi_comm_revoke_local), and nothing tells when the last of these words has come.
    """
    for comm in comms:
        if comm != MPI.COMM_NULL and comm.size > 1:
            innermost(comm).Revoke()
