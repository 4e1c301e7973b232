"""Shards that a rank keeps on its own disk from one job to the next, so that they cross no link again.

A file is a shard's arrays, one after another, as they are decoded; its name is the digest of what the
manifest says of them. Whatever is read is held against the manifest: a file that is not what it says is
removed, and the shard fetched. First in stays: shards are asked for in one order in every job, and the
one that was used longest ago is then always the next to be asked for.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from isthmus.errors import OutputError, ShardError
from isthmus.files import check_folder, replacing
from isthmus.json_text import dumps
from isthmus.shards.manifest import Manifest

Places = dict[tuple[int, str], np.ndarray]


class ShardCache:
    """A folder of one rank with shards of at most `most_nbytes` in all; OutputError if it cannot be."""

    def __init__(self, folder: str | os.PathLike[str], most_nbytes: int):
        self.folder, self.most_nbytes = Path(folder), most_nbytes
        check_folder(self.folder, "name another folder under [data] cache")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def check(self, manifest: Manifest) -> None:
        """Raise ShardError where not even the smallest shard of the set would fit."""
        least = min((_nbytes(manifest, number) for number in range(len(manifest.shards))), default=0)
        if least > self.most_nbytes:
            raise ShardError(
                f"[data] cache_nbytes: {self.most_nbytes} bytes hold no shard of {least}; give more, or "
                "no cache"
            )

    def load(self, manifest: Manifest, number: int, places: Places) -> bool:
        """Read shard `number` into its places, name by name; return whether it was there and whole."""
        path = self._path(manifest, number)
        try:
            with open(path, "rb") as file:
                whole = os.fstat(file.fileno()).st_size == _nbytes(manifest, number)
                for name, digest in manifest.shards[number].arrays_sha256.items():
                    rows = places[number, name].reshape(-1).view(np.uint8).data
                    whole = whole and file.readinto(rows) == rows.nbytes
                    whole = whole and hashlib.sha256(rows).hexdigest() == digest
        except OSError:
            return False
        if not whole:
            path.unlink(missing_ok=True)
        return whole

    def keep(self, manifest: Manifest, number: int, places: Places) -> bool:
        """Write shard `number` if it fits beside what is there; return whether it did.

        A disk that is full, or goes away, only means that it is fetched again.
        """
        try:
            taken = sum(each.stat().st_size for each in self.folder.glob("*.shard"))
            if taken + _nbytes(manifest, number) > self.most_nbytes:
                return False
            with replacing(self._path(manifest, number)) as partial, open(partial, "wb") as file:
                for name in manifest.arrays:
                    file.write(places[number, name].reshape(-1).view(np.uint8).data)
        except (OSError, OutputError):
            return False
        return True

    def _path(self, manifest, number):
        arrays = {name: array.model_dump() for name, array in manifest.arrays.items()}
        told = dumps([arrays, manifest.shards[number].arrays_sha256, manifest.shards[number].samples])
        return self.folder / f"{hashlib.sha256(told.encode()).hexdigest()}.shard"


def rows_of(manifest: Manifest, number: int) -> Places:
    """Return places for one shard."""
    samples = manifest.shards[number].samples
    return {
        (number, name): np.empty((samples, *array.shape), array.dtype)
        for name, array in manifest.arrays.items()
    }


def _nbytes(manifest, number):
    samples = manifest.shards[number].samples
    return samples * sum(array.sample_nbytes for array in manifest.arrays.values())
