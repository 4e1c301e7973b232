"""Arrays from the files in which they come: IDX, NPY, NPZ, HDF5, tables and folders of images.

What is opened here has its rows read when they are asked for: a file may be larger than memory. What is
packed in another, and must be unpacked first, goes to a file without a name.
"""

import gzip
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from isthmus.errors import ShardError
from isthmus.files import open_plain
from isthmus.shards.claims import check_claim
from isthmus.shards.images import open_images
from isthmus.shards.rows import PIECE_NBYTES, ColumnRows, DatasetRows, Rows, StoredRows, told_in_one_line
from isthmus.shards.tables import MEMORY_NBYTES, is_table, open_tables

IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
NPY = b"\x93NUMPY"


@contextmanager
def open_arrays(
    sources: dict[str, str | os.PathLike[str]], scratch: str | os.PathLike[str] | None = None
) -> Iterator[dict[str, Rows]]:
    """Give name -> Rows of `sources`, name -> FILE, FILE:MEMBER or FOLDER.

    Files: IDX (also gzipped), NPY, NPZ and HDF5, MATLAB's of version 7.3 among them, of which a member
    must be named where a file has several arrays; CSV and TSV, with columns for a member (see
    `open_tables`); folders of images, and FOLDER:class (see `open_images`).
    scratch: the folder for what has to be unpacked; it is gone when the block ends, however it does.
    Raises ShardError in one line: which file, what is wrong, how to mend it.
    """
    with ExitStack() as opened:
        found: dict[str, Rows] = {}
        together: dict[str, dict[str, str]] = {}
        for name, source in sources.items():
            path, member = _file_and_member(str(source))
            if is_table(path) or Path(path).is_dir():
                together.setdefault(path, {})[name] = member
            else:
                found[name] = _opened(path, member, scratch, opened)
        for path, members in together.items():
            with told_in_one_line(path):
                if Path(path).is_dir():
                    found |= open_images(path, members)
                else:
                    found |= open_tables(path, members, scratch, opened)
        yield {name: found[name] for name in sources}


def read_arrays(sources: dict[str, str | os.PathLike[str]]) -> dict[str, np.ndarray]:
    """Return name -> array, whole, of `sources` as `open_arrays` has them."""
    with open_arrays(sources) as found:
        return {name: rows[:] for name, rows in found.items()}


def scratch_for(folder: str | os.PathLike[str]) -> Path:
    """Return the folder that is there already of those in which `folder` is or will be."""
    path = Path(folder).absolute()
    return next(each for each in (path, *path.parents) if each.is_dir())


def _opened(path, member, scratch, opened):
    """Return the Rows of a file with arrays in it, closed when `opened` is."""
    with told_in_one_line(path):
        file = opened.enter_context(open_plain(path))
        start = file.read(8)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(file) as unpacked:
                return _from_idx(path, unpacked, file, lambda: _scratch(scratch, opened))
        if start[:4] == b"PK\x03\x04":
            return _from_npz(path, member, file, lambda: _scratch(scratch, opened))
        if start[: len(NPY)] == NPY:
            return _from_npy(path, file, _nbytes(file))
        if start == b"MATLAB 5":
            raise ShardError(f"{path}: is a MATLAB file of an old kind; save it with -v7.3")
        if _is_hdf5(file):
            return _from_hdf5(path, member, file, opened, columns_first=start == b"MATLAB 7")
        return _from_idx(path, file, file, None)


def _scratch(folder, opened):
    """Return a file without a name for what is unpacked: in memory while it is small."""
    return opened.enter_context(tempfile.SpooledTemporaryFile(MEMORY_NBYTES, dir=folder))


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


