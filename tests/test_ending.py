"""How a job ends: by signals to one rank, to mpirun and without it, and where a rank is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from clusters import cluster_of
from patience import launched, until
from test_cli import ISTHMUS, RUN, command, pack_lab, with_changes, write

from isthmus.jobs.aftermath import aftermath
from isthmus.jobs.launch import rank_environment
from isthmus.watching.failures import Place, interrupted_lines
from isthmus.watching.interruption import Interrupted, Watchman

SECONDS = 8.0  # on a slow machine; one or two on a quick one
HERE = Place(
    0,
    21,
    "allreduce",
    ("n0", "n0", "n1"),
    ("here", "here", "there"),
    ("cloud", "cloud", "edge"),
    Path("runs/mine"),
    15,
    home=0,
    seen=(0, 1),
    signalled=(0, 1),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    pack_lab(folder)
    write(
        folder,
        run=with_changes(RUN, {"training.epochs": 4000, "cluster.links": "paced"}),
        cluster=cluster_of(1, 2, latency_seconds=0.006),
        alone=cluster_of(1),
    )
    return folder


def begun(lab, ranks):
    """Start a job; return it and its run's folder once that has a checkpoint."""
    before = set(lab.glob("runs/*"))
    options = [] if ranks else ["--cluster", "alone.toml"]
    job = subprocess.Popen(
        command(ranks, "train", "run.toml", *options),
        cwd=lab,
        text=True,
        env=rank_environment(COLUMNS="200"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def made():
        return [path for path in set(lab.glob("runs/*")) - before if (path / "checkpoint.h5").exists()]

    until(lambda: made() or job.poll() is not None)
    assert made(), job.communicate()[1]
    time.sleep(0.3)  # all ranks take note of it
    return job, made()[0]


def process_of(folder, rank):
    log = (folder / f"logs/rank{rank:04}.log").read_text()
    return int(re.search(r"process (\d+)", log)[1])


def lines_of_isthmus(text):
    return [line for line in text.replace("\0", "").splitlines() if line.startswith("isthmus:")]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("who", "number", "code", "words"),
    [
        (
            1,
            signal.SIGTERM,
            130,
            ["rank 1 (site site1, tier edge, host ", "interrupted in step", "SIGTERM"],
        ),
        (
            0,
            signal.SIGINT,
            130,
            ["rank 0 (site site0, tier cloud, host ", "interrupted in step", "SIGINT"],
        ),
        ("mpirun", signal.SIGINT, 1, ["isthmus: interrupted in step"]),
        ("mpirun", signal.SIGTERM, 1, ["isthmus: interrupted in step"]),
        ("no mpirun", signal.SIGINT, 130, ["isthmus: interrupted in step"]),
        ("a rank while another is frozen", signal.SIGTERM, 130, ["rank 0 (site", "interrupted in step"]),
        (1, signal.SIGKILL, 137, ["isthmus: rank 1: its process is gone: killed from outside"]),
    ],
)
def test_a_job_ends_soon_with_one_line_and_its_code(lab, who, number, code, words):
    for _ in range(5):  # mpirun leaves the others 0.25 s to speak, which on a busy machine is too little
        told, folder, seconds = ended(lab, who, number, code)
        if len(lines_of_isthmus(told)) == 1 and seconds < SECONDS and "no checkpoint" not in told:
            break
    assert seconds < SECONDS
    assert len(lines_of_isthmus(told)) == 1, told[-3000:]
    (line,) = lines_of_isthmus(told)
    assert all(word in line for word in words), line
    assert f"--resume {folder}" in told, told[-3000:]
    assert "checkpoint of step" in line or "its last checkpoint, of step" in told
    assert "Traceback" not in told
    assert (folder / "checkpoint.h5").exists()
    assert not (folder / "summary.json").exists()
    if number == signal.SIGKILL:
        assert re.search(r"  rank   rank 1 \(site site1, tier edge, .*\)\n  step   \d+, phase", told)


def ended(lab, who, number, code):
    """Send a signal to a job; return what it told on standard error, its run's folder, and seconds."""
    job, folder = begun(lab, 0 if who == "no mpirun" else 3)
    rank = who if isinstance(who, int) else 0
    if "frozen" in str(who):
        os.kill(process_of(folder, 2), signal.SIGSTOP)
        time.sleep(0.5)  # the others wait for it inside MPI, where no Python comes to a signal
    began = time.monotonic()
    os.kill(job.pid if "mpirun" in str(who) else process_of(folder, rank), number)
    try:
        _, told = job.communicate(timeout=120)
    finally:
        job.kill()
    seconds = time.monotonic() - began
    assert job.returncode == code, told
    return told, folder, seconds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {},
            [
                "isthmus: interrupted in step 21 by mpirun; if nobody stopped it, look at rank 2 (site "
                "there",
                "checkpoint of step 15",
            ],
        ),
        ({"seen": (0, 1, 2), "signalled": (0, 1, 2)}, ["isthmus: interrupted in step 21; go on from"]),
        ({"rank": 1}, None),
        ({"failing": (1,)}, None),
        ({"signalled": (1,)}, None),
        ({"rank": 1, "signalled": (1,)}, ["isthmus: rank 1 (site here", "in step 21 by SIGTERM; go on"]),
        ({"gone": {1: (20, "compute")}, "signalled": (0,)}, ["isthmus: rank 1: its process is gone"]),
        ({"rank": 1, "gone": {0: (20, "compute")}}, ["isthmus: rank 0: its process is gone"]),
        ({"checkpoint": None, "seen": (0, 1, 2), "signalled": (0, 1, 2)}, ["written no checkpoint"]),
    ],
)
def test_of_the_ranks_that_are_told_to_end_one_speaks_and_says_why(changes, words):
    lines = interrupted_lines(signal.SIGTERM, replace(HERE, **changes), changes.get("rank", 0) == 0)
    assert sum(line.startswith("isthmus:") for line in lines) == bool(words), lines
    assert all(word in lines[0] for word in words or ()), lines


