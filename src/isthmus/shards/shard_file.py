"""Shards on disk: HDF5 files that are read only as what the manifest says they are."""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from isthmus.cures import explained
from isthmus.errors import ShardError
from isthmus.files import open_plain, write_bytes
from isthmus.hdf5_files import hdf5_bytes
from isthmus.shards.claims import check_claim
from isthmus.shards.manifest import Array, Manifest, Shard

if TYPE_CHECKING:  # read by whoever opens a file
    import h5py

CHUNK_NBYTES = 256 * 1024
PIECE_NBYTES = 4 << 20
"""Bytes that are read, or sent, at a time: a rank that receives holds its samples and at most two."""
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32004: "lz4", 32015: "zstd", 32001: "blosc"}
"""HDF5 filters that a shard may have; a file that asks for another is refused."""


class ShardSet:
    """A folder of shards, as its manifest tells it.

    names, samples, nbytes: tuples with one entry a shard: file name, samples, and bytes of the
    decoded arrays (what a rank holds in memory, and what travels). arrays: name -> (shape of a
    sample, dtype), in the order in which batches give them.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Manifest):
        self.folder, self.manifest = Path(folder), manifest

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open a packed folder; ShardError if it has no manifest or a wrong one."""
        return cls(folder, Manifest.read(folder))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(shard.file for shard in self.manifest.shards)

    @property
    def samples(self) -> tuple[int, ...]:
        return tuple(shard.samples for shard in self.manifest.shards)

    @property
    def nbytes(self) -> tuple[int, ...]:
        sample = sum(array.sample_nbytes for array in self.manifest.arrays.values())
        return tuple(shard.samples * sample for shard in self.manifest.shards)

    @property
    def packed_nbytes(self) -> int:
        """Bytes of the files."""
        return sum((self.folder / name).stat().st_size for name in self.names)

    @property
    def digest(self) -> str:
        """SHA-256 of all samples, as the manifest tells it."""
        return self.manifest.digest

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        return {
            name: (array.shape, np.dtype(array.dtype)) for name, array in self.manifest.arrays.items()
        }

    def verify(self) -> None:
        """Check every file's SHA-256; ShardError names the file that is missing, cut or changed."""
        for number in range(len(self.manifest.shards)):
            self._whole(number).close()

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Return name -> array of shard `number`, checked against the manifest."""
        with self.opened(number) as shard:
            return {
                name: np.concatenate([np.empty((0, *shape), dtype), *shard.pieces(name)])
                for name, (shape, dtype) in self.arrays.items()
            }

    def pieces(self, number: int, name: str, piece_nbytes: int = PIECE_NBYTES) -> Iterator[np.ndarray]:
        """Yield the rows of array `name` of shard `number`, at most `piece_nbytes` at a time.

        After the last piece the whole is compared with the manifest's digest. Raises ShardError
        that names file and dataset.
        """
        with self.opened(number) as shard:
            yield from shard.pieces(name, piece_nbytes)

    @contextmanager
    def opened(self, number: int) -> "Iterator[OpenShard]":
        """Give shard `number` as an OpenShard; ShardError unless its file is what the manifest says.

        HDF5 sees no byte of a file before the digest of all of them is the manifest's.
        """
        import h5py

        with self._whole(number) as plain:
            shard, stored = self.manifest.shards[number], os.fstat(plain.fileno()).st_size
            sample = sum(array.sample_nbytes for array in self.manifest.arrays.values())
            check_claim(plain.name, shard.samples * sample, stored)
            try:
                file = h5py.File(plain, "r")
            except OSError as problem:
                raise ShardError(
                    f"{plain.name}: cannot be opened as HDF5: "
                    f"{explained(problem, 'pack the data again')}"
                ) from None
            with file:
                yield OpenShard(file, plain.name, shard, self.manifest.arrays, stored)

    def _whole(self, number):
        """Return the open file of shard `number`, which has the SHA-256 that the manifest says."""
        shard = self.manifest.shards[number]
        path = self.folder / shard.file
        try:
            file = open_plain(path)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as problem:
            fetch = "fetch the file again, or pack the data again"
            raise ShardError(f"{path}: cannot be read: {explained(problem, fetch)}") from None
        if digest != shard.sha256:
            file.close()
            raise ShardError(
                f"{path}: its SHA-256 is not the manifest's: the file is cut, damaged or "
                "of another set; fetch it again, or pack the data again"
            )
        return file


class OpenShard:
    """One shard's file, whole as a file: its arrays piece by piece, against the manifest's digests."""

    def __init__(
        self, file: "h5py.File", path: str, shard: Shard, arrays: dict[str, Array], stored_nbytes: int
    ):
        self.file, self.path, self.shard, self.arrays = file, path, shard, arrays
        self.stored_nbytes = stored_nbytes

    def pieces(self, name: str, piece_nbytes: int = PIECE_NBYTES) -> Iterator[np.ndarray]:
        """Yield the rows of array `name` as `ShardSet.pieces` does."""
        array, samples = self.arrays[name], self.shard.samples
        digest, rows = hashlib.sha256(), rows_of_piece(array, piece_nbytes)
        try:
            dataset = self._dataset(name, (samples, *array.shape), np.dtype(array.dtype))
            for first in range(0, samples, rows):
                piece = dataset[first : min(first + rows, samples)]
                digest.update(piece.data if piece.size else b"")
                yield piece
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as problem:
            raise ShardError(
                f"{self.path}: dataset {name!r} cannot be read: "
                f"{explained(problem, 'pack the data again')}"
            ) from None
        if digest.hexdigest() != self.shard.arrays_sha256[name]:
            raise ShardError(
                f"{self.path}: dataset {name!r} holds other numbers than the manifest "
                "says; fetch the manifest and the file again, or pack the data again"
            )

    def _dataset(self, name, shape, dtype):
        """Return the dataset `name` if it is plain and is what the manifest says."""
        import h5py

        def refuse(why):
            raise ShardError(f"{self.path}: dataset {name!r} {why}; pack the data again")

        link = self.file.get(name, getlink=True) if name in self.file else None
        if link is None:
            refuse("is missing")
        if not isinstance(link, h5py.HardLink):
            refuse("is a link to another place")
        dataset = self.file[name]
        if not isinstance(dataset, h5py.Dataset):
            refuse("is not an array")
        if dataset.is_virtual or dataset.external:
            refuse("keeps its numbers in another file")
        if dataset.shape != shape or dataset.dtype != dtype:
            refuse(f"is {dataset.dtype} {dataset.shape}, the manifest says {dtype} {shape}")
        check_claim(self.path, math.prod(dataset.chunks or ()) * dtype.itemsize, self.stored_nbytes)
        known = _load_filters(dataset, FILTERS)
        if known is not None:
            refuse(f"needs HDF5 filter {known}, which is not on the list")
        return dataset


def rows_of_piece(array, piece_nbytes):
    """Return how many samples of `array` make a piece of at most `piece_nbytes` (at least one)."""
    return max(1, piece_nbytes // max(array.sample_nbytes, 1))


def write_shard(path, parts, compression):
    """Write one shard file whole or not at all; return its SHA-256 and those of its arrays.

    parts: name -> Part. The same rows, the same bytes. Held at a time: the file, twice, and a piece.
    """
    digests = {name: hashlib.sha256() for name in parts}

    def fill(file):
        for name, part in parts.items():
            layout, nbytes = {}, part.sample_nbytes
            rows = max(1, CHUNK_NBYTES // max(nbytes, 1))
            if part.samples and nbytes:  # HDF5 has no chunks of nothing
                layout = {
                    "chunks": (min(rows, part.samples), *part.shape),
                    "fletcher32": True,
                    **_filters(compression),
                }
            dataset = file.create_dataset(
                name, (part.samples, *part.shape), part.dtype, track_times=False, **layout
            )
            for first, piece in part.pieces(rows * max(1, PIECE_NBYTES // max(1, rows * nbytes))):
                digests[name].update(piece.data if piece.size else b"")
                if piece.size:
                    dataset[first : first + len(piece)] = piece

    content = hdf5_bytes(fill, sum(part.samples * part.sample_nbytes for part in parts.values()))
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest(), {
        name: digest.hexdigest() for name, digest in digests.items()
    }


def _filters(compression):
    """Return what h5py wants for a compression by name."""
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip", "shuffle": True}
    import hdf5plugin

    return dict(hdf5plugin.LZ4() if compression == "lz4" else hdf5plugin.Zstd(clevel=9))


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
