"""What has become of runs: their state, step and loss, from their folders and Slurm's queue."""

import json
import os
import shutil
from pathlib import Path

from isthmus.errors import SchedulerError, SettingsError
from isthmus.terminal import table_of
from isthmus.topology.slurm import ask

TAIL_NBYTES = 1 << 16


def list_runs(parent):
    """Return a dict for each run in the folder `parent`, the newest last.

    state: "finished" with a summary; else what Slurm calls the run's job ("pending", "running",
    "cancelled" ...) as long as it knows it; else "stopped" after a signal, or "unfinished".
    """
    if not Path(parent).is_dir():
        raise SettingsError(f"{parent}: no such folder; name the folder that runs go to (run.folder in "
                            "their settings)")
    folders = [path for path in Path(parent).iterdir()
               if (path / "run.json").is_file() or (path / "slurm.json").is_file()]
    folders.sort(key=lambda path: (path.stat().st_mtime, path.name))
    runs = [describe_run(folder) for folder in folders]
    of_job = states_of_jobs() if any(run["job"] for run in runs) else {}
    for run in runs:
        if run["state"] != "finished" and run["job"] in of_job:
            run["state"] = of_job[run["job"]]
    return runs


def describe_run(folder):
    """Return what a run's folder alone tells."""
    run, plan, summary, submitted = (_table(folder / f"{name}.json")
                                     for name in ("run", "plan", "summary", "slurm"))
    lines = _last_lines(folder / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    turns = [line["kind"] for line in lines if line["kind"] in ("stopped", "resumed")]
    epochs = run.get("settings", {}).get("training", {}).get("epochs")
    state = "unfinished" if run else "submitted"
    if turns and turns[-1] == "stopped":
        state = "stopped"
    return {"name": folder.name, "state": "finished" if summary else state,
            "job": submitted.get("job") or run.get("slurm_job"),
            "step": steps[-1]["step"] if steps else 0,
            "steps": plan["steps"] * epochs if plan and epochs else None,
            "loss": steps[-1]["loss"] if steps else None}


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
    """Return what to print: a table, a row a run."""
    if not runs:
        return f"{parent}: no runs yet"
    columns = [("run", "left"), ("state", "left"), ("job", "left"), ("step", "right"), ("loss", "right")]
    rows = [((run["name"], run["state"], run["job"] or "",
              f"{run['step']}/{run['steps']}" if run["steps"] else "",
              "" if run["loss"] is None else f"{run['loss']:.4f}"), "") for run in runs]
    return [table_of(columns, rows)]


def _table(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or not of this program: a list goes on without it
        return {}


def _last_lines(path):
    """Return the last lines of metrics.jsonl as dicts, one that is being written left out."""
    try:
        with open(path, "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_NBYTES)
            file.seek(start)
            lines = file.read().split(b"\n")[1 if start else 0:-1]
    except OSError:
        return []
    tables = []
    for line in lines:
        try:
            tables.append(json.loads(line))
        except ValueError:
            continue
    return tables
