"""Shards on disk: HDF5 files that are read only as what the manifest says they are."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from isthmus.cures import explained
from isthmus.errors import ShardError
from isthmus.files import open_plain, replacing
from isthmus.hdf5_files import hdf5_bytes
from isthmus.security.at_rest import DamagedError
from isthmus.shards.access import Access, access_of, digest_of
from isthmus.shards.claims import check_claim
from isthmus.shards.manifest import Array, Manifest, Shard

if TYPE_CHECKING:  # read by whoever opens a file
    import h5py

    from isthmus.cluster.cluster import Cluster

CHUNK_NBYTES = 256 * 1024
PIECE_NBYTES = 4 << 20
"""Bytes that are read, or sent, at a time: a rank that receives holds its samples and at most two."""
FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32004: "lz4", 32015: "zstd", 32001: "blosc"}
"""HDF5 filters that a shard may have; a file that asks for another is refused."""


FETCH = "fetch the file again, or pack the data again"


class ShardSet:
    """A folder of shards, as its manifest tells it.

    names, samples, nbytes: tuples with one entry a shard: file name, samples, and bytes of the
    decoded arrays (what a rank holds in memory, and what travels). arrays: name -> (shape of a
    sample, dtype), in the order in which batches give them. access: what this process may read of a set
    with a policy; None where that has not been verified, or there is none.
    """

    def __init__(self, folder: str | os.PathLike[str], manifest: Manifest, access: Access | None = None):
        self.folder, self.manifest, self.access = Path(folder), manifest, access

    @classmethod
    def open(cls, folder: str | os.PathLike[str], keys: str | os.PathLike[str] | None = None) -> Self:
        """Open a packed folder; ShardError if it has no manifest or a wrong one.

        keys: the folder of keys with which the set's policy is verified, where it has one: PolicyError
        if that is not what its origins have signed. Without, nothing is read of a set with a policy.
        """
        manifest = Manifest.read(folder)
        if manifest.signatures is None or keys is None:
            return cls(folder, manifest)
        return cls(folder, manifest, access_of(manifest, folder, keys))

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
    def readers(self) -> tuple[frozenset[str], ...] | None:
        """The sites that may read each shard; None where the set has no policy.

        SecurityError where its policy has not been verified.
        """
        if self.manifest.signatures is None:
            return None
        if self.access is None:
            access_of(self.manifest, self.folder, None)
        return tuple(frozenset(shard.readers or ()) for shard in self.manifest.shards)

    def allowed(self, cluster: "Cluster") -> dict[int, list[int]] | None:
        """Return {shard: ranks that may hold it} for `allocate_shards`; None if there is no policy."""
        readers = self.readers
        if readers is None:
            return None
        names = [cluster.names[site] for site in cluster.site_of_rank]
        return {
            number: [rank for rank, name in enumerate(names) if name in sites]
            for number, sites in enumerate(readers)
        }

    @property
    def readable(self) -> Iterator[int]:
        """The numbers of the shards that this process may read."""
        manifest, access = self.manifest, self.access
        for number in range(len(manifest.shards)):
            if manifest.signatures is None or (access and access.may_read(manifest, number)):
                yield number

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

        HDF5 sees no byte of a file before the digest of all of them is the manifest's. PolicyError where
        this process may not read it.
        """
        import h5py

        if self.manifest.signatures is not None:
            access = self.access or access_of(self.manifest, self.folder, None)
            access.require(self.manifest, number, self.folder)
        shard, path = self.manifest.shards[number], str(self.folder / self.manifest.shards[number].file)
        with self._whole(number) if shard.sealed is None else self._unsealed(number) as plain:
            stored = plain.seek(0, os.SEEK_END)
            sample = sum(array.sample_nbytes for array in self.manifest.arrays.values())
            check_claim(path, shard.samples * sample, stored)
            try:
                file = h5py.File(plain, "r")
            except OSError as problem:
                raise ShardError(
                    f"{path}: cannot be opened as HDF5: {explained(problem, 'pack the data again')}"
                ) from None
            with file:
                digest_of_array = partial(digest_of, self.manifest, self.access, number)
                yield OpenShard(file, path, shard, self.manifest.arrays, stored, digest_of_array)

    def _unsealed(self, number):
        """Return the content of the sealed file of shard `number`, in memory alone.

        Its segments tell what the SHA-256 of the file would: the key is one that its origin has signed.
        """
        path = self.folder / self.manifest.shards[number].file
        try:
            with open_plain(path) as file:
                return self.access.file_keys[number].open(file, os.fstat(file.fileno()).st_size)
        except OSError as problem:
            raise ShardError(f"{path}: cannot be read: {explained(problem, FETCH)}") from None
        except DamagedError as problem:
            raise ShardError(
                f"{path}: {problem}: the file is cut, damaged or of another set; {FETCH}"
            ) from None

    def _whole(self, number):
        """Return the open file of shard `number`, which has the SHA-256 that the manifest says."""
        shard = self.manifest.shards[number]
        path = self.folder / shard.file
        try:
            file = open_plain(path)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as problem:
            raise ShardError(f"{path}: cannot be read: {explained(problem, FETCH)}") from None
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
        self,
        file: "h5py.File",
        path: str,
        shard: Shard,
        arrays: dict[str, Array],
        stored_nbytes: int,
        digest_of_array: Callable[[str], Any],
    ):
        self.file, self.path, self.shard, self.arrays = file, path, shard, arrays
        self.stored_nbytes, self.digest_of_array = stored_nbytes, digest_of_array

    def pieces(self, name: str, piece_nbytes: int = PIECE_NBYTES) -> Iterator[np.ndarray]:
        """Yield the rows of array `name` as `ShardSet.pieces` does."""
        array, samples = self.arrays[name], self.shard.samples
        digest, rows = self.digest_of_array(name), rows_of_piece(array, piece_nbytes)
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


def write_shard(path, parts, compression, file_key=None):
    """Write one shard file whole or not at all; return its SHA-256 and those of its arrays.

    parts: name -> Part. The same rows, the same bytes. Held at a time: the file, twice, and a piece.
    file_key: what the file is sealed with; the digests of arrays are then HMACs, and no bytes the same.
    """
    digests = {name: file_key.digest(name) if file_key else hashlib.sha256() for name in parts}

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
    whole = hashlib.sha256()
    with replacing(path) as beside, open(beside, "wb") as file:
        for piece in [content] if file_key is None else file_key.seal(content):
            whole.update(piece)
            file.write(piece)
    return whole.hexdigest(), {name: digest.hexdigest() for name, digest in digests.items()}


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
