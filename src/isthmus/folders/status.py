"""What has become of runs: their state, step and loss, from their folders and Slurm's queue."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NotRequired

from pydantic import TypeAdapter

from isthmus.cluster.slurm import ask
from isthmus.errors import SchedulerError, SettingsError
from isthmus.folders.contents import Count, Line, Measured, Table, Training
from isthmus.folders.reading import epochs_of, in_words, is_finished, read_table
from isthmus.folders.seals import FormatError, unsealed
from isthmus.terminal import table_of

TAIL_NBYTES = 1 << 16


class Settings(Table):
    """What a row tells of a run's settings."""

    training: NotRequired[Training]


class Made(Table):
    """What a row tells of run.json."""

    settings: NotRequired[Settings]
    slurm_job: NotRequired[str | None]


class Planned(Table):
    """What a row tells of plan.json, and of summary.json."""

    steps: NotRequired[Count]


class Submitted(Table):
    """slurm.json."""

    job: str


class Progress(Line):
    """What a row tells of a line of metrics.jsonl."""

    loss: NotRequired[Measured]


PROGRESS = TypeAdapter(Progress)
FILES = {"run.json": Made, "plan.json": Planned, "summary.json": Planned, "slurm.json": Submitted}


def list_runs(parent):
    """Return a dict for each run in the folder `parent`, the newest last.

    state: "damaged" where a file is, with `problem`; "finished" with a summary of its last step; else
    what Slurm calls the run's job ("pending", "running", "cancelled" ...) as long as it knows it; else
    "stopped" after a signal, or "unfinished".
    """
    if not Path(parent).is_dir():
        raise SettingsError(
            f"{parent}: no such folder; name the folder that runs go to (run.folder in their settings)"
        )
    found = []
    for path in Path(parent).iterdir():
        with suppress(OSError):  # a folder that is being removed, or of somebody else
            if (path / "run.json").exists() or (path / "slurm.json").exists():
                found.append((path.stat().st_mtime, path.name, path))
    runs = [describe_run(folder) for *_, folder in sorted(found)]
    of_job = states_of_jobs() if any(run["job"] for run in runs) else {}
    for run in runs:
        if run["state"] not in ("finished", "damaged") and run["job"] in of_job:
            run["state"] = of_job[run["job"]]
    return runs


def describe_run(folder):
    """Return what a run's folder alone tells; `problem` is what is wrong with it, or None."""
    found, problems = {}, []
    for name, kind in FILES.items():
        try:
            found[name] = read_table(folder / name, kind) if (folder / name).exists() else {}
        except SettingsError as problem:
            found[name] = {}
            problems.append(str(problem))
    run, plan, summary, submitted = found.values()
    lines, wrong = _last_lines(folder / "metrics.jsonl")
    problems += wrong
    steps = [line for line in lines if line["kind"] == "step"]
    turns = [line["kind"] for line in lines if line["kind"] in ("stopped", "resumed")]
    epochs, last_step = epochs_of(run.get("settings", {})), steps[-1]["step"] if steps else 0
    state = "unfinished" if run else "submitted"
    if turns and turns[-1] == "stopped":
        state = "stopped"
    if is_finished(summary or None, plan.get("steps"), epochs, last_step):
        state = "finished"
    return {
        "name": folder.name,
        "state": "damaged" if problems else state,
        "job": submitted.get("job") or run.get("slurm_job"),
        "step": last_step,
        "steps": plan["steps"] * epochs if plan.get("steps") and epochs else None,
        "loss": steps[-1].get("loss") if steps else None,
        "problem": problems[0] if problems else None,
    }


def states_of_jobs():
    """Return job -> state of this user's jobs that Slurm still knows; {} where there is no Slurm."""
    if shutil.which("squeue") is None:
        return {}
    try:
        told = ask("squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i %T")
    except SchedulerError:
        return {}
    pairs = (line.split() for line in told.splitlines())
    return {job.removesuffix("+0"): state.lower() for job, state in pairs}


def status_table(runs, parent):
    """Return what to print: a table, a row a run, and a line for each that is damaged."""
    if not runs:
        return f"{parent}: no runs yet"
    columns = [("run", "left"), ("state", "left"), ("job", "left"), ("step", "right"), ("loss", "right")]
    rows = [
        (
            (
                run["name"],
                run["state"],
                run["job"] or "",
                f"{run['step']}/{run['steps']}" if run["steps"] else "",
                "" if run["loss"] is None else f"{run['loss']:.4f}",
            ),
            "",
        )
        for run in runs
    ]
    return [table_of(columns, rows), *(run["problem"] for run in runs if run["problem"])]


def _last_lines(path):
    """Return the last lines of metrics.jsonl as dicts, one that is being written left out, and what is
    wrong with others."""
    tables, wrong = [], []
    try:
        with open(path, "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_NBYTES)
            file.seek(start)
            lines = file.read().split(b"\n")[1 if start else 0 : -1]
            if start and not lines:
                wrong.append(f"{path}: a line of it has more than {TAIL_NBYTES:,} bytes")
    except FileNotFoundError:
        return [], []
    except OSError as problem:
        return [], [f"{path}: cannot be read: {problem.strerror}"]
    for line in lines:
        try:
            tables.append(PROGRESS.validate_python(unsealed(line)))
        except FormatError as problem:
            wrong.append(f"{path}: a line of the last {len(lines)} {problem}")
        except ValueError as problem:
            wrong.append(f"{path}: a line of the last {len(lines)} {in_words(problem)}")
    return tables, wrong
