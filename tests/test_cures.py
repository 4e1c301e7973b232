"""An OSError's number decides the cure, wherever it comes up: shards, checkpoints, settings, outputs."""

import errno
import os

import h5py
import numpy as np
import pytest

import isthmus
from isthmus import cures, files
from isthmus.errors import OutputError, SettingsError, ShardError
from isthmus.runs.settings import RunSettings

NO_LOCKS = "HDF5_USE_FILE_LOCKING=FALSE"


def locked(number):
    """Return the error of HDF5 where the file system answers a lock with `number`."""
    return OSError(number, "Unable to synchronously open file (unable to lock file, errno = "
                   f"{number}, error message = '{os.strerror(number)}')")


@pytest.mark.parametrize(("problem", "reason", "cure"), [
    (locked(errno.ENOLCK), "cannot be locked: No locks available", NO_LOCKS),
    (locked(errno.EOPNOTSUPP), "cannot be locked: Operation not supported", NO_LOCKS),
    (locked(524), "cannot be locked: Operation not supported", NO_LOCKS),
    (locked(errno.EAGAIN), "cannot be locked", "another program holds it"),
    (OSError(errno.EACCES, "x"), "Permission denied", "rights"),
    (OSError(errno.EIO, "x"), "Input/output error", "dmesg"),
    (OSError(errno.EMFILE, "x"), "Too many open files", "ulimit -n"),
    (OSError(errno.ESTALE, "x"), "Stale file handle", "mount"),
    (OSError("file read failed: errno = 5, error message = 'Input/output error'"), "Input/output error",
     "dmesg"),
    (OSError("truncated file: eof = 300"), "truncated file: eof = 300", "fetch"),
    (OSError("file read failed: errno = 0, error message = 'Success'"), "file read failed", "fetch"),
])
def test_a_shard_is_called_damaged_only_where_the_system_names_no_cause(
        tmp_path, monkeypatch, problem, reason, cure):
    arrays = {"features": np.ones((4, 2), "f4"), "targets": np.zeros(4, "u1")}
    shards = isthmus.pack_shards(arrays, tmp_path / "set", 2)

    def fail(*_, **__):
        raise problem
    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(ShardError) as caught:
        shards.read(0)
    told, _, advice = str(caught.value).rpartition("; ")
    assert str(tmp_path / "set") in told
    assert reason in told
    assert cure in advice
    assert ("damaged" in advice) == ("fetch" in cure)


@pytest.mark.parametrize(("number", "cure"), [
    (errno.ENOSPC, "free space"), (errno.EDQUOT, "quota"), (errno.EROFS, "mount"),
    (errno.EACCES, "rights"), (errno.EFBIG, "ulimit -f"), (errno.EIO, "dmesg"),
    (errno.ENAMETOOLONG, "shorter"), (errno.ENOTDIR, "folder")])
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
