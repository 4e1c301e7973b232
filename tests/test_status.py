"""What `isthmus status` tells of runs that go on, and of those that do not."""

import json
import os
import subprocess
import sys
import time

import pytest
from test_lock import HOLDER, left_behind, took

from isthmus.folders.lock import FolderLock, life
from isthmus.folders.metrics import number_in_words
from isthmus.folders.status import list_runs, status_table
from isthmus.terminal import Terminal, duration

BEGUN = "2026-11-28 16:57:16,123 INFO isthmus 0.1.0: rank 0 (a, cloud), process 12\n"
INTERRUPTED = "2026-11-28 16:57:17,123 INFO step 3, phase compute: interrupted by SIGTERM\n"
FAILED = (
    "2026-11-28 16:57:17,123 ERROR step 3, phase compute: NonFiniteError: a gradient holds a NaN\n"
    "Traceback (most recent call last):\n  ValueError: ERROR of another\n"
)


def write_run(parent, name, lines=(), logs=(), **run):
    """Write what a run of two ranks and 20 steps has left, and return its folder."""
    folder = parent / name
    (folder / "logs").mkdir(parents=True)
    made = {
        "settings": {"training": {"epochs": 2}},
        "hosts": ["a", "b"],
        "started": "2026-11-28T16:57:16+0000",
    }
    (folder / "run.json").write_text(json.dumps(made | run))
    (folder / "plan.json").write_text(json.dumps({"steps": 10}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for rank, text in enumerate(logs):
        (folder / f"logs/rank{rank:04}.log").write_text(text)
    return folder


def step(number):
    return {"kind": "step", "step": number, "loss": 0.5, "seconds": 0.25 * number}


def of(parent):
    return {run["name"]: run for run in list_runs(parent)}


def test_runs_that_have_ended_without_a_summary_are_told_apart(tmp_path):
    write_run(tmp_path, "failed", [step(3)], [BEGUN + INTERRUPTED, BEGUN + FAILED])
    write_run(tmp_path, "interrupted", [step(3)], [BEGUN, BEGUN + INTERRUPTED])
    write_run(tmp_path, "mended", [step(3)], [BEGUN + FAILED + BEGUN + INTERRUPTED])
    write_run(tmp_path, "silent", [step(3)], [BEGUN])
    left_behind(write_run(tmp_path, "killed", [], [BEGUN]), boot=_this_boot())
    left_behind(write_run(tmp_path, "elsewhere"), seconds=5)
    left_behind(write_run(tmp_path, "lost"), seconds=3600)
    left_behind(write_run(tmp_path, "rebooted"), seconds=3600, host=os.uname().nodename)
    runs = of(tmp_path)
    assert {name: run["state"] for name, run in runs.items()} == {
        "failed": "failed",
        "interrupted": "killed",
        "mended": "killed",
        "silent": "unfinished",
        "killed": "killed",
        "elsewhere": "running",
        "lost": "unknown",
        "rebooted": "killed",
    }
    problem = (
        f"{tmp_path / 'failed'}: rank 1: step 3, phase compute: NonFiniteError: a gradient holds a NaN"
    )
    assert runs["failed"]["problem"] == problem
    shown = time.localtime((tmp_path / "lost/lock").stat().st_mtime)  # the last sign of life
    assert runs["lost"]["since"][:13] == time.strftime("%Y-%m-%dT%H", shown)
    assert runs["elsewhere"]["started"] == "2026-11-28T16:57:16+0000"
    _, *told = status_table(list(runs.values()), tmp_path)
    assert told == [problem]
    assert not list(tmp_path.glob("*/lock.*"))  # looking writes nothing


def test_a_run_that_goes_on_tells_what_is_left_and_what_the_test_set_said(tmp_path, capsys):
    metrics = {"loss": 0.4, "mae": 0.3, "r2": 0.75}
    said = {"kind": "evaluation", "step": 10, "seconds": 2.5, "loss": 0.4, "accuracy": None}
    many = [step(number) | {"terms": "x" * 700} for number in range(11, 201)]
    lines = [said | {"metrics": {"loss": 9}}, said | {"metrics": metrics}, *many]
    folder = write_run(tmp_path, "long", lines, settings={"training": {"epochs": 40}})
    left_behind(folder, seconds=1)
    old = said | {"accuracy": 0.5}
    left_behind(write_run(tmp_path, "old", [step(9), step(10), old]), seconds=1)
    runs = of(tmp_path)
    assert (runs["long"]["state"], runs["long"]["metrics"]) == ("running", metrics)
    assert (runs["long"]["step"], runs["long"]["steps"]) == (200, 400)
    assert runs["long"]["seconds_left"] == pytest.approx(50)
    assert runs["old"]["metrics"] == {"loss": 0.4, "accuracy": 0.5}
    Terminal().result(status_table(list(runs.values()), tmp_path)[0])
    shown = capsys.readouterr().out
    for words in ("r2 0.7500", "accuracy 50.00 %", "2026-11-28 16:57", "50 s", "200/400"):
        assert words in shown
    assert "job" not in shown


@pytest.mark.slow
def test_a_living_process_is_seen_and_its_end_too(tmp_path):
    folder = write_run(tmp_path, "mine", [step(3)])
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        os.utime(folder / "lock", (0, 0))  # a machine's own lock says more than a date
        assert of(tmp_path)["mine"]["state"] == "running"
        assert isinstance(took(folder), str)
    finally:
        holder.kill()
        holder.wait()
    assert of(tmp_path)["mine"]["state"] == "killed"
    assert took(folder) is True
    assert life(folder) == (None, None)


def test_who_looks_does_not_stand_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.h5").touch()
    (tmp_path / "run" / "lock").write_text("")
    with open(tmp_path / "run" / "lock") as looking:
        import fcntl

        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("isthmus.folders.lock.time.sleep", lambda _: looking.close())
        with FolderLock() as mine:
            mine.take(tmp_path / "run")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (45, "45 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3659, "1 h"),
        (180_000, "2 d 2 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.43214, "0.4321"),
        (0, "0.0000"),
        (0.000123456, "0.0001235"),
        (2900.5, "2900.5000"),
        (1e7, "1e+07"),
    ],
)
def test_numbers_have_four_digits_that_tell(value, words):
    assert number_in_words(value) == words


def _this_boot():
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
