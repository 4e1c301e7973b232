"""From arrays to a folder of shards, in which a whole set stands at every moment once there was one."""

import fcntl
import hashlib
import itertools
import os
import re
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from isthmus.cures import explained
from isthmus.errors import OutputError, ShardError
from isthmus.files import check_folder, open_plain, remove_leftovers
from isthmus.quantities import whole
from isthmus.shards.manifest import NAME, NUMBERS, Manifest
from isthmus.shards.shard_file import ShardSet, write_shard
from isthmus.vectors import part_bounds

SHARD = re.compile(r"shard-\d{5,}(\.new)*\.h5")
START = b"\x89HDF\r\n\x1a\n\x03"  # of HDF5 files in the format of version 1.10
COMPRESSIONS = ("lz4", "zstd", "gzip", "none")


def pack_shards(
    arrays: Mapping[str, npt.ArrayLike],
    folder: str | os.PathLike[str],
    shards: int = 64,
    compression: str = "lz4",
    overwrite: bool = False,
) -> ShardSet:
    """Pack `arrays`, name -> array with one row a sample, into `shards` HDF5 files in `folder`.

    Each file is written under a temporary name and renamed, chunked, compressed and checksummed;
    the manifest comes last, so that a folder with a manifest is whole. The same arrays give the same
    bytes. compression: "lz4", "zstd", "gzip" or "none". overwrite: take the place of another packed
    set, which stands until the new one does. What a pack that was killed left in `folder` is removed.
    Returns the ShardSet. Raises ShardError for arrays that do not fit each other, and for a folder that
    holds another packed set unless `overwrite`; OutputError if it cannot be written, and then all is as
    it was.
    """
    folder, shards = Path(folder), whole("shards", shards)
    columns = {name: _checked(name, values) for name, values in arrays.items()}
    if not columns:
        raise ShardError("there is nothing to pack: give at least one array")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ShardError(
            f"arrays must have one row a sample, as many as each other: {told}; give "
            "arrays of the same samples"
        )
    samples = next(iter(lengths.values()))
    if compression not in COMPRESSIONS:
        raise ShardError(f"compression must be one of {', '.join(COMPRESSIONS)}, not {compression!r}")
    if not 1 <= shards <= max(samples, 1):
        raise ShardError(f"{samples} samples cannot make {shards} shards; ask for 1 to {samples}")
    with _new_set(folder, shards, overwrite) as names:
        entries = []
        for file, (first, last) in zip(names, itertools.pairwise(part_bounds(samples, shards))):
            part = {name: values[first:last] for name, values in columns.items()}
            entries.append(
                {
                    "file": file,
                    "samples": last - first,
                    "sha256": write_shard(folder / file, part, compression),
                    "arrays_sha256": {name: _sha256(values) for name, values in part.items()},
                }
            )
        Manifest.of(
            {
                "arrays": {
                    name: {"shape": values.shape[1:], "dtype": values.dtype.str}
                    for name, values in columns.items()
                },
                "shards": entries,
            },
            folder / NAME,
        ).write(folder)
    return ShardSet.open(folder)


@contextmanager
def _new_set(folder, shards, overwrite):
    """Give names for the files of a new set, which the block writes, and then their manifest.

    No file of the set that stands has one of these names: it stands until the new one does. Then its
    files are removed and the new ones get their plain names.
    """
    check_folder(folder, "choose another folder")
    with _alone(folder):
        standing = _standing(folder)
        if standing is not None and not overwrite:
            raise ShardError(
                f"{folder}: already holds a packed set; choose another folder, or "
                "overwrite it with --overwrite"
            )
        standing = standing or set()
        remove_leftovers(folder)
        _remove(folder, _shards_in(folder) - standing)
        names = next(
            names for times in itertools.count() if not standing & set(names := _names(shards, times))
        )
        strange = next((name for name in names if os.path.lexists(folder / name)), None)
        if strange and not overwrite:
            raise ShardError(
                f"{folder / strange}: is there, and is of no packed set; choose another "
                "folder, or overwrite it with --overwrite"
            )
        try:
            yield names
        finally:  # also where something fails before or after the new manifest is there
            _remove(folder, standing.union(names) - (_standing(folder) or set()))
        _use_plain_names(folder)


def _use_plain_names(folder):
    """Call the files of the set that stands as if there had been no other; or leave it as it is.

    Each has two names until a manifest with the plain ones is there: at every moment a set stands.
    """
    manifest = Manifest.read(folder)
    names = [shard.file for shard in manifest.shards]
    pairs, linked = list(zip(names, _names(len(names), 0))), []
    if names == [plain for _, plain in pairs]:
        return
    with suppress(OSError, OutputError):  # a file system without hard links
        for name, plain in pairs:
            os.link(folder / name, folder / plain)
            linked.append(plain)
        manifest.model_copy(
            update={
                "shards": tuple(
                    shard.model_copy(update={"file": plain})
                    for shard, (_, plain) in zip(manifest.shards, pairs)
                )
            }
        ).write(folder)
    _remove(folder, {*names, *linked} - _standing(folder))


@contextmanager
def _alone(folder):
    """Keep others from packing into `folder` meanwhile, where the file system has locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as problem:
        raise OutputError(
            f"{folder}: cannot be listed: {explained(problem, 'choose another folder')}"
        ) from None
    try:
        with suppress(OSError):
            _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor, folder):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"{folder}: another process packs into this folder; wait until it ends, or "
            "choose another folder"
        ) from None


def _standing(folder):
    """Return the names of the files of the set in `folder`; None where there is no manifest.

    Where the manifest is damaged they are all that look like shards.
    """
    try:
        return {shard.file for shard in Manifest.read(folder).shards}
    except ShardError:
        if not os.path.lexists(folder / NAME):
            return None
        return _shards_in(folder)


def _shards_in(folder):
    return {path.name for path in folder.iterdir() if _is_shard(path)}


def _names(shards, times):
    return [f"shard-{number:05d}{'.new' * times}.h5" for number in range(shards)]


def _is_shard(path):
    """Whether `path` has the name and the first bytes of a shard that `pack_shards` has written."""
    if not SHARD.fullmatch(path.name):
        return False
    try:
        with open_plain(path) as file:
            return file.read(len(START)) == START
    except OSError:
        return False


def _remove(folder, names):
    for name in names:
        with suppress(OSError):
            (folder / name).unlink()


def _sha256(values):
    return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


def _checked(name, values):
    """Return `values` as a little-endian array of numbers with rows."""
    values = np.asarray(values)
    if not str(name).isidentifier():
        raise ShardError(f"array {name!r}: a name is letters, digits and underscores")
    if values.dtype.kind not in NUMBERS:
        raise ShardError(
            f"array {name!r} is of dtype {values.dtype}; shards hold numbers: integers, "
            "floats or booleans"
        )
    if values.ndim == 0:
        raise ShardError(f"array {name!r} is a single number; give one row a sample")
    return values.astype(values.dtype.newbyteorder("<"), copy=False)
