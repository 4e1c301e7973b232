"""Sites started as jobs of their own on this machine, that are harmed, cut off, and come back.

Imports no MPI: a process that has initialised MPI must not start mpirun.
"""

import glob
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from isthmus.errors import IsthmusError
from isthmus.jobs.fault_plans import Fault, tables_of
from isthmus.jobs.launch import rank_environment
from isthmus.json_text import dumps, loads
from isthmus.mpirun import mpirun
from isthmus.recovery.moments import CONTROL, HAPPENED, PLAN
from isthmus.recovery.relay import Relay, reserved
from isthmus.training.checkpoint_file import CHECKPOINT

SECONDS_TO_END = 10.0
"""For a job, once it is told to, before it is killed."""
SECONDS_TO_WAIT = 20.0
"""For sites that come back, where "wait" does not say."""
SECONDS_BETWEEN_LOOKS = 0.02
SUMMARY = "summary.json"
DEADLY = ("kill", "freeze", "torn")
FINISHED, ENDED, HUNG = "finished", "ended", "hung"


class Ended(NamedTuple):
    """How a run has ended (FINISHED, ENDED, HUNG), what it said, and what is wrong with how sites ended.

    codes: "site code" of each job that was started, in the order of their starts.
    """

    outcome: str
    said: str
    wrong: Sequence[str] = ()
    codes: Sequence[str] = ()


class SiteJobs:
    """Starts `isthmus train` at each site of the settings' cluster, as `program`; see `jobs.chaos`.

    listen: the sites that others call, the first hub first.
    """

    def __init__(
        self, settings: Any, path: Path, name: str, program: Sequence[str], listen: Sequence[str]
    ):
        self.settings, self.path, self.name, self.program = settings, path, name, program
        self.cluster, self.listen = settings.read_cluster(), listen

    def folders(self) -> list[Path]:
        """Return the run's folders, one of each hub, and last the one that has come furthest."""
        first = self.settings.run.folder / self.name
        return sorted([*first.parent.glob(f"{glob.escape(self.name)}-*"), first], key=_progress)

    def harmed(self, fault: Fault) -> Sequence[int]:
        """Return the ranks that a fault harms."""
        if fault.between is None:
            return [fault.rank]
        return self.cluster.ranks_of_site(fault.site(self.cluster, self.listen))

    def run(
        self, faults: Sequence[Fault], scratch: Path, seconds: float, folder: Path | None = None
    ) -> Ended:
        """Run all sites to their end, so many seconds at most; `scratch`: a folder for what happens.

        folder: of the run to go on with, where there is one.
        """
        run = _Run(self, faults, scratch, folder)
        try:
            run.begin()
            return run.ended(seconds)
        finally:
            run.end()

    def command(
        self, site: str, addresses: dict[str, tuple[str, int]], folder: Path | None
    ) -> list[str]:
        """Return what starts a site. addresses: hub -> where this site calls it, or listens itself."""
        ranks = len(self.cluster.ranks_of_site(site))
        tolerant = ["--with-ft", "ulfm"] if self.settings.recovery.survive else []
        start = [mpirun(), *tolerant, "-n", str(ranks)] if ranks > 1 else []
        how = []
        for hub, (host, port) in addresses.items():
            how += ["--listen" if site == hub else "--join", f"{host}:{port}"]
        if site == self.listen[0]:
            goes_on = folder is not None and folder.name != self.name
            how += ["--resume", str(folder)] if goes_on else ["--name", self.name]
        return [*start, *self.program, "train", str(self.path), "--site", site, *how]


