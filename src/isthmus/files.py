"""Write a file whole or not at all: under a temporary name, synced, then renamed."""

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from isthmus.errors import OutputError


@contextmanager
def replacing(path):
    """Give a temporary path beside `path`; it takes the place of `path` when the block ends well.

    A crash at any moment leaves either the old file or the new one. Raises OutputError if the
    folder cannot be written or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as problem:
        raise OutputError(f"{path}: cannot be written: {problem.strerror or problem}; "
                          "check the folder's rights and free space") from problem
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_folder(path, cure):
    """Make the folder `path`; raise OutputError, which ends with `cure`, if it cannot be written."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as problem:
        raise OutputError(f"{path}: cannot be written: {problem.strerror}; {cure}") from None


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
