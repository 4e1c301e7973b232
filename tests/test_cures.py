"""An OSError's number decides the cure, wherever it comes up: shards, checkpoints, settings, outputs."""

import errno
import os

import numpy as np
import pytest

import isthmus
from isthmus import cures, files
from isthmus.errors import OutputError, SettingsError, ShardError
from isthmus.jobs.settings import RunSettings
from isthmus.shards import shard_file


@pytest.mark.parametrize(
    ("problem", "reason", "cure"),
    [
        (OSError(errno.EACCES, "Permission denied"), "Permission denied", "rights"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error", "dmesg"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files", "ulimit -n"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle", "mount"),
        (OSError(524, "Unknown error 524"), "Operation not supported", "use another"),
        (OSError(errno.EINVAL, "is a pipe or a device, not a file"), "is a pipe", "again"),
        (
            OSError(5, "file read failed: errno = 5, error message = 'Input/output error'"),
            "cannot be read: Input/output error",
            "dmesg",
        ),
        (
            OSError("file read failed: errno = 5, error message = 'Input/output error'"),
            "Input/output error",
            "dmesg",
        ),
        (OSError("truncated file: eof = 300"), "truncated file: eof = 300", "again"),
        (OSError("file read failed: errno = 0, error message = 'Success'"), "file read failed", "again"),
    ],
)
def test_a_shard_is_to_be_fetched_again_only_where_the_system_names_no_other_cause(
    tmp_path, monkeypatch, problem, reason, cure
):
    arrays = {"features": np.ones((4, 2), "f4"), "targets": np.zeros(4, "u1")}
    shards = isthmus.pack_shards(arrays, tmp_path / "set", 2)

    def fail(_):
        raise problem

    monkeypatch.setattr(shard_file, "open_plain", fail)
    with pytest.raises(ShardError) as caught:
        shards.read(0)
    told, _, advice = str(caught.value).rpartition("; ")
    assert str(tmp_path / "set") in told
    assert reason in told
    assert cure in advice
    assert ("fetch" in advice) == (cure == "again")


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "mount"),
        (errno.EACCES, "rights"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "dmesg"),
        (errno.ENAMETOOLONG, "shorter"),
        (errno.ENOTDIR, "folder"),
    ],
)
def test_what_cannot_be_written_is_told_with_its_own_cure(tmp_path, monkeypatch, number, cure):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError) as caught:
        files.write_text(tmp_path / "out", "x")
    assert os.strerror(number) in str(caught.value)
    assert cure in str(caught.value).rpartition("; ")[2]


def test_another_place_is_named_beside_the_cure():
    full = OSError(errno.ENOSPC, "x")
    assert cures.cure_of(full, elsewhere="go there") == "free space on that disk, or go there"
    assert cures.cure_of(full, "do without") == "free space on that disk"
    assert cures.cure_of(OSError(errno.ENOENT, "x"), elsewhere="go there") == "go there"


def test_settings_that_are_a_folder_say_so(tmp_path):
    with pytest.raises(SettingsError, match="Is a directory; it is a folder: name a file"):
        RunSettings.from_toml(tmp_path)
