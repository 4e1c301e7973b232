"""The manifest of a folder of shards: what is in each file, and how to know that it still is."""

import hashlib
import json
import re
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator

from isthmus.cures import explained
from isthmus.errors import PolicyError, ShardError
from isthmus.files import open_plain, write_text
from isthmus.json_text import dumps
from isthmus.toml_files import FrozenModel, check_table

NAME = "manifest.json"
NUMBERS = "iufb"  # dtype kinds: integers, floats, booleans
DTYPES = r"[<>|=]?[iufb]\d*|\?|u?int\d+|float\d+|bool"
MOST_NBYTES = 1 << 60
Count = Annotated[int, Field(ge=0, le=2**40)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Site = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Wrapped = Annotated[str, Field(pattern="^[0-9a-f]{160}$")]
Signature = Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


class Array(FrozenModel):
    """One array of the data set: the shape of a sample and its dtype."""

    shape: tuple[Annotated[int, Field(ge=0, le=2**31)], ...]
    dtype: str

    @field_validator("dtype")
    @classmethod
    def _is_a_number_type(cls, value):
        try:
            kind = np.dtype(value) if re.fullmatch(DTYPES, value) else None
        except TypeError:
            kind = None
        if kind is None:
            raise ValueError(f"{value!r} is not a dtype of numbers, such as '<f4'")
        return kind.str

    @property
    def sample_nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * np.dtype(self.dtype).itemsize


class Shard(FrozenModel):
    """One file: its samples, the SHA-256 of the file, and that of each array's decoded bytes.

    samples_of_class: how many samples there are of each class that the last array of the set names; None
    where that holds no class numbers, and in sets that were packed before this was counted.
    clients: how many samples, one after another, are of each of the clients that the shard holds; None
    where the set was not split into clients.
    origin, readers: the site where the samples were born, and those that may read them; None in a set
    without a policy. sealed: the file's key, wrapped for each reader; arrays_sha256 are then HMACs under
    it. None: the file is not sealed.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.h5$")]
    samples: Count
    sha256: Digest
    arrays_sha256: dict[str, Digest]
    samples_of_class: dict[Count, Count] | None = None
    clients: tuple[Annotated[int, Field(ge=1, le=2**40)], ...] | None = None
    origin: Site | None = None
    readers: Annotated[tuple[Site, ...], Field(min_length=1)] | None = None
    sealed: dict[Site, Wrapped] | None = None


class Manifest(FrozenModel):
    """All of a folder: the arrays in their order, and the shards in theirs.

    class_names: of the classes 0, 1, ..., where they have names. set_apart: whether these samples were
    taken out of the set in the folder above, for validation. signatures: of the policy, by each origin
    for all of the set; None where there is no policy.
    """

    format: Literal["isthmus shards"] = "isthmus shards"
    version: Literal[1] = 1
    arrays: Annotated[dict[str, Array], Field(min_length=1)]
    shards: tuple[Shard, ...]
    class_names: tuple[str, ...] | None = None
    set_apart: bool | None = None
    signatures: dict[Site, Signature] | None = None

    @field_validator("arrays")
    @classmethod
    def _names_are_plain(cls, value):
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"array {name!r}: a name is letters, digits and underscores")
        return value

    @property
    def digest(self) -> str:
        """SHA-256 of all samples and how they are cut into shards, whatever files they are in."""
        arrays = [[name, array.shape, array.dtype] for name, array in self.arrays.items()]
        shards = [
            [shard.samples, *(shard.arrays_sha256[name] for name in self.arrays)]
            + ([] if shard.clients is None else [shard.clients])
            for shard in self.shards
        ]
        return hashlib.sha256(dumps([arrays, shards]).encode()).hexdigest()

    @property
    def sealed(self) -> bool:
        """Whether the files are sealed."""
        return any(shard.sealed is not None for shard in self.shards)

    @property
    def statement(self) -> bytes:
        """What origins sign: all that stands here but signatures, and files' names, which may change."""
        told = self.model_dump(
            mode="json", exclude_none=True, exclude={"signatures": True, "shards": {"__all__": {"file"}}}
        )
        return b"isthmus policy 1\0" + hashlib.sha256(dumps(told).encode()).digest()

    @property
    def samples_of_class(self) -> dict[int, int] | None:
        """Samples of each class in all shards, by class number; None where they were not counted."""
        total: dict[int, int] = {}
        for shard in self.shards:
            if shard.samples_of_class is None:
                return None
            for kind, samples in shard.samples_of_class.items():
                total[kind] = total.get(kind, 0) + samples
        return dict(sorted(total.items()))

    @property
    def clients(self) -> list[list[int]] | None:
        """How many samples each client has, by shard, in order; None where there are no clients."""
        if any(shard.clients is None for shard in self.shards):
            return None
        return [list(shard.clients or ()) for shard in self.shards]

    def told(self) -> dict[str, Any]:
        """Return what a run says of the samples that it learnt from, and of who may read them."""
        told: dict[str, Any] = {
            "samples": sum(shard.samples for shard in self.shards),
            "shards": len(self.shards),
            "sha256": self.digest,
        }
        if self.signatures is not None:
            kinds = Counter(tuple(sorted(shard.readers or ())) for shard in self.shards)
            told["readers"] = [
                {"sites": list(sites), "shards": shards} for sites, shards in sorted(kinds.items())
            ]
            told["sealed"] = self.sealed
        return told

    @classmethod
    def of(cls, table: dict[str, Any], source: str | PathLike[str]) -> Self:
        """Return the checked manifest in `table`; ShardError names `source` if it is wrong."""
        manifest = check_table(cls, table, source, ShardError)
        _check_names([shard.file for shard in manifest.shards], source)
        sample = sum(array.sample_nbytes for array in manifest.arrays.values())
        if sum(shard.samples for shard in manifest.shards) * sample > MOST_NBYTES:
            raise ShardError(f"{source}: claims more bytes than there are anywhere; pack the data again")
        _check_policy(manifest, source)
        for shard in manifest.shards:
            if shard.arrays_sha256.keys() != manifest.arrays.keys():
                raise ShardError(
                    f"{source}: {shard.file} lists arrays {list(shard.arrays_sha256)}, "
                    f"the set {list(manifest.arrays)}; pack the data again"
                )
            counted = shard.samples_of_class
            if counted is not None and sum(counted.values()) != shard.samples:
                raise ShardError(
                    f"{source}: {shard.file} has {shard.samples} samples, and {sum(counted.values())} "
                    "of all classes; pack the data again"
                )
            if shard.clients is not None and sum(shard.clients) != shard.samples:
                raise ShardError(
                    f"{source}: {shard.file} has {shard.samples} samples, and its clients "
                    f"{sum(shard.clients)}; pack the data again"
                )
        return manifest

    @classmethod
    def read(cls, folder: str | PathLike[str]) -> Self:
        """Return the manifest of `folder`; ShardError in one line if there is none or it is bad."""
        path = Path(folder, NAME)
        try:
            with open_plain(path) as file:
                table = json.loads(file.read(), object_pairs_hook=lambda pairs: _table(pairs, path))
        except FileNotFoundError:
            raise ShardError(
                f"{path}: no such file; pack the data with `isthmus pack`, or name the "
                "folder that holds manifest.json"
            ) from None
        except (OSError, ValueError, RecursionError) as problem:
            raise ShardError(
                f"{path}: cannot be read: {explained(problem, 'pack the data again')}"
            ) from None
        return cls.of(table, path)

    @property
    def text(self) -> str:
        """What stands in the file."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"

    def write(self, folder: str | PathLike[str]) -> None:
        """Write the manifest into `folder`, in the place of another."""
        write_text(Path(folder, NAME), self.text)


def _check_policy(manifest, source):
    """Raise PolicyError where some shards have a policy and others none, or an origin has not signed."""
    signed, origins = manifest.signatures, {shard.origin for shard in manifest.shards}
    whole = all((shard.readers is None) == (signed is None) for shard in manifest.shards)
    whole &= all(
        shard.sealed is None or shard.sealed.keys() == {*(shard.readers or ())}
        for shard in manifest.shards
    )
    if (
        not whole
        or (signed is not None and origins != signed.keys())
        or (not signed and origins - {None})
    ):
        raise PolicyError(
            f"{source}: has a part of a policy: each shard has an origin, which has signed, and "
            "readers, for whom it is sealed if it is, or none has; pack the data again where it was born"
        )


def _table(pairs, source):
    """Return the dict of a JSON object's `pairs`, each name of which stands there once."""
    _check_names([name for name, _ in pairs], source)
    return dict(pairs)


def _check_names(names, source):
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ShardError(f"{source}: {twice!r} stands there twice; pack the data again")
