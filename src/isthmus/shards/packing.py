"""From arrays, or from the files in which they come, to a folder of shards."""

import gzip
import hashlib
import io
import itertools
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from isthmus.errors import ShardError
from isthmus.files import write_text
from isthmus.shards.manifest import NAME, NUMBERS, Manifest
from isthmus.shards.shard_file import ShardSet, write_shard
from isthmus.vectors import part_bounds

COMPRESSIONS = ("lz4", "zstd", "gzip", "none")
IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def pack_shards(arrays, folder, shards=64, compression="lz4", overwrite=False):
    """Pack `arrays`, name -> array with one row a sample, into `shards` HDF5 files in `folder`.

    Each file is written under a temporary name and renamed, chunked, compressed and checksummed;
    the manifest comes last, so that a folder with a manifest is whole. The same arrays give the same
    bytes. compression: "lz4", "zstd", "gzip" or "none". Returns the ShardSet. Raises ShardError for
    arrays that do not fit each other, and for a folder that holds another packed set unless
    `overwrite`; OutputError if it cannot be written.
    """
    folder = Path(folder)
    arrays = {name: _checked(name, values) for name, values in arrays.items()}
    if not arrays:
        raise ShardError("there is nothing to pack: give at least one array")
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ShardError(f"arrays must have one row a sample, as many as each other: {told}; give "
                         "arrays of the same samples")
    samples = next(iter(lengths.values()))
    if compression not in COMPRESSIONS:
        raise ShardError(f"compression must be one of {', '.join(COMPRESSIONS)}, "
                         f"not {compression!r}")
    if not 1 <= shards <= max(samples, 1):
        raise ShardError(f"{samples} samples cannot make {shards} shards; ask for 1 to {samples}")
    if (folder / NAME).exists():
        if not overwrite:
            raise ShardError(f"{folder}: already holds a packed set; choose another folder, or "
                             "overwrite it with --overwrite")
        (folder / NAME).unlink()  # from here on the folder is not a set until the new one is whole
        for old in folder.glob("shard-*.h5"):
            old.unlink()
    entries = []
    bounds = part_bounds(samples, shards)
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        part = {name: values[first:last] for name, values in arrays.items()}
        file = f"shard-{number:05d}.h5"
        entries.append({
            "file": file, "samples": last - first,
            "sha256": write_shard(folder / file, part, compression),
            "arrays_sha256": {name: hashlib.sha256(np.ascontiguousarray(values)).hexdigest()
                              for name, values in part.items()}})
    manifest = Manifest.of({"arrays": {
        name: {"shape": values.shape[1:], "dtype": values.dtype.str}
        for name, values in arrays.items()}, "shards": entries}, folder / NAME)
    write_text(folder / NAME, manifest.model_dump_json(indent=1) + "\n")
    return ShardSet(folder, manifest)


def _checked(name, values):
    """Return `values` as a little-endian array of numbers with rows."""
    values = np.asarray(values)
    if not str(name).isidentifier():
        raise ShardError(f"array {name!r}: a name is letters, digits and underscores")
    if values.dtype.kind not in NUMBERS:
        raise ShardError(f"array {name!r} is of dtype {values.dtype}; shards hold numbers: integers, "
                         "floats or booleans")
    if values.ndim == 0:
        raise ShardError(f"array {name!r} is a single number; give one row a sample")
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def read_arrays(sources):
    """Return name -> array from `sources`, name -> FILE or FILE:MEMBER.

    Files: IDX (also gzipped), NPZ and HDF5; a member must be named where a file has several arrays.
    Raises ShardError in one line: which file, what is wrong, how to mend it.
    """
    return {name: _read(str(source)) for name, source in sources.items()}


def _read(source):
    path, _, member = source, "", ""
    if not Path(source).exists() and ":" in source:
        path, _, member = source.rpartition(":")
    with _told_in_one_line(path):
        with open(path, "rb") as file:
            start = file.read(8)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path, "rb") as file:
                return _from_idx(path, file.read())
        if start[:4] == b"PK\x03\x04":
            return _from_npz(path, member)
        if start == b"\x89HDF\r\n\x1a\n":
            return _from_hdf5(path, member)
        return _from_idx(path, Path(path).read_bytes())


@contextmanager
def _told_in_one_line(path):
    """Turn what libraries raise for a bad file into a ShardError."""
    import zipfile
    import zlib
    try:
        yield
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file; check the name and the folder you are in") from None
    except IsADirectoryError:
        raise ShardError(f"{path}: is a folder; name a file in it") from None
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile,
            RuntimeError) as problem:
        why = str(problem).splitlines()[0]
        if "allow_pickle" in why:
            raise ShardError(f"{path}: holds Python objects; write numbers into it") from None
        raise ShardError(f"{path}: cannot be read ({why}); it is cut, damaged or not the kind of file "
                         "that it seems") from None


def _from_idx(path, content):
    """Return the array of an IDX file: zeros, a type, a rank, then big-endian sizes and numbers."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_DTYPES:
        raise ShardError(f"{path}: is not an IDX, NPZ or HDF5 file (it starts with "
                         f"{content[:4].hex(' ') or 'nothing'}); give one of these")
    dtype, rank = np.dtype(IDX_DTYPES[content[2]]), content[3]
    if len(content) < 4 + 4 * rank:
        raise ShardError(f"{path}: is cut: its header should have {4 + 4 * rank} bytes")
    shape = tuple(map(int, np.frombuffer(content, ">u4", rank, 4)))
    expected = 4 + 4 * rank + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ShardError(f"{path}: has {len(content)} bytes, its header says {expected}; "
                         "the file is cut or damaged")
    return np.frombuffer(content, dtype, offset=4 + 4 * rank).reshape(shape)


def _from_npz(path, member):
    with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as archive:
        return archive[_member(path, member, archive.files)]


def _from_hdf5(path, member):
    import h5py
    import hdf5plugin  # noqa: F401  registers LZ4 and Zstandard with HDF5
    with h5py.File(path, "r") as file:
        arrays = []
        file.visititems(lambda name, item: arrays.append(name)
                        if isinstance(item, h5py.Dataset) else None)
        dataset = file[_member(path, member, arrays)]
        if dataset.is_virtual or dataset.external:
            raise ShardError(f"{path}: {dataset.name} keeps its numbers in another file; "
                             "copy them into this one")
        return dataset[()]


def _member(path, member, names):
    """Return the array of a file to take: the one that is asked for, or the only one."""
    if not member and len(names) == 1:
        return names[0]
    if member not in names:
        asked = f"has no array {member!r}" if member else "has several arrays"
        raise ShardError(f"{path}: {asked}; write {path}:NAME with one of {', '.join(names)}")
    return member
