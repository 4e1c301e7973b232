"""Faults that a run is given on purpose: at named moments, of named ranks. See `isthmus chaos`."""

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from isthmus.devices import set_from_host, to_host
from isthmus.json_text import dumps, loads
from isthmus.links.comm import Comm, Request, Wrapped
from isthmus.links.sealed import beneath_seal
from isthmus.recovery.moments import CONTROL, HAPPENED, LINK_KINDS, PLAN

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers
    from isthmus.training.loop import Training


class Faults:
    """What is to happen to one rank, known by its number when the run began.

    planned: tables as `jobs.fault_plans.Fault` has them. With `until`, the path of a file, the rank is
    not killed but waits until that is there. told: the file to which a line is added as one happens;
    None: none is.
    """

    def __init__(self, planned: Sequence[dict[str, Any]], rank: int, told: Path | None = None):
        self.planned = [each for each in planned if each["rank"] == rank]
        self.step, self.sent, self.told = 0, 0, told
        self.sends = "send"  # the moment that messages are of
        self.training: Training | None = None

    @classmethod
    def of_environment(cls, rank: int) -> Self:
        """Return those that the environment names; none as a rule."""
        path = os.environ.get(PLAN)
        if not path:
            return cls([], rank)
        return cls(loads(Path(path).read_text()), rank, Path(path).with_name(HAPPENED))

    def of(self, training: "Training") -> Self:
        """Return these, which happen to `training` from now on."""
        self.training = training
        return self

    def meet(self, moment: str, step: int) -> None:
        """Let what is planned for this moment happen."""
        if self.planned:
            for each in self._due(moment, step):
                self._happen(each)

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Have messages be those by which a site comes back."""
        self.sends, self.sent = "join", 0
        try:
            yield
        finally:
            self.sends, self.sent = "send", 0

    def sending(self, buffer: Any, crosses: bool) -> Any:
        """Return what is sent in the place of `buffer`, the next message of this step.

        crosses: whether it goes to another site; only there bits flip.
        """
        for each in self._due(self.sends, self.step, crosses):
            if each.get("kind", "kill") == "flip" and "between" not in each:
                self._tell(each)
                flip(buffer := np.array(to_host(buffer)), each.get("bit", 0))
            else:
                self._happen(each)
        self.sent += 1
        return buffer

    def watching(self, tiers: "Tiers") -> "Tiers":
        """Return `tiers`, whose messages are counted; as they are where none is planned for."""
        planned = any(each["moment"] in ("send", "join") for each in self.planned)
        if not planned:
            return tiers
        here = tiers.cluster.ranks_of_site(tiers.site_name)

        def wrap(comm: Comm, ranks: Sequence[int]) -> Comm:
            crosses = [rank not in here for rank in ranks]
            return beneath_seal(comm, lambda inner: FaultyComm(inner, self, crosses))

        return tiers.through(wrap)

    def _due(self, moment, step, crosses=True):
        """Return what is planned for now; each happens once."""
        if step != self.step:
            self.step, self.sent = step, 0
        due = [
            each
            for each in self.planned
            if each["moment"] == moment
            and each.get("step", step) == step
            and (moment not in ("send", "join") or each.get("number", 0) <= self.sent)
            and (crosses or each.get("kind") != "flip")
        ]
        self.planned = [each for each in self.planned if each not in due]
        return due

    def _happen(self, fault):
        kind = fault.get("kind", "kill")
        self._tell(fault)
        if "until" in fault:
            while not Path(fault["until"]).exists():
                time.sleep(0.01)
        elif kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind in ("stop", "freeze"):
            sent, seconds = ("CONT", 1.0) if kind == "stop" else ("KILL", 20.0)
            then = f"sleep {fault.get('seconds', seconds)}; kill -{sent} {os.getpid()}"
            nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            subprocess.Popen(["sh", "-c", then], **nothing)
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind in (*LINK_KINDS, "wait") or "between" in fault:
            assert self.told is not None
            with socket.socket(socket.AF_UNIX) as control:
                control.connect(str(self.told.with_name(CONTROL)))
                control.sendall(dumps(fault).encode() + b"\n")
                control.recv(1)  # once it has happened
        elif kind == "flip":
            parameters = self.training.state.parameters
            flip(held := np.array(to_host(parameters)), fault.get("bit", 0))
            set_from_host(parameters, held)
        else:  # a disk that is full, or the end of the process in the midst of a write
            torn = kind == "torn"
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if torn else signal.SIG_IGN)
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.get("nbytes", 0), hard))

    def _tell(self, fault):
        if self.told is not None:
            with open(self.told, "a", encoding="utf-8") as file:
                file.write(dumps({**fault, "clock": time.time()}) + "\n")


def flip(array: np.ndarray, bit: int) -> None:
    """Flip a bit of a contiguous array, counted from the first of its first byte on, and around."""
    seen = array.reshape(-1).view(np.uint8)
    if seen.size:
        seen[bit // 8 % seen.size] ^= np.uint8(1 << bit % 8)


class FaultyComm(Wrapped):
    """A communicator on which something may happen to a rank as it sends.

    crosses: of each rank of `comm`, whether it is of another site.
    """

    lets_past = True

    def __init__(self, comm: Comm, faults: Faults, crosses: Sequence[bool]):
        super().__init__(comm)
        self.faults, self.crosses = faults, crosses

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Request:  # noqa: N802
        sent = self.faults.sending(buffer, self.crosses[dest])
        request = self.comm.Isend(sent, dest, tag)
        return request if sent is buffer else _Kept(request, sent)


class _Kept:
    """A message under way, and the array that it is sent from."""

    def __init__(self, request, buffer):
        self.request, self.buffer = request, buffer

    def Wait(self):  # noqa: N802
        return self.request.Wait()

    def Test(self):  # noqa: N802
        return self.request.Test()
