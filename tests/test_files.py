"""Files on disks that are full or fail: the old or the new one is there, whole, and one line says so."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from clusters import cluster_of
from patience import launched
from test_cli import RUN, call, pack_lab, with_changes, write

import isthmus
from isthmus.errors import OutputError
from isthmus.files import open_plain, remove_leftovers, replacing, write_bytes, write_text
from isthmus.training.checkpoint_file import CHECKPOINT

DRAW = np.random.default_rng(0)
SMALL, LARGE = ({"a": DRAW.integers(0, 255, (20, size), dtype="u1")} for size in (10, 3000))


def write_checkpoints(folder):
    """Write a small checkpoint; return what puts a larger one in its place, and what reads it."""
    path = folder / "checkpoint.h5"
    CHECKPOINT.write(path, {"parameters": np.ones(10, "f4")}, {"step": 1})
    return (
        lambda: CHECKPOINT.write(path, {"parameters": np.ones(20_000, "f4")}, {"step": 2}),
        lambda: CHECKPOINT.read(path)[1]["step"],
    )


def write_sets(folder):
    """The same of a set of shards."""
    isthmus.pack_shards(SMALL, folder, 3)

    def read():
        shards = isthmus.ShardSet.open(folder)
        shards.verify()
        return len(shards.names)

    return lambda: isthmus.pack_shards(LARGE, folder, 2, "none", overwrite=True), read


both = pytest.mark.parametrize("make", [write_checkpoints, write_sets])


@contextmanager
def largest_file(nbytes):
    """Have the kernel refuse to write beyond `nbytes` of any file, as it would on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@both
def test_a_write_that_fails_anywhere_leaves_the_old_file_whole(make, tmp_path):
    replace, read = make(tmp_path)
    old, files = read(), sorted(tmp_path.iterdir())
    for nbytes in [0, 1, 511, 512, 513, *range(1000, 30_000, 1000)]:
        with largest_file(nbytes), pytest.raises(OutputError, match="cannot be written"):
            replace()
        assert read() == old
        assert sorted(tmp_path.iterdir()) == files
    replace()
    assert read() != old


@both
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_call_that_fails_leaves_a_whole_file(make, tmp_path, monkeypatch, call, number):
    """The first, the second ... of all calls: until none of them fails."""
    real, results = getattr(os, call), set()
    replace, read = make(tmp_path)
    old = read()
    for working in range(100):
        left = iter([True] * working)

        def failing(*given, left=left, **named):
            partial = call != "open" or ".partial" in str(given[0])
            if partial and not next(left, False):
                raise OSError(number, os.strerror(number))
            return real(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                replace()
                break
            except OutputError as problem:
                told = str(problem)
        assert os.strerror(number) in told
        results.add(read())
    assert old in results
    assert read() != old
    assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_synced_is_no_failure_and_one_that_fails_is(tmp_path, monkeypatch):
    path, real = tmp_path / "file", os.fsync

    def on_folders(number):
        def fsync(descriptor):
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(number, os.strerror(number))
            real(descriptor)

        return fsync

    for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
        monkeypatch.setattr(os, "fsync", on_folders(number))
        write_text(path, f"{number}")
        assert path.read_text() == f"{number}"
    monkeypatch.setattr(os, "fsync", on_folders(errno.EIO))
    with pytest.raises(OutputError, match="Input/output error"):
        write_text(path, "new")
    monkeypatch.setattr(os, "fsync", lambda _: on_folders(errno.EINVAL)(os.open(tmp_path, os.O_RDONLY)))
    with pytest.raises(OutputError, match="Invalid argument"):  # of the file itself: it may not be whole
        write_text(tmp_path / "other", "new")
    assert not (tmp_path / "other").exists()


def test_what_killed_writers_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    for name in ("a.json.12.partial", "b.h5.4711.partial", "film.partial", "12.partial"):
        (tmp_path / name).write_text("half")
    with replacing(tmp_path / "c") as partial:
        partial.write_text("whole")
        remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {partial.name, "film.partial", "12.partial"}
    assert (tmp_path / "c").read_text() == "whole"


def test_parts_are_written_one_after_the_other_with_the_usual_rights(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "new/file", b"one", memoryview(b"two"))
    finally:
        os.umask(before)
    assert (tmp_path / "new/file").stat().st_mode & 0o777 == 0o640
    with open_plain(tmp_path / "new/file") as file:
        assert file.read() == b"onetwo"


FULL_DISKS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_files import *
folder = Path(sys.argv[2])
for make in (write_checkpoints, write_sets):
    for kilobytes in range(40, 115, 5):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
        try:
            replace, read = make(folder)
            (folder / "filler").write_bytes(bytes(max(0, 1000 * kilobytes - 70_000)))
            old, files = read(), sorted(folder.iterdir())
            try:
                replace()
            except OutputError as problem:
                assert problem.exit_code == 8 and "No space left on device" in str(problem)
                print("full" if read() == old and sorted(folder.iterdir()) == files else "lost")
        finally:
            subprocess.run(["umount", folder], check=True)
"""


@pytest.fixture
def disk(tmp_path):
    """Give a folder on which tests may mount a disk of some kilobytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_thirty_full_disks_leave_what_was_there(disk, repository):
    done = launched([sys.executable, "-c", FULL_DISKS, repository / "tests", disk])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["full"] * 30


@pytest.mark.slow
def test_a_disk_that_is_full_ends_pack_and_train_with_code_8(disk, tmp_path):
    pack_lab(tmp_path)
    np.savez(tmp_path / "large.npz", a=DRAW.integers(0, 255, (100, 5000), dtype="u1"))
    isthmus.pack_shards(SMALL, disk / "set", 3)
    done = call(tmp_path, 0, "pack", "disk/set", "-a", "a=large.npz", "--shards", 2, "--overwrite")
    assert done.returncode == 8, done.stderr
    assert done.stderr.startswith(
        "isthmus: disk/set/shard-00001.new.h5: cannot be written: No space left on device; "
    )
    isthmus.ShardSet.open(disk / "set").verify()
    write(
        tmp_path,
        cluster=cluster_of(1),
        run=with_changes(RUN, {"run.folder": "disk", "model.hidden": [900], "run.checkpoint_every": 3}),
    )
    done = call(tmp_path, 0, "train", "run.toml")
    assert done.returncode == 8, done.stderr
    assert done.stderr.count("isthmus: ") == 1
    (path,) = disk.glob("run-*/checkpoint.h5")
    assert f"its last checkpoint, of step 3, is {path}" in done.stderr
    assert CHECKPOINT.read(path)[1]["step"] == 3
