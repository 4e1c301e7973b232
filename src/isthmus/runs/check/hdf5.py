"""HDF5: the filters that shards are packed with, and locks on files."""

import fcntl
import os
from pathlib import Path

from isthmus.cures import NO_LOCKS, cure_of, number_of, reason_of
from isthmus.errors import ShardError
from isthmus.runs.check.findings import failed, passed, warned
from isthmus.shards.shard_file import FETCH

SETTING = "HDF5_USE_FILE_LOCKING"
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
    """Return whether HDF5 can lock the shards in `folder`, or files like them, to read them."""
    if os.environ.get(SETTING) in ("FALSE", "0"):
        return passed("file locks", f"off, by {SETTING}")
    path = next(iter(sorted(Path(folder).glob("*.h5"))), None)
    if path is not None:
        return _hdf5_opens(path)
    path = Path(folder) if Path(folder).exists() else Path()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as problem:
        return failed("file locks", f"{path}: {reason_of(problem)}", cure_of(problem, "name another "
                      "folder"), ShardError)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as problem:
        return warned("file locks", f"{path.resolve()}: a file in it may not be locked: "
                      f"{reason_of(problem)}", cure_of(problem, NO_LOCKS))
    finally:
        os.close(descriptor)
    return passed("file locks", "work")


def _hdf5_opens(path):
    """Return whether HDF5 itself, as a run would, can open and lock the file; not what is in it."""
    try:
        import h5py
        h5py.File(path, "r").close()
    except ImportError:
        return passed("file locks", "not looked at: HDF5 cannot be loaded")
    except OSError as problem:
        if number_of(problem) is not None:
            return failed("file locks", f"{path}: {reason_of(problem)}", cure_of(problem, FETCH),
                          ShardError)
    return passed("file locks", "work")
