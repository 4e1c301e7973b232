"""What has become of runs: their state and how far they are, from their folders and Slurm's queue."""

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import NotRequired

from pydantic import TypeAdapter

from isthmus.cluster.slurm import ask
from isthmus.errors import SchedulerError, SettingsError
from isthmus.folders.contents import Count, Measured, Seconds, Table, Training
from isthmus.folders.lock import life
from isthmus.folders.metric_lines import Line
from isthmus.folders.metrics import judged_by, metric_in_words, metrics_of, number_in_words
from isthmus.folders.reading import epochs_of, in_words, is_finished, read_table
from isthmus.folders.seals import FormatError, unsealed
from isthmus.terminal import duration, table_of
from isthmus.watching.failures import log_path

TAIL_NBYTES = 1 << 16
SEARCHED_NBYTES = 1 << 22
"""From the end of metrics.jsonl, for what the test set said last."""
BEGUN = re.compile(r"^\S+ \S+ INFO isthmus .*, process \d+$", re.MULTILINE)
FAILED = re.compile(r"^\S+ \S+ ERROR (.*)$", re.MULTILINE)
INTERRUPTED = re.compile(r"^\S+ \S+ INFO step .*: interrupted by \w+$", re.MULTILINE)


class Settings(Table):
    """What a row tells of a run's settings."""

    training: NotRequired[Training]


class Made(Table):
    """What a row tells of run.json."""

    settings: NotRequired[Settings]
    slurm_job: NotRequired[str | None]
    started: NotRequired[str]
    hosts: NotRequired[list[str]]
    ranks: NotRequired[Count]


class Planned(Table):
    """What a row tells of plan.json."""

    steps: NotRequired[Count]
    shards_of_rank: NotRequired[list[list[Count]]]


class Summed(Table):
    """What a row tells of summary.json."""

    steps: NotRequired[Count]
    loss: NotRequired[Measured]
    accuracy: NotRequired[Measured]
    metrics: NotRequired[dict[str, Measured]]


class Submitted(Table):
    """slurm.json."""

    job: str


class Progress(Line):
    """What a row tells of a line of metrics.jsonl."""

    loss: NotRequired[Measured]
    accuracy: NotRequired[Measured]
    metrics: NotRequired[dict[str, Measured]]
    seconds: NotRequired[Seconds]


PROGRESS = TypeAdapter(Progress)
FILES = {"run.json": Made, "plan.json": Planned, "summary.json": Summed, "slurm.json": Submitted}


