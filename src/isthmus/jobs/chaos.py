"""`isthmus chaos`: a run whose ranks are harmed at named moments, held against what was promised.

Imports no MPI: a process that has initialised MPI must not start mpirun.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from isthmus.errors import SettingsError
from isthmus.folders.reading import read_lines
from isthmus.jobs.fault_plans import Fault
from isthmus.jobs.launch import rank_environment
from isthmus.jobs.settings import RunSettings
from isthmus.json_text import dumps, loads
from isthmus.mpirun import mca_arguments, mpirun
from isthmus.recovery.moments import HAPPENED, PLAN
from isthmus.terminal import table_of

ENDED = "ended"
ISTHMUS = (sys.executable, "-m", "isthmus")
DETECTOR = {"mpi_ft_detector": "true", "mpi_ft_detector_thread": "true"}
"""Of MPI, by which ranks that are frozen are found; those that are starved of a core as well."""
SECONDS_TO_END = 10.0
"""For mpirun, once it is told to, before it is killed."""


def play_faults(
    settings_path: Path,
    runs: Sequence[Sequence[Fault]],
    seconds: float,
    tell: Any,
    program: Sequence[str] = ISTHMUS,
) -> dict[str, Any]:
    """Run the job once for each list of faults; return a table of what came of each.

    seconds: after which a run counts as hung. tell: called with a line for each run. program: what is
    started as `isthmus`.
    """
    settings = RunSettings.from_toml(settings_path)
    size, rows = settings.read_cluster().size, []
    for number, faults in enumerate(runs):
        if wrong := [each for each in faults if each.rank >= size]:
            raise SettingsError(f"{wrong[0]}: {settings.cluster.file} has ranks 0 to {size - 1}")
        name = f"chaos-{time.strftime('%Y%m%d-%H%M%S')}-{number}"
        row = _Play(settings, settings_path, name, size, seconds, program).play(faults)
        rows.append(row)
        tell(f"run {number + 1} of {len(runs)}: {row['faults']}: {row['outcome']}, {row['verified']}")
    bad = [row for row in rows if not row["right"]]
    return {"runs": rows, "wrong": len(bad), "restarted": sum(row["restarted"] for row in rows)}


class _Play:
    """One run of a job, in its folder `name`."""

    def __init__(self, settings, path, name, size, seconds, program):
        self.settings, self.path, self.name, self.size = settings, path, name, size
        self.seconds, self.program = seconds, program
        self.folder = settings.run.folder / name

    def play(self, faults):
        """Let all that happen; start the run once more where it has ended before its last step."""
        with tempfile.TemporaryDirectory() as scratch:
            plan = Path(scratch, "faults.json")
            plan.write_text(dumps([each.model_dump(exclude_none=True) for each in faults]))
            freezes = any(each.kind == "freeze" for each in faults)
            outcome, said = self._train({PLAN: str(plan)}, freezes)
            ended, happened = time.time(), _read_happened(Path(scratch, HAPPENED))
        restarted = outcome == ENDED
        if restarted:
            kept = (self.folder / "checkpoint.h5").exists()
            again, said_again = self._train({}, False)
            said = "; again: ".join(filter(None, (said, said_again)))
            outcome = f"restarted{' from its checkpoint' * kept}" if again == "finished" else again
        lines = [line for _, _, line, _ in read_lines(self.folder / "metrics.jsonl") if line]
        lost = [line for line in lines if line["kind"] == "lost"]
        if outcome == "finished" and any(line["ranks"] for line in lost):
            outcome = "went on"
        elif outcome == "finished" and (lost or any(line["kind"] == "repaired" for line in lines)):
            outcome = "repaired"
        verified = self._verified()
        return {
            "faults": "; ".join(map(str, faults)),
            "happened": len(happened),
            "outcome": outcome,
            "restarted": restarted,
            "lost": [rank for line in lost for rank in line["ranks"]],
            "noticed": [_noticed(each, lines, ended if restarted else None) for each in happened],
            "seconds": [line["seconds"] for line in lost],
            "verified": verified,
            "right": verified.startswith("bits equal") and outcome not in ("hung", ENDED),
            "said": said,
            "folder": str(self.folder),
        }

    def _train(self, more, freezes):
        """Return how a run has ended ("finished", "ended" or "hung"), and what it said last."""
        survives = self.settings.recovery.survive
        tolerant = ["--with-ft", "ulfm"] if survives else []
        tolerant += mca_arguments(DETECTOR) if survives and freezes else []
        command = [mpirun(), *tolerant, "-n", str(self.size), *self.program]
        started = subprocess.Popen(
            [*command, "train", str(self.path), "--name", self.name],
            env=rank_environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, told = started.communicate(timeout=self.seconds)
        except subprocess.TimeoutExpired:
            _end(started)
            return "hung", ""
        except BaseException:  # Ctrl-C, which reaches no process of another session
            _end(started)
            raise
        finished = (self.folder / "summary.json").exists()
        lines = [
            line
            for line in told.splitlines()
            if line.startswith("isthmus:") or "go on" in line or "go back" in line
        ]
        return "finished" if finished else ENDED, "; ".join(lines)

    def _verified(self):
        """Return what `isthmus verify` finds, in words; it has MPI, which this process must not have."""
        done = subprocess.run(
            [*self.program, "verify", str(self.folder), "--json"],
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


def _end(started):
    """End mpirun and its ranks; what does not end is killed."""
    started.terminate()
    try:
        started.communicate(timeout=SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


def _read_happened(path):
    """Return the faults that have happened, each with its moment, `clock`."""
    return [loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _noticed(fault, lines, ended):
    """Return after how many seconds a fault was noticed; None where it was not.

    lines: of metrics.jsonl. ended: when the run ended because of it; None where it did not.
    """
    clocks = [
        line["clock"]
        for line in lines
        if line["kind"] in ("lost", "repaired") and line["clock"] >= fault["clock"]
    ]
    if ended is not None:
        clocks.append(ended)
    return min(clocks) - fault["clock"] if clocks else None


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
