"""HDF5: the filters that shards are packed with."""

from isthmus.checks.findings import failed, passed
from isthmus.errors import ShardError

NEEDED = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32004: "lz4", 32015: "zstd"}


def filters():
    """Return whether every filter that `pack` may use is there."""
    cure = "pip install --upgrade --force-reinstall h5py hdf5plugin"
    try:
        import h5py
        import hdf5plugin  # noqa: F401  registers LZ4 and Zstandard with HDF5
    except Exception as problem:
        return failed(
            "HDF5 filters", f"cannot be loaded: {str(problem).splitlines()[0]}", cure, ShardError
        )
    missing = [name for code, name in NEEDED.items() if not h5py.h5z.filter_avail(code)]
    if missing:
        return failed("HDF5 filters", f"{', '.join(missing)} cannot be used", cure, ShardError)
    return passed("HDF5 filters", f"{', '.join(NEEDED.values())}; HDF5 {h5py.version.hdf5_version}")