class _Job:
    """One start of a site. said: its lines so far. after: how many faults had happened to the site after
    which it is started again."""

    def __init__(self, site, command, environment, after, heard):
        self.site, self.after, self.heard, self.said = site, after, heard, []
        self.began, self.dismissed = time.time(), False
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            self.heard(self, line)

    @property
    def runs(self):
        return self.process.poll() is None

    @property
    def takes_part(self):
        """Whether it was there at the start, or has found the others."""
        return not self.after or any(": joined site " in line for line in [*self.said])

    @property
    def failed(self):
        """Whether it has ended, and not well."""
        return not self.runs and self.process.returncode != 0

    @property
    def last_words(self):
        return [line for line in self.said if line.startswith("isthmus:")]


class _Run:
    """One run of all sites."""

    def __init__(self, jobs, faults, scratch, folder):
        self.cluster, self.folders, self.scratch = jobs.cluster, jobs.folders, scratch
        self.command, self.listen, self.folder = jobs.command, jobs.listen, folder
        self.faults = tables_of(faults)
        self.site_of = [each.site(self.cluster, self.listen) for each in faults]
        self.places = {hub: reserved() for hub in self.listen}
        self.relays = {
            (site, hub): Relay(place.getsockname())
            for hub, place in self.places.items()
            for site in self.cluster.names
            if site != hub
        }
        self.jobs: list[_Job] = []
        self.back: Counter[str] = Counter()  # site -> how many of its faults it has come back after
        self.due: dict[str, float] = {}  # site -> when it is to be started again
        self.control = socket.socket(socket.AF_UNIX)

    def begin(self):
        """Start all sites, the first hub last."""
        self.control.bind(str(self.scratch / CONTROL))
        self.control.listen(self.cluster.size)
        threading.Thread(target=self._attend, daemon=True).start()
        if len(self.listen) > 1:  # who calls only one waits until that is there
            self._open(self.listen)
        first = self.listen[0]
        for site in [*(name for name in self.cluster.names if name != first), first]:
            self._start(site, 0)

    def ended(self, seconds):
        """Return how all have ended."""
        end, hung = time.monotonic() + seconds, []
        while True:
            running = [job for job in self.jobs if job.runs]
            if any(job.site in self.listen and job.takes_part for job in running):
                self._start_again(running)
            else:
                self.due.clear()
                for job in running:
                    if not job.takes_part:  # nobody answers any more
                        job.dismissed = True
                        end_job(job.process)
            if not running:
                break
            if time.monotonic() > end:
                hung = running
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
        for job in hung:
            end_job(job.process)
        for job in self.jobs:
            job.reader.join(SECONDS_TO_END)
        ends = sum((each / SUMMARY).exists() for each in self.folders())
        outcome = HUNG if hung else FINISHED if ends else ENDED
        wrong = [f"site {job.site} did not end" for job in hung] or self._wrong()
        wrong += [f"{ends} hubs have ended the run"] if ends > 1 else []
        codes = [f"{job.site} {job.process.returncode}" for job in self.jobs]
        return Ended(outcome, "; ".join(self._said()), wrong, codes)

    def end(self):
        """End whatever there still is."""
        for job in self.jobs:
            if job.runs:
                end_job(job.process)
        for each in self.relays.values():
            each.end()
        for each in self.places.values():
            each.close()
        with suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # which wakes who accepts
        self.control.close()

    def _start(self, site, after):
        environment = rank_environment()
        if self.faults:
            past = {each["fault"] for each in read_happened(self.scratch)}
            plan = self.scratch / f"faults-{len(self.jobs)}.json"
            plan.write_text(dumps([each for each in self.faults if each["fault"] not in past]))
            environment[PLAN] = str(plan)
        addresses = {
            hub: place.getsockname() if site == hub else self.relays[site, hub].address
            for hub, place in self.places.items()
        }
        command = self.command(site, addresses, self.folder)
        self.jobs.append(_Job(site, command, environment, after, self._hear))

    def _hear(self, job, line):
        """Take note of what a site says."""
        if job.site == self.listen[0] and ": waits at " in line:
            self._open([job.site])
        elif job.after and ": joined site " in line:
            self.back[job.site] = job.after

    def _open(self, hubs):
        for (_, hub), relay in self.relays.items():
            if hub in hubs:
                relay.open()

    def _to_come_back(self):
        """Return site -> how many of its faults have happened after which it comes back."""
        return Counter(
            self.site_of[each["fault"]] for each in read_happened(self.scratch) if "back_after" in each
        )

    def _start_again(self, running):
        """Start sites that have ended, once it is time."""
        wanted = self._to_come_back()
        for site in wanted.keys() - {job.site for job in running}:
            last = [job for job in self.jobs if job.site == site][-1]
            if wanted[site] > last.after and last.failed:
                seconds = max(
                    each["back_after"]
                    for each in self.faults
                    if "back_after" in each and self.site_of[each["fault"]] == site
                )
                if time.monotonic() >= self.due.setdefault(site, time.monotonic() + seconds):
                    del self.due[site]
                    self._start(site, wanted[site])

    def _attend(self):
        """Have happen to links what ranks ask for."""
        while True:
            try:
                asking, _ = self.control.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(asking,), daemon=True).start()

    def _answer(self, asking):
        with asking, suppress(OSError):  # who has asked may be gone
            fault = loads(asking.makefile().readline())
            if fault["kind"] == "wait":
                end = time.monotonic() + (fault.get("seconds") or SECONDS_TO_WAIT)
                while self._to_come_back() - self.back and time.monotonic() < end:
                    time.sleep(SECONDS_BETWEEN_LOOKS)
            else:
                between = {*fault["between"]}
                self._harm([each for ends, each in self.relays.items() if {*ends} == between], fault)
            asking.sendall(b"1")

    def _harm(self, relays, fault):
        """Harm the link of two sites; relays: one for each of the two that the other calls."""
        seconds = fault.get("seconds")
        if fault["kind"] == "flip":  # where nobody has called it would wait for a call
            max(relays, key=lambda relay: relay.carries).flip(fault["bit"])
            return
        for relay in relays:
            match fault["kind"]:
                case "cut":
                    relay.cut(seconds)
                case "close":
                    relay.close(seconds)
                case "slow":
                    relay.slow(fault["bytes_per_second"], seconds)

    def _wrong(self):
        """Return which sites have not ended as they should: well, or in one line where not killed."""
        wrong, harm = [], read_happened(self.scratch)
        for job in self.jobs:
            ranks = self.cluster.ranks_of_site(job.site)
            killed = job.dismissed or any(
                each["kind"] in DEADLY and each["rank"] in ranks and each["clock"] >= job.began
                for each in harm
            )
            if any(line.startswith("Traceback") for line in job.said):
                wrong.append(f"site {job.site} has said what is no sentence")
            elif job.process.returncode and not killed and len(job.last_words) != 1:
                wrong.append(
                    f"site {job.site} ended with code {job.process.returncode} and "
                    f"{len(job.last_words)} lines"
                )
        return wrong

    def _said(self):
        """Yield what the sites said of who went, and why they ended."""
        for job in self.jobs:
            for line in job.said:
                told = line.startswith("isthmus:") or "go on" in line or "go back" in line
                hub = job.site in self.listen
                if told and not job.dismissed and (hub or line in job.last_words):
                    yield f"{job.site}: {line.removeprefix('isthmus: ')}"


def _progress(folder):
    """Return whether a run has ended in this folder, and the step of its checkpoint; -1 without one."""
    try:
        step = CHECKPOINT.read(folder / "checkpoint.h5")[1]["step"]
    except (OSError, IsthmusError):
        step = -1
    return (folder / SUMMARY).exists(), step


def end_job(process: subprocess.Popen) -> None:
    """End a job and its ranks; what does not end is killed."""
    process.terminate()
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_happened(scratch: Path) -> list[dict[str, Any]]:
    """Return the faults that have happened, each with when, `clock`; scratch: the plan's folder."""
    path = scratch / HAPPENED
    if not path.exists():
        return []
    return [loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
