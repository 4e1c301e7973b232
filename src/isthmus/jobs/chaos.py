"""`isthmus chaos`: a run whose ranks are harmed at named moments, held against what was promised.

Imports no MPI: a process that has initialised MPI must not start mpirun.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.folders.lock import life
from isthmus.folders.reading import read_lines
from isthmus.jobs.fault_plans import Fault, check_faults, tables_of
from isthmus.jobs.harmed_sites import (
    ENDED,
    FINISHED,
    HUNG,
    SECONDS_BETWEEN_LOOKS,
    Ended,
    SiteJobs,
    end_job,
    read_happened,
)
from isthmus.jobs.launch import rank_environment
from isthmus.jobs.settings import RunSettings
from isthmus.json_text import dumps, loads
from isthmus.mpirun import mca_arguments, mpirun
from isthmus.recovery.moments import PLAN
from isthmus.terminal import table_of

DETECTOR = {"mpi_ft_detector": "true", "mpi_ft_detector_thread": "true"}
"""Of MPI, by which ranks that are frozen are found; those that are starved of a core as well."""
SECONDS_UNTIL_FREE = 30.0
"""For the last process of a run, which may be frozen, to give its folder free."""
ISTHMUS = (sys.executable, "-m", "isthmus")


def play_faults(
    settings_path: Path,
    runs: Sequence[Sequence[Fault]],
    seconds: float,
    tell: Any,
    program: Sequence[str] = ISTHMUS,
    listen: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the job once for each list of faults; return a table of what came of each.

    seconds: after which a run counts as hung. tell: called with a line for each run. program: what is
    started as `isthmus`. listen: the sites that others call, where each site of the cluster is a job of
    its own, the first hub first; none: they are one job. Raises SettingsError where a fault cannot
    happen there.
    """
    settings, rows = RunSettings.from_toml(settings_path), []
    cluster = settings.read_cluster()
    for faults in runs:
        check_faults(faults, cluster, listen)
    for number, faults in enumerate(runs):
        name = f"chaos-{time.strftime('%Y%m%d-%H%M%S')}-{number}"
        if listen:
            jobs = SiteJobs(settings, settings_path, name, program, listen)
        else:
            jobs = _OneJob(settings, settings_path, name, program)
        row = _play(faults, cluster, jobs, seconds, program)
        rows.append(row)
        tell(f"run {number + 1} of {len(runs)}: {row['faults']}: {row['outcome']}, {row['verified']}")
    bad = [row for row in rows if not row["right"]]
    return {"runs": rows, "wrong": len(bad), "restarted": sum(row["restarted"] for row in rows)}


def _play(faults, cluster, jobs, seconds, program):
    """Let all that happen; start the run once more where it has ended before its last step."""
    with tempfile.TemporaryDirectory() as scratch:
        first = jobs.run(faults, Path(scratch), seconds)
        ended, happened = time.time(), read_happened(Path(scratch))
    outcome, wrong, said = first.outcome, [*first.wrong], first.said
    restarted = outcome == ENDED
    folder = jobs.folders()[-1]
    if restarted:
        kept = (folder / "checkpoint.h5").exists()
        end = time.monotonic() + SECONDS_UNTIL_FREE
        while life(folder)[0] == "running" and time.monotonic() < end:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        with tempfile.TemporaryDirectory() as scratch:
            again = jobs.run((), Path(scratch), seconds, folder)
        said = "; again: ".join(filter(None, (first.said, again.said)))
        outcome = again.outcome
        if outcome == FINISHED:
            outcome = f"restarted{' from its checkpoint' * kept}"
        wrong += again.wrong
    folders = jobs.folders()
    folder = folders[-1]
    lines = [line for each in folders for _, _, line, _ in read_lines(each / "metrics.jsonl") if line]
    lost = [line for line in lines if line["kind"] == "lost"]
    if outcome == FINISHED and any(line["ranks"] for line in lost):
        outcome = "went on"
    elif outcome == FINISHED and (lost or any(line["kind"] == "repaired" for line in lines)):
        outcome = "repaired"
    verified = _verified(folder, program)
    return {
        "faults": "; ".join(map(str, faults)),
        "happened": len(happened),
        "outcome": outcome,
        "restarted": restarted,
        "lost": [rank for line in lost for rank in line["ranks"]],
        "came_back": [rank for line in lines if line["kind"] == "joined" for rank in line["ranks"]],
        "noticed": [
            _noticed(jobs.harmed(faults[each["fault"]]), each, lines, ended if restarted else None)
            for each in happened
            if each["kind"] != "wait"
        ],
        "seconds": [line["seconds"] for line in lost],
        "verified": "; ".join([verified, *wrong]),
        "right": verified.startswith("bits equal") and outcome not in (HUNG, ENDED) and not wrong,
        "ended": [*first.codes],
        "said": said,
        "folder": str(folder),
    }


