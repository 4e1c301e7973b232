"""A run's folder has one owner at a time, and no dead one."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from patience import until

from isthmus.errors import OutputError
from isthmus.folders import lock
from isthmus.folders.lock import FolderLock

HOLDER = """
import sys, time
from isthmus.folders.lock import FolderLock
held = FolderLock()
held.take(sys.argv[1])
print("held", flush=True)
time.sleep(1000)
"""
ELSEWHERE = {
    "host": "far",
    "process": 1,
    "boot": "another",
    "started": "2026-11-21T10:00:00+0000",
    "slurm_job": "77",
    "slurm_restarts": 0,
}


def took(folder):
    """Take the folder and give it back; return whether that went well, or what was said."""
    with FolderLock() as mine:
        try:
            mine.take(folder)
        except OutputError as problem:
            return str(problem)
    return True


def left_behind(folder, seconds=0, **changes):
    """Write the file of an owner that showed life so many seconds ago."""
    folder.mkdir(exist_ok=True)
    (folder / "lock").write_text(json.dumps(ELSEWHERE | changes) + "\n")
    os.utime(folder / "lock", (time.time() - seconds,) * 2)
    (folder / "checkpoint.h5").touch()


def without_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("isthmus.folders.lock.fcntl.flock", refuse)


@pytest.mark.slow
def test_a_living_owner_is_named_and_a_killed_one_holds_nobody_up(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "mine"], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        told = took(tmp_path / "mine")
        assert f"mine: process {process.pid} on " in told
        assert "another --name" in told
        assert "\n" not in told
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "mine/lock").exists()
    assert took(tmp_path / "mine") is True


def test_what_was_taken_is_given_back_and_nothing_is_left_of_it(tmp_path):
    with FolderLock() as mine:
        mine.take(tmp_path / "a/b")
        assert json.loads((tmp_path / "a/b/lock").read_text())["process"] == os.getpid()
        assert "this folder" in took(tmp_path / "a/b")
        assert (tmp_path / "a/b/lock").exists()  # one that was refused takes nothing away
    assert not (tmp_path / "a/b").exists()
    with FolderLock() as mine:
        mine.take(tmp_path)
        (tmp_path / "run.json").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "run.json"}


@pytest.mark.parametrize(
    ("seconds", "changes", "free"), [(5, {}, False), (300, {}, True), (5, {"boot": lock._boot()}, True)]
)
def test_an_owner_on_another_machine_is_alive_as_long_as_it_shows_it(tmp_path, seconds, changes, free):
    """Its machine may keep locks for itself, so that here the file looks free."""
    left_behind(tmp_path, seconds, **changes)
    told = took(tmp_path)
    assert told is True if free else "process 1 on far (Slurm job 77) has this folder since 2026" in told
    assert (tmp_path / "lock").exists() != free


@pytest.mark.parametrize(("restarts", "free"), [("1", True), ("0", False)])
def test_a_job_that_slurm_started_again_is_not_in_two_places(tmp_path, monkeypatch, restarts, free):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    left_behind(tmp_path)
    assert (took(tmp_path) is True) == free


@pytest.mark.parametrize(
    ("process", "free"), [(os.getpid(), False), (2**22 + 1, True)], ids=["own", "none"]
)
def test_where_there_are_no_locks_the_process_is_looked_for(tmp_path, monkeypatch, process, free):
    without_locks(monkeypatch)
    left_behind(tmp_path, boot=lock._boot(), process=process)
    assert (took(tmp_path) is True) == free
    assert took(tmp_path / "new") is True


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}'])
def test_a_file_that_says_nothing_holds_nobody_up(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    assert took(tmp_path) is True


def test_an_owner_shows_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "ALIVE_SECONDS", 0.01)
    with FolderLock() as mine:
        mine.take(tmp_path)
        os.utime(tmp_path / "lock", (0, 0))
        until(lambda: (tmp_path / "lock").stat().st_mtime > 0)


def test_of_many_that_come_at_once_one_gets_in_at_a_time(tmp_path):
    inside, most, taken = [], [], []
    (tmp_path / "run.json").touch()

    def come():
        for _ in range(50):
            with FolderLock() as mine:
                try:
                    mine.take(tmp_path)
                except OutputError:
                    continue
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()
                taken.append(1)

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(taken) > 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert "file/lock: cannot be written" in took(tmp_path / "file")
