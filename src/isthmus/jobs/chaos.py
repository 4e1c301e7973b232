"""`isthmus chaos`: a run with ranks that are killed at named moments, held against what was promised.

Imports no MPI: a process that has initialised MPI must not start mpirun.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from isthmus.errors import SettingsError
from isthmus.folders.reading import read_lines
from isthmus.jobs.launch import rank_environment
from isthmus.jobs.plan import make_plan
from isthmus.jobs.settings import RunSettings
from isthmus.json_text import dumps, loads
from isthmus.mpirun import mpirun
from isthmus.recovery.moments import MOMENTS, PLAN
from isthmus.terminal import table_of
from isthmus.toml_files import FrozenModel, check_table, read_toml

Count = Annotated[int, Field(ge=0)]
ENDED = "ended"


class Fault(FrozenModel):
    """A rank, by its number in the cluster, that is killed at a moment of a step, counted from 1.

    number: of a message of that step, for "send". run: which of several runs it is for.
    """

    rank: Count
    step: Annotated[int, Field(ge=1)]
    moment: Literal[MOMENTS]
    number: Count = 0
    run: Count = 0

    def __str__(self):
        number = f" {self.number}" if self.moment == "send" else ""
        return f"rank {self.rank} in {self.moment}{number} of step {self.step}"


class Faults(FrozenModel):
    """The file of `--plan`: [[fault]] tables."""

    fault: Annotated[tuple[Fault, ...], Field(min_length=1)]


def planned_faults(path: Path) -> list[list[Fault]]:
    """Return the faults of each run that the file asks for. Raises SettingsError."""
    faults = check_table(Faults, read_toml(path, SettingsError), path, SettingsError).fault
    runs = sorted({each.run for each in faults})
    return [[each for each in faults if each.run == run] for run in runs]


def random_faults(settings_path: Path, runs: int, seed: int) -> list[list[Fault]]:
    """Return one or two faults for each of so many runs, spread over ranks, steps and moments."""
    settings = RunSettings.from_toml(settings_path)
    plan, cluster, _ = make_plan(settings_path)
    total, draw = plan.steps * settings.training.epochs, np.random.default_rng(seed)
    moments = [each for each in MOMENTS if each != "rebuild"]
    if settings.run.checkpoint_every is None:
        moments.remove("checkpoint")
    every = {
        "evaluation": plan.steps,
        "report": plan.steps,
        "checkpoint": settings.run.checkpoint_every or 1,
    }
    made: list[list[Fault]] = []
    for number in range(runs):
        deaths = int(draw.integers(1, 3)) if cluster.size > 2 else 1
        faults = []
        for rank in draw.permutation(cluster.size)[:deaths].tolist():
            moment = moments[int(draw.integers(len(moments)))]
            stride = min(every.get(moment, 1), total)
            step = stride * int(draw.integers(1, total // stride + 1))
            faults.append(Fault(rank=rank, step=step, moment=moment, run=number))
        if deaths == 2 and draw.random() < 0.3:  # the second dies while the first is done without
            faults[1] = faults[1].model_copy(update={"step": faults[0].step, "moment": "rebuild"})
        made.append(faults)
    return made


def play_faults(
    settings_path: Path, runs: Sequence[Sequence[Fault]], seconds: float, tell: Any
) -> dict[str, Any]:
    """Run the job once for each list of faults; return a table of what came of each.

    seconds: after which a run counts as hung. tell: called with a line for each run.
    """
    settings = RunSettings.from_toml(settings_path)
    size, rows = settings.read_cluster().size, []
    for number, faults in enumerate(runs):
        if wrong := [each for each in faults if each.rank >= size]:
            raise SettingsError(f"{wrong[0]}: {settings.cluster.file} has ranks 0 to {size - 1}")
        name = f"chaos-{time.strftime('%Y%m%d-%H%M%S')}-{number}"
        row = _play(settings, settings_path, name, size, faults, seconds)
        rows.append(row)
        tell(f"run {number + 1} of {len(runs)}: {row['faults']}: {row['outcome']}, {row['verified']}")
    bad = [row for row in rows if not row["right"]]
    return {"runs": rows, "wrong": len(bad), "restarted": sum(row["restarted"] for row in rows)}


def _play(settings, settings_path, name, size, faults, seconds):
    """Play one run, and its restart from the checkpoint where it has ended before its last step."""
    folder = settings.run.folder / name
    with tempfile.TemporaryDirectory() as scratch:
        plan = Path(scratch, "faults.json")
        plan.write_text(dumps([each.model_dump() for each in faults]))
        said = _train(settings, settings_path, name, size, seconds, {PLAN: str(plan)})
    outcome, restarted = said[0], False
    if outcome == ENDED and (folder / "checkpoint.h5").exists():
        restarted = True
        again = _train(settings, settings_path, name, size, seconds, {})
        outcome = "restarted from its checkpoint" if again[0] == "finished" else again[0]
    lines = [line for _, _, line, _ in read_lines(folder / "metrics.jsonl") if line]
    lost = [line for line in lines if line["kind"] == "lost"]
    if outcome == "finished" and lost:
        outcome = "went on"
    verified = _verified(folder)
    return {
        "faults": "; ".join(map(str, faults)),
        "outcome": outcome,
        "restarted": restarted,
        "lost": [rank for line in lost for rank in line["ranks"]],
        "seconds": [line["seconds"] for line in lost],
        "verified": verified,
        "right": verified.startswith("bits equal") and outcome not in ("hung", ENDED),
        "said": said[1],
        "folder": str(folder),
    }


def _train(settings, path, name, size, seconds, more):
    """Return how a run has ended ("finished", "ended" or "hung"), and what it said last."""
    tolerant = ["--with-ft", "ulfm"] if settings.recovery.survive else []
    command = [mpirun(), *tolerant, "-n", str(size), sys.executable, "-m", "isthmus"]
    try:
        done = subprocess.run(
            [*command, "train", str(path), "--name", name],
            env=rank_environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return "hung", ""
    finished = (settings.run.folder / name / "summary.json").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("isthmus:") or "go on" in line]
    return "finished" if finished else ENDED, "; ".join(lines)


def _verified(folder):
    """Return what `isthmus verify` finds, in words; it has MPI, which this process must not have."""
    done = subprocess.run(
        [sys.executable, "-m", "isthmus", "verify", str(folder), "--json"],
        env=rank_environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1].removeprefix("isthmus: ") if done.stderr else "wrong"
    found = loads(done.stdout)["replay"]
    lost = f", {found['lost']} samples lost as told" if found["lost"] else ""
    return f"bits equal, each sample once in {len(found['epochs'])} epochs{lost}"


def chaos_words(made):
    """Return the sheet to print, and its sum."""
    rows = [
        (
            (
                row["faults"],
                row["outcome"],
                ", ".join(f"{seconds:.2f}" for seconds in row["seconds"]) or "-",
                row["verified"],
            ),
            "" if row["right"] else "red",
        )
        for row in made["runs"]
    ]
    columns = ("fault", "outcome", "recovered after, s", "played again")
    table = table_of([(column, "left") for column in columns], rows)
    counts = f"{made['wrong']} wrong, {made['restarted']} restarted from a checkpoint"
    return [table, f"{len(made['runs'])} runs: {counts}"]
