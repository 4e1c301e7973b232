"""The manifest of a folder of shards: what is in each file, and how to know that it still is."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from isthmus.errors import ShardError
from isthmus.toml_files import FrozenModel, check_table

NAME = "manifest.json"
NUMBERS = "iufb"  # dtype kinds: integers, floats, booleans
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Array(FrozenModel):
    """One array of the data set: the shape of a sample and its dtype."""

    shape: tuple[Annotated[int, Field(ge=0, le=2**31)], ...]
    dtype: str

    @field_validator("dtype")
    @classmethod
    def _is_a_number_type(cls, value):
        try:
            kind = np.dtype(value)
        except TypeError:
            raise ValueError(f"{value!r} is not a dtype") from None
        if kind.kind not in NUMBERS or kind.hasobject:
            raise ValueError(f"dtype {value!r} is not a type of numbers")
        return kind.str

    @property
    def sample_nbytes(self):
        return int(np.prod(self.shape, dtype=object)) * np.dtype(self.dtype).itemsize


class Shard(FrozenModel):
    """One file: its samples, the SHA-256 of the file, and that of each array's decoded bytes."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.h5$")]
    samples: Annotated[int, Field(ge=0, le=2**40)]
    sha256: Digest
    arrays_sha256: dict[str, Digest]


class Manifest(FrozenModel):
    """All of a folder: the arrays in their order, and the shards in theirs."""

    format: Literal["isthmus shards"] = "isthmus shards"
    version: Literal[1] = 1
    arrays: Annotated[dict[str, Array], Field(min_length=1)]
    shards: tuple[Shard, ...]

    @field_validator("arrays")
    @classmethod
    def _names_are_plain(cls, value):
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"array {name!r}: a name is letters, digits and underscores")
        return value

    @classmethod
    def of(cls, table, source):
        """Return the checked manifest in `table`; ShardError names `source` if it is wrong."""
        manifest = check_table(cls, table, source, ShardError)
        for shard in manifest.shards:
            if shard.arrays_sha256.keys() != manifest.arrays.keys():
                raise ShardError(f"{source}: {shard.file} lists arrays {list(shard.arrays_sha256)}, "
                                 f"the set {list(manifest.arrays)}; pack the data again")
        return manifest

    @classmethod
    def read(cls, folder):
        """Return the manifest of `folder`; ShardError in one line if there is none or it is bad."""
        import json
        path = Path(folder, NAME)
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ShardError(f"{path}: no such file; pack the data with `isthmus pack`, or name the "
                             "folder that holds manifest.json") from None
        except (OSError, ValueError) as problem:
            raise ShardError(f"{path}: cannot be read ({problem}); pack the data again") from None
        return cls.of(table, path)