def _from_idx(path, content, stored, scratch):
    """Return the Rows of an IDX file: zeros, a type, a rank, then big-endian sizes and numbers.

    content: the file to read from; stored: the one on the disk. Where that is gzipped, `scratch` makes
    the file for its numbers.
    """
    start = content.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_DTYPES:
        raise ShardError(
            f"{path}: is not an IDX, NPY, NPZ or HDF5 file (it starts with "
            f"{start.hex(' ') or 'nothing'}); give one of these, .csv, .tsv or a folder of images"
        )
    dtype, rank = np.dtype(IDX_DTYPES[start[2]]), start[3]
    sizes = content.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ShardError(f"{path}: is cut: its header should have {4 + 4 * rank} bytes")
    shape = tuple(map(int, np.frombuffer(sizes, ">u4")))
    expected = math.prod(shape) * dtype.itemsize
    check_claim(path, expected, _nbytes(stored))
    if scratch is None:
        file, first = content, content.tell()
        found = _nbytes(stored) - first
    else:
        file, first = scratch(), 0
        found = _copied(content, file, expected + 1)
    if found != expected:
        few = "fewer" if found < expected else "more"
        raise ShardError(
            f"{path}: its header says {expected} bytes of numbers and it has {few}; "
            "the file is cut or damaged"
        )
    return StoredRows(path, file, first, shape, dtype)


def _from_npy(path, file, nbytes):
    """Return the Rows of an NPY file, open at its start, of `nbytes` in all."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ShardError(f"{path}: is NPY of a version for named fields; save plain numbers")
    header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else (np.lib.format.read_array_header_2_0)
    )
    shape, columns_first, dtype = header(file)
    if dtype.hasobject:
        raise ShardError(f"{path}: holds Python objects; write numbers into it")
    start = file.tell()
    if min(shape, default=0) < 0 or nbytes - start < math.prod(shape) * dtype.itemsize:
        raise ShardError(
            f"{path}: its header says {math.prod(shape) * dtype.itemsize} bytes of numbers and it has "
            f"{nbytes - start}; the file is cut or damaged"
        )
    if columns_first and math.prod(shape):
        return ColumnRows(file, start, shape, dtype)
    return StoredRows(path, file, start, shape, dtype)


def _from_npz(path, member, file, scratch):
    with np.load(file, allow_pickle=False) as archive:
        name = _member(path, member, archive.files)
        stored = {each.filename.removesuffix(".npy"): each for each in archive.zip.infolist()}[name]
        check_claim(path, stored.file_size, _nbytes(file))
        unpacked = scratch()
        with archive.zip.open(stored) as content:
            nbytes = _copied(content, unpacked, stored.file_size)
        unpacked.seek(0)
        return _from_npy(path, unpacked, nbytes)


def _from_hdf5(path, member, file, opened, columns_first=False):
    """Return the Rows of an array in an HDF5 file. columns_first: as MATLAB writes it, dimensions in
    reverse order and vectors as matrices."""
    import h5py
    import hdf5plugin  # noqa: F401  registers LZ4 and Zstandard with HDF5

    content = opened.enter_context(h5py.File(file, "r"))
    arrays = []
    content.visititems(
        lambda name, item: arrays.append(name) if isinstance(item, h5py.Dataset) else None
    )
    dataset = content[_member(path, member.strip("/"), arrays)]
    if dataset.is_virtual or dataset.external:
        raise ShardError(
            f"{path}: {dataset.name} keeps its numbers in another file; copy them into this one"
        )
    for shape in (dataset.shape or (), dataset.chunks or ()):
        check_claim(path, math.prod(shape) * dataset.dtype.itemsize, _nbytes(file))
    if not columns_first:
        return DatasetRows(path, dataset)
    vector = dataset.ndim == 2 and 1 in dataset.shape
    axis = int(np.argmax(dataset.shape)) if vector else dataset.ndim - 1
    return DatasetRows(path, dataset, axis, reverse=True, vector=vector)


def _copied(content, file, most):
    """Copy at most `most` bytes of `content` into `file`, a piece at a time; return how many."""
    left = most
    while left and (piece := content.read(min(left, PIECE_NBYTES))):
        file.write(piece)
        left -= len(piece)
    return most - left


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
