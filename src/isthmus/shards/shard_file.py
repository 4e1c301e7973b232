"""Shards on disk: HDF5 files that say when they are broken, and where."""

import hashlib
from pathlib import Path

import numpy as np

from isthmus.errors import ShardError
from isthmus.files import replacing
from isthmus.shards.manifest import Manifest

CHUNK_NBYTES = 256 * 1024
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32004: "lz4", 32015: "zstd", 32001: "blosc"}
"""HDF5 filters that a shard may have; a file that asks for another is refused."""


class ShardSet:
    """A folder of shards, as its manifest tells it.

    names, samples, nbytes: tuples with one entry a shard: file name, samples, and bytes of the
    decoded arrays (what a rank holds in memory, and what travels). arrays: name -> (shape of a
    sample, dtype), in the order in which batches give them.
    """

    def __init__(self, folder, manifest):
        self.folder, self.manifest = Path(folder), manifest

    @classmethod
    def open(cls, folder):
        """Open a packed folder; ShardError if it has no manifest or a wrong one."""
        return cls(folder, Manifest.read(folder))

    @property
    def names(self):
        return tuple(shard.file for shard in self.manifest.shards)

    @property
    def samples(self):
        return tuple(shard.samples for shard in self.manifest.shards)

    @property
    def nbytes(self):
        sample = sum(array.sample_nbytes for array in self.manifest.arrays.values())
        return tuple(shard.samples * sample for shard in self.manifest.shards)

    @property
    def arrays(self):
        return {name: (array.shape, np.dtype(array.dtype))
                for name, array in self.manifest.arrays.items()}

    def verify(self):
        """Check every file's SHA-256; ShardError names the file, dataset and chunk that is broken."""
        for number, shard in enumerate(self.manifest.shards):
            if self.file_digest(number) != shard.sha256:
                for name in self.arrays:
                    for _ in self.pieces(number, name):
                        pass
                raise ShardError(f"{self.folder / shard.file}: its SHA-256 is not the manifest's, "
                                 "though every chunk reads well: the file's structure was changed; "
                                 "pack the data again, or fetch the file again")

    def file_digest(self, number):
        """Return the SHA-256 of shard `number`'s file, as hexadecimal digits."""
        path = self.folder / self.names[number]
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as problem:
            raise ShardError(f"{path}: cannot be read: {problem.strerror}; fetch the file again, or "
                             "pack the data again") from None

    def read(self, number):
        """Return name -> array of shard `number`, checked against the manifest."""
        return {name: np.concatenate([np.empty((0, *shape), dtype), *self.pieces(number, name)])
                for name, (shape, dtype) in self.arrays.items()}

    def pieces(self, number, name, piece_nbytes=4 << 20):
        """Yield the rows of array `name` of shard `number`, at most `piece_nbytes` at a time.

        After the last piece the whole is compared with the manifest's digest. Raises ShardError
        that names file, dataset and chunk.
        """
        import h5py
        shard, array = self.manifest.shards[number], self.manifest.arrays[name]
        path = self.folder / shard.file
        digest = hashlib.sha256()
        try:
            file = h5py.File(path, "r")
        except OSError as problem:
            raise ShardError(f"{path}: cannot be opened as HDF5 ({_first_line(problem)}); it is "
                             "missing, cut or damaged: fetch it again, or pack again") from None
        with file:
            try:
                dataset = _dataset(file, path, name, (shard.samples, *array.shape), array.dtype)
            except (OSError, RuntimeError, KeyError, ValueError, TypeError) as problem:
                raise ShardError(f"{path}: dataset {name!r} is damaged where HDF5 describes it "
                                 f"({_first_line(problem)}); fetch it again, or pack again") from None
            rows = rows_of_piece(array, piece_nbytes)
            for first in range(0, shard.samples, rows):
                last = min(first + rows, shard.samples)
                piece = _rows(dataset, path, name, first, last)
                digest.update(piece.data if piece.size else b"")
                yield piece
        if digest.hexdigest() != shard.arrays_sha256[name]:
            raise ShardError(f"{path}: dataset {name!r} holds other numbers than the manifest says; "
                             "fetch the file again, or pack again")


def rows_of_piece(array, piece_nbytes):
    """Return how many samples of `array` make a piece of at most `piece_nbytes` (at least one)."""
    return max(1, piece_nbytes // max(array.sample_nbytes, 1))


def write_shard(path, arrays, compression):
    """Write one shard file whole or not at all; return its SHA-256. The same arrays, the same bytes."""
    import h5py
    with replacing(path) as partial:
        with h5py.File(partial, "w", libver=("v110", "v110")) as file:
            for name, values in arrays.items():
                layout = {}
                if values.size:  # HDF5 has no chunks of nothing
                    rows = max(1, CHUNK_NBYTES // (values.nbytes // len(values)))
                    layout = {"chunks": (min(rows, len(values)), *values.shape[1:]),
                              "fletcher32": True, **_filters(compression)}
                file.create_dataset(name, data=values, track_times=False, **layout)
        with open(partial, "rb") as written:
            return hashlib.file_digest(written, "sha256").hexdigest()


def _filters(compression):
    """Return what h5py wants for a compression by name."""
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip", "shuffle": True}
    import hdf5plugin
    return dict(hdf5plugin.LZ4() if compression == "lz4" else hdf5plugin.Zstd(clevel=9))


def _dataset(file, path, name, shape, dtype):
    """Return the dataset `name` of `file` if it is plain and is what the manifest says."""
    import h5py
    def refuse(why):
        raise ShardError(f"{path}: dataset {name!r} {why}; pack the data again")

    link = file.get(name, getlink=True) if name in file else None
    if link is None:
        refuse("is missing")
    if not isinstance(link, h5py.HardLink):
        refuse("is a link to another place")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        refuse("is not an array")
    if dataset.is_virtual or dataset.external:
        refuse("keeps its numbers in another file")
    if dataset.shape != shape or dataset.dtype != np.dtype(dtype):
        refuse(f"is {dataset.dtype} {dataset.shape}, the manifest says {np.dtype(dtype)} {shape}")
    known = _load_filters(dataset, FILTERS)
    if known is not None:
        refuse(f"needs HDF5 filter {known}, which is not on the list")
    return dataset


def _load_filters(dataset, allowed):
    """Make the dataset's filters available; return the number of one that is not `allowed`."""
    creation = dataset.id.get_create_plist()
    for number in range(creation.get_nfilters()):
        code = creation.get_filter(number)[0]
        if code not in allowed:
            return code
        if code > 255:
            import hdf5plugin  # noqa: F401  registers LZ4 and Zstandard with HDF5
    return None


def _rows(dataset, path, name, first, last):
    """Return rows `first` to `last`; on a bad checksum find and name the chunk."""
    try:
        return dataset[first:last]
    except (OSError, RuntimeError):
        step = (dataset.chunks or dataset.shape)[0]
        for start in range(first - first % step, last, step):
            try:
                dataset[start:min(start + step, len(dataset))]
            except (OSError, RuntimeError) as problem:
                raise ShardError(
                    f"{path}: dataset {name!r}, chunk {start // step} (samples {start} to "
                    f"{min(start + step, len(dataset)) - 1}) is damaged ({_first_line(problem)}); "
                    "fetch the file again, or pack again") from None
        raise ShardError(f"{path}: dataset {name!r} cannot be read; fetch the file again") from None


def _first_line(problem):
    return str(problem).splitlines()[0][:120]
