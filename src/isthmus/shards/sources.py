"""Arrays from the files in which they come: IDX, NPZ and HDF5."""

import gzip
import math
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from isthmus.cures import explained
from isthmus.errors import ShardError
from isthmus.files import open_plain
from isthmus.shards.claims import check_claim

IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_arrays(sources):
    """Return name -> array from `sources`, name -> FILE or FILE:MEMBER.

    Files: IDX (also gzipped), NPZ and HDF5, MATLAB's of version 7.3 among them; a member must be named
    where a file has several arrays.
    Raises ShardError in one line: which file, what is wrong, how to mend it.
    """
    return {name: _read(str(source)) for name, source in sources.items()}


def _read(source):
    path, member = _file_and_member(source)
    with _told_in_one_line(path), open_plain(path) as file:
        start = file.read(8)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(file) as unpacked:
                return _from_idx(path, unpacked, file)
        if start[:4] == b"PK\x03\x04":
            return _from_npz(path, member, file)
        if start == b"MATLAB 5":
            raise ShardError(f"{path}: is a MATLAB file of an old kind; save it with -v7.3")
        if _is_hdf5(file):
            return _from_hdf5(path, member, file, columns_first=start == b"MATLAB 7")
        return _from_idx(path, file, file)


def _file_and_member(source):
    """Return the file and the array that FILE or FILE:MEMBER means, whatever colons are in them."""
    if Path(source).exists():
        return source, ""
    splits = [
        (source[:place], source[place + 1 :]) for place, letter in enumerate(source) if letter == ":"
    ]
    return next(
        (split for split in reversed(splits) if Path(split[0]).exists()),
        splits[-1] if splits else (source, ""),
    )


def _is_hdf5(file):
    """Whether HDF5 begins in the file: at its start, or at 512, 1024, ... after another's header."""
    place, size = 0, _nbytes(file)
    try:
        while place < size:
            file.seek(place)
            if file.read(8) == b"\x89HDF\r\n\x1a\n":
                return True
            place = 2 * place or 512
        return False
    finally:
        file.seek(0)


@contextmanager
def _told_in_one_line(path):
    """Turn what libraries raise for a bad file, which can be anything, into a ShardError."""
    try:
        yield
    except ShardError:
        raise
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file; check the name and the folder you are in") from None
    except IsADirectoryError:
        raise ShardError(f"{path}: is a folder; name a file in it") from None
    except MemoryError:
        raise ShardError(f"{path}: does not fit in this machine's memory; pack it in parts") from None
    except Exception as problem:
        if "allow_pickle" in str(problem):
            raise ShardError(f"{path}: holds Python objects; write numbers into it") from None
        otherwise = "it is cut, damaged or not the kind of file that it seems"
        raise ShardError(f"{path}: cannot be read: {explained(problem, otherwise)}") from None


def _from_idx(path, content, stored):
    """Return the array of an IDX file: zeros, a type, a rank, then big-endian sizes and numbers.

    content: the file to read from; stored: the one on the disk, which may be gzipped.
    """
    start = content.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_DTYPES:
        raise ShardError(
            f"{path}: is not an IDX, NPZ or HDF5 file (it starts with "
            f"{start.hex(' ') or 'nothing'}); give one of these"
        )
    dtype, rank = np.dtype(IDX_DTYPES[start[2]]), start[3]
    sizes = content.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ShardError(f"{path}: is cut: its header should have {4 + 4 * rank} bytes")
    shape = tuple(map(int, np.frombuffer(sizes, ">u4")))
    expected = math.prod(shape) * dtype.itemsize
    check_claim(path, expected, _nbytes(stored))
    numbers = content.read(expected + 1)
    if len(numbers) != expected:
        few = "fewer" if len(numbers) < expected else "more"
        raise ShardError(
            f"{path}: its header says {expected} bytes of numbers and it has {few}; "
            "the file is cut or damaged"
        )
    return np.frombuffer(numbers, dtype).reshape(shape)


def _from_npz(path, member, file):
    with np.load(file, allow_pickle=False) as archive:
        name = _member(path, member, archive.files)
        stored = {each.filename.removesuffix(".npy"): each for each in archive.zip.infolist()}[name]
        check_claim(path, stored.file_size, _nbytes(file))
        return archive[name]


def _from_hdf5(path, member, file, columns_first=False):
    """Return an array of an HDF5 file. columns_first: as MATLAB writes it, dimensions in reverse order
    and vectors as matrices."""
    import h5py
    import hdf5plugin  # noqa: F401  registers LZ4 and Zstandard with HDF5

    with h5py.File(file, "r") as opened:
        arrays = []
        opened.visititems(
            lambda name, item: arrays.append(name) if isinstance(item, h5py.Dataset) else None
        )
        dataset = opened[_member(path, member.strip("/"), arrays)]
        if dataset.is_virtual or dataset.external:
            raise ShardError(
                f"{path}: {dataset.name} keeps its numbers in another file; copy them into this one"
            )
        for shape in (dataset.shape or (), dataset.chunks or ()):
            check_claim(path, math.prod(shape) * dataset.dtype.itemsize, _nbytes(file))
        values = dataset[()]
        if not columns_first:
            return values
        return values.ravel() if values.ndim == 2 and 1 in values.shape else values.T


def _nbytes(file):
    return os.fstat(file.fileno()).st_size


def _member(path, member, names):
    """Return the array of a file to take: the one that is asked for, or the only one."""
    if not member and len(names) == 1:
        return names[0]
    if member not in names:
        asked = f"has no array {member!r}" if member else "has several arrays"
        raise ShardError(f"{path}: {asked}; write {path}:NAME with one of {', '.join(names)}")
    return member
