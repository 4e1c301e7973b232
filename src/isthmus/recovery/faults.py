"""Faults that a run is given on purpose: at named moments, of named ranks. See `isthmus chaos`."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.json_text import loads
from isthmus.links.comm import Comm, Request, Wrapped
from isthmus.recovery.moments import PLAN

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers


class Faults:
    """What is to happen to one rank, known by its number when the run began.

    planned: tables with `rank`, `step`, counted from 1, `moment`, `number` of a message. With `until`,
    the path of a file, the rank does not die but waits until that is there.
    """

    def __init__(self, planned: Sequence[dict[str, Any]], rank: int):
        self.planned = [each for each in planned if each["rank"] == rank]
        self.step, self.sent = 0, 0

    @classmethod
    def of_environment(cls, rank: int) -> "Faults":
        """Return those that the environment names; none as a rule."""
        path = os.environ.get(PLAN)
        return cls(loads(Path(path).read_text()) if path else [], rank)

    def meet(self, moment: str, step: int) -> None:
        """Let what is planned for this moment happen."""
        if step != self.step:
            self.step, self.sent = step, 0
        for each in self.planned:
            if each["moment"] == moment and each["step"] == step and each.get("number", 0) <= self.sent:
                if "until" not in each:
                    os.kill(os.getpid(), signal.SIGKILL)
                while not Path(each["until"]).exists():
                    time.sleep(0.01)

    def watching(self, tiers: "Tiers") -> "Tiers":
        """Return `tiers`, whose messages are counted; as they are where none is planned for."""
        planned = any(each["moment"] == "send" for each in self.planned)
        return tiers.through(lambda comm, ranks: FaultyComm(comm, self)) if planned else tiers


class FaultyComm(Wrapped):
    """A communicator on which a rank may die as it sends."""

    lets_past = True

    def __init__(self, comm: Comm, faults: Faults):
        super().__init__(comm)
        self.faults = faults

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Request:  # noqa: N802
        self.faults.meet("send", self.faults.step)
        self.faults.sent += 1
        return self.comm.Isend(buffer, dest, tag)
