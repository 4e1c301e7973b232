"""HDF5: the filters that shards are packed with, and locks on files."""

import errno
import fcntl
import os
from pathlib import Path

from isthmus.errors import ShardError
from isthmus.runs.check.findings import failed, passed

NEEDED = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32004: "lz4", 32015: "zstd"}


def filters():
    """Return whether every filter that `pack` may use is there."""
    cure = "pip install --upgrade --force-reinstall h5py hdf5plugin"
    try:
        import h5py
        import hdf5plugin  # noqa: F401  registers LZ4 and Zstandard with HDF5
    except Exception as problem:
        return failed("HDF5 filters", f"cannot be loaded: {str(problem).splitlines()[0]}", cure,
                      ShardError)
    missing = [name for code, name in NEEDED.items() if not h5py.h5z.filter_avail(code)]
    if missing:
        return failed("HDF5 filters", f"{', '.join(missing)} cannot be used", cure, ShardError)
    return passed("HDF5 filters", f"{', '.join(NEEDED.values())}; HDF5 {h5py.version.hdf5_version}")


def locking(folder):
    """Return whether HDF5 can lock the files in `folder` to read them."""
    setting = os.environ.get("HDF5_USE_FILE_LOCKING", "").upper()
    if setting in ("FALSE", "0"):
        return passed("file locks", "off, by HDF5_USE_FILE_LOCKING")
    path = next(iter(sorted(Path(folder).glob("*.h5"))), Path(folder))
    if not path.exists():
        path = Path()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as problem:
        return failed("file locks", f"{path}: {problem.strerror}", "mend the file's rights", ShardError)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return failed("file locks", f"{path}: another program holds it to write", "wait until that "
                          "program ends", ShardError)
        if setting == "BEST_EFFORT":
            return passed("file locks", f"{path.parent} has none; HDF5 goes on without")
        return failed("file locks", f"{path}: its file system has none ({problem.strerror})",
                      "export HDF5_USE_FILE_LOCKING=BEST_EFFORT", ShardError)
    finally:
        os.close(descriptor)
    return passed("file locks", "work")
