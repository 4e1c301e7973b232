"""Files that are whole or not there: written under a temporary name, synced, then renamed."""

import errno
import fcntl
import os
import re
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from isthmus.cures import explained
from isthmus.errors import OutputError

UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)
"""What a file system answers that cannot sync a folder; the file in it is whole all the same."""


@contextmanager
def replacing(path):
    """Give a temporary path beside `path`; it takes the place of `path` when the block ends well.

    A crash at any moment leaves either the old file or the new one, and perhaps the temporary file,
    which `remove_leftovers` finds. Raises OutputError if the folder cannot be written or the disk is
    full.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(partial) as descriptor:
            yield partial
            os.fsync(descriptor)  # the one that was open all along knows of every write that failed
            os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as problem:
        raise OutputError(
            f"{path}: cannot be written: {explained(problem, 'check the folder and its disk')}"
        ) from problem
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_bytes(path, *parts):
    """Write `parts`, one after the other, to `path`, whole or not at all."""
    with replacing(path) as partial, open(partial, "wb") as file:
        for part in parts:
            file.write(part)


def write_text(path, text):
    """Write `text` to `path`, whole or not at all."""
    write_bytes(path, text.encode())


def remove_leftovers(folder):
    """Remove the temporary files that killed writers left in `folder`; those being written stay."""
    for partial in Path(folder).glob("*.partial"):
        if re.fullmatch(r".+\.\d+\.partial", partial.name):
            with suppress(OSError):
                descriptor = os.open(partial, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who writes holds it
                    partial.unlink()
                finally:
                    os.close(descriptor)


def open_plain(path):
    """Open the file `path` to read its bytes; OSError where it is a folder, a pipe or a device."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file")
    return file


def check_folder(path, cure):
    """Make the folder `path`; raise OutputError, which ends with `cure`, if it cannot be written."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as problem:
        raise OutputError(f"{path}: cannot be written: {explained(problem, elsewhere=cure)}") from None


@contextmanager
def _held(partial):
    """Make the file `partial`, give a descriptor of it, and hold a lock on it where there are locks."""
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _sync_folder(path):
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as problem:
        if problem.errno not in UNSYNCED:
            raise