def list_runs(parent):
    """Return a dict for each run in the folder `parent`, the newest last.

    state: "damaged" where a file is, with `problem`; "finished" with a summary of its last step; else
    what Slurm calls the run's job ("pending", "running", "cancelled" ...) as long as it knows it; else
    "running", as long as a living process has the folder; "stopped" after a signal, with a checkpoint;
    "failed" where a rank's log ends with an error, with it as `problem`; "killed" where its processes
    are gone without a word, or were interrupted; "unknown" where they are on another machine that
    shows no life, `since` when; and "unfinished" where nothing tells.
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
    tests = [line for line in lines if line["kind"] == "evaluation"]
    epochs, last_step = epochs_of(run.get("settings", {})), steps[-1]["step"] if steps else 0
    all_steps = plan["steps"] * epochs if plan.get("steps") and epochs else None
    words, (alive, since) = None, life(folder)
    if problems:
        state, words = "damaged", problems[0]
    elif is_finished(summary or None, plan.get("steps"), epochs, last_step):
        state = "finished"
    elif alive == "running":
        state = "running"
    elif turns and turns[-1] == "stopped":
        state = "stopped"
    elif not run:
        state = "submitted" if submitted else "killed"
    else:
        state, words = _how_it_ended(folder, len(run.get("hosts", ())), alive)
    return {
        "name": folder.name,
        "state": state,
        "job": submitted.get("job") or run.get("slurm_job"),
        "ranks": len(plan.get("shards_of_rank", ())),  # now, and when it was started last
        "ranks_in_all": run.get("ranks", len(run.get("hosts", ()))),
        "step": last_step,
        "steps": all_steps,
        "loss": steps[-1].get("loss") if steps else None,
        "metrics": metrics_of(summary) or (metrics_of(tests[-1]) if tests else {}),
        "started": run.get("started"),
        "since": _moment(since) if state == "unknown" else None,
        "seconds_left": _seconds_left(steps, all_steps) if state == "running" else None,
        "problem": words,
    }


def _how_it_ended(folder, ranks, alive):
    """Return the state of a run that goes on no more, or that nobody hears of, and its error."""
    interrupted = alive == "gone"
    for rank in range(ranks):
        try:
            with open(log_path(folder, rank), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_NBYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            continue
        text = text[max((found.end() for found in BEGUN.finditer(text)), default=0) :]
        if failed := FAILED.findall(text):
            return "failed", f"{folder}: rank {rank}: {failed[-1]}"
        interrupted = interrupted or INTERRUPTED.search(text) is not None
    if alive == "silent":
        return "unknown", None
    return "killed" if interrupted else "unfinished", None


def _seconds_left(steps, all_steps):
    """Return how long the rest takes if it goes on as the last steps did; None where nothing tells."""
    timed = [(line["step"], line["seconds"]) for line in steps if line.get("seconds") is not None]
    if all_steps is None or len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return None
    (first, began), (last, now) = timed[0], timed[-1]
    return max(0.0, (all_steps - last) * (now - began) / (last - first))


def _moment(seconds):
    """Return a moment as a run's folder tells it, to the minute."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


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
    columns = [
        ("run", "left"),
        ("state", "left"),
        ("job", "left"),
        ("ranks", "right"),
        ("step", "right"),
        ("loss", "right"),
        ("test", "right"),
        ("begun", "left"),
        ("left", "right"),
    ]
    rows = [(_cells(run), "") for run in runs]
    shown = [
        number
        for number, (title, _) in enumerate(columns)
        if (title != "job" or any(run["job"] for run in runs))
        and (title != "ranks" or any(0 < run["ranks"] < run["ranks_in_all"] for run in runs))
    ]
    columns = [columns[number] for number in shown]
    rows = [([texts[number] for number in shown], style) for texts, style in rows]
    return [table_of(columns, rows), *(run["problem"] for run in runs if run["problem"])]


def _cells(run):
    name, left = judged_by(run["metrics"]), run["seconds_left"]
    return (
        run["name"],
        run["state"] + (f" since {_minute(run['since'])}" if run["since"] else ""),
        run["job"] or "",
        f"{run['ranks']}/{run['ranks_in_all']}" if run["ranks"] else "",
        f"{run['step']}/{run['steps']}" if run["steps"] else "",
        "" if run["loss"] is None else number_in_words(run["loss"]),
        f"{name} {metric_in_words(name, run['metrics'][name])}" if run["metrics"] else "",
        _minute(run["started"] or ""),
        "" if left is None else duration(left),
    )


def _minute(started):
    """Return date and time of "2026-11-28T16:57:16+0000", as the machine that wrote it had them."""
    return started[:16].replace("T", " ")


def _last_lines(path):
    """Return the last lines of metrics.jsonl as dicts, one that is being written left out, and what is
    wrong with others."""
    tables, wrong = [], []
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - TAIL_NBYTES)
            file.seek(max(0, size - SEARCHED_NBYTES))
            before, last = file.read(start - file.tell()), file.read()
        lines = last.split(b"\n")[1 if start else 0 : -1]
        if start and not lines:
            wrong.append(f"{path}: a line of it has more than {TAIL_NBYTES:,} bytes")
        place = before.rfind(b"\n", 0, before.rfind(b'"kind": "evaluation"') + 1) + 1
        if place:  # older than all of these lines, and the last of its kind
            lines.insert(0, (before[place:] + last).partition(b"\n")[0])
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