WAITS = """
import ctypes, os, signal, sys, threading, time
from isthmus.watching.interruption import Watchman

lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
library.pthread_mutex_lock(lock)
with Watchman(lambda number, raised: print(number, raised, flush=True), lambda: True):
    for seconds, number in ((0.2, signal.SIGTERM), (0.4, signal.SIGCONT)):
        threading.Timer(seconds, os.kill, (os.getpid(), number)).start()
    until, part = divmod(time.time_ns() + int(1e9 * float(sys.argv[1])), 10**9)
    try:
        library.pthread_mutex_timedlock(lock, (ctypes.c_long * 2)(until, part))
    finally:
        time.sleep(1000)
"""


@pytest.mark.parametrize("seconds", [1000, 0.8])
def test_a_process_that_comes_to_no_handler_is_ended_by_another_thread(seconds):
    """Nor does it say more where it comes to one later, or more signals follow."""
    done = launched([sys.executable, "-c", WAITS, seconds])
    assert (done.returncode, done.stdout, done.stderr) == (130, "15 False\n", "")


def test_an_interruption_passes_through_what_catches_exceptions():
    before = signal.getsignal(signal.SIGTERM)
    with Watchman(lambda number, raised: None, lambda: False):
        with pytest.raises(Interrupted):
            try:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(5)
            except Exception:
                raise AssertionError("an interruption is no error to be mended") from None
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interruption_that_comes_in_a_finaliser_is_raised_after_it(capsys):
    class Closing:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with Watchman(lambda number, raised: None, lambda: False):
        Closing()
        with pytest.raises(Interrupted):
            time.sleep(5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("files", "code", "ends", "words"),
    [
        ({"summary.json": {"steps": 10}}, 0, 0, None),
        ({"summary.json": {"steps": 10}}, 137, 137, None),
        ({}, 0, 15, ["code 0 and the run has no summary", "step on record is 3 of 10", "begin again"]),
        ({"checkpoint.h5": {}}, 137, 137, ["code 137", "go on from its checkpoint", "--resume "]),
        ({}, 14, 14, None),
        ({}, 7, 7, None),
        (None, 0, 15, ["the last step on record is 0; "]),
    ],
)
def test_after_mpirun_a_run_without_a_summary_has_a_line_and_no_code_0(
    tmp_path, files, code, ends, words
):
    folder = tmp_path / "run-7"
    if files is not None:
        folder.mkdir()
        run = {"settings": {"training": {"epochs": 2}}}
        for name, table in {"run.json": run, "plan.json": {"steps": 5}, **files}.items():
            (folder / name).write_text(json.dumps(table))
        (folder / "metrics.jsonl").write_text('{"kind": "step", "step": 3, "loss": 1.5}\n')
    returned, lines = aftermath(code, str(folder))
    assert returned == ends
    assert len(lines) == bool(words)
    assert all(word in lines[0] for word in words or ()), lines
    assert aftermath(code, None) == (code, [])


@pytest.mark.slow
@pytest.mark.parametrize("verb", [(), ("bench",), ("testbed",)])
def test_without_a_verb_there_is_help_and_the_code_of_wrong_arguments(verb):
    done = launched([*ISTHMUS, *verb])
    assert (done.returncode, done.stderr) == (2, "")
    assert f"Usage: {' '.join(['isthmus', *verb])} " in done.stdout