class _OneJob:
    """Starts `isthmus train` as one job of all sites."""

    def __init__(self, settings, path, name, program):
        self.settings, self.path, self.name, self.program = settings, path, name, program

    def folders(self):
        """Return the run's folder, in a list."""
        return [self.settings.run.folder / self.name]

    def harmed(self, fault):
        """Return the ranks that are harmed."""
        return [fault.rank]

    def run(self, faults, scratch, seconds, folder=None):
        """Run it to its end, so many seconds at most; `scratch` is a folder for what happens."""
        environment, survives = rank_environment(), self.settings.recovery.survive
        if faults:
            plan = scratch / "faults.json"
            plan.write_text(dumps(tables_of(faults)))
            environment[PLAN] = str(plan)
        freezes = any(each.kind == "freeze" for each in faults)
        tolerant = ["--with-ft", "ulfm"] if survives else []
        tolerant += mca_arguments(DETECTOR) if survives and freezes else []
        ranks = str(self.settings.read_cluster().size)
        started = subprocess.Popen(
            [mpirun(), *tolerant, "-n", ranks, *self.program]
            + ["train", str(self.path), "--name", self.name],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, told = started.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return Ended(HUNG, "")
        finally:
            if started.poll() is None:
                end_job(started)
        finished = (self.settings.run.folder / self.name / "summary.json").exists()
        lines = [
            line
            for line in told.splitlines()
            if line.startswith("isthmus:") or "go on" in line or "go back" in line
        ]
        return Ended(FINISHED if finished else ENDED, "; ".join(lines))


def _verified(folder, program):
    """Return what `isthmus verify` finds, in words; it has MPI, which this process must not have."""
    done = subprocess.run(
        [*program, "verify", str(folder), "--json"],
        env=rank_environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return said[-1].removeprefix("isthmus: ") if said else "wrong"
    found = loads(done.stdout)["replay"]
    lost = f", {found['lost']} samples lost as told" if found["lost"] else ""
    return f"bits equal, each sample once in {len(found['epochs'])} epochs{lost}"


def _noticed(ranks, happened, lines, ended):
    """Return after how many seconds a fault of `ranks` was noticed; None where it was not.

    happened: its line. lines: of metrics.jsonl. ended: when the run ended because of it; None where it
    did not. That a site which comes back is gone again is in no line.
    """
    clock = happened["clock"]

    def tells(line):
        return line["kind"] == "repaired" or (
            line["kind"] == "lost" and (not line["ranks"] or not {*ranks}.isdisjoint(line["ranks"]))
        )

    told = [line["clock"] for line in lines if tells(line)]
    if happened["moment"] == "join" and any(each < clock for each in told):
        return None
    clocks = [each for each in told if each >= clock]
    if ended is not None:
        clocks.append(ended)
    return min(clocks) - clock if clocks else None


def chaos_words(made):
    """Return the sheet to print, and its sum."""

    def of(seconds):
        return ", ".join("-" if each is None else f"{each:.2f}" for each in seconds) or "-"

    rows = [
        (
            (
                row["faults"],
                row["outcome"],
                of(row["noticed"]),
                of(row["seconds"]),
                row["verified"],
                row["said"] or "-",
            ),
            "" if row["right"] else "red",
        )
        for row in made["runs"]
    ]
    columns = (
        "fault",
        "outcome",
        "noticed after, s",
        "recovered after, s",
        "played again",
        "what the run said",
    )
    table = table_of([(column, "left") for column in columns], rows)
    counts = f"{made['wrong']} wrong, {made['restarted']} started once more"
    return [table, f"{len(made['runs'])} runs: {counts}"]
