"""A packed set packed again, so that its shards hold clients whole."""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

from isthmus.cures import explained
from isthmus.errors import OutputError, PolicyError
from isthmus.files import check_folder
from isthmus.shards.manifest import NAME
from isthmus.shards.packing import pack_shards
from isthmus.shards.rows import StoredRows
from isthmus.shards.shard_file import ShardSet


def split_into_clients(
    shards: ShardSet, folder: Path, clients: int, split: Any, pieces: int
) -> ShardSet:
    """Return the samples of `shards` split into clients, in so many `pieces`, packed into `folder`.

    A set that is there already is taken as it is: the folder's name tells the set and its split.
    clients, split: as in `pack_shards`. All samples go through a file beside `folder` once. Raises
    ShardError for what cannot be split, OutputError where nothing can be written, PolicyError for a set
    with a policy, which would be lost.
    """
    if shards.manifest.signatures is not None:
        raise PolicyError(
            f"{shards.folder}: has a policy, and a run that splits it into clients would pack it "
            "without one; pack it with `isthmus pack --clients` where it was born"
        )
    if not (folder / NAME).exists():
        check_folder(folder.parent, "name another run.folder")
        try:
            _pack(shards, folder, clients, split, pieces)
        except OSError as problem:
            cure = "name a run.folder on another disk"
            raise OutputError(f"{folder}: cannot be written: {explained(problem, cure)}") from None
    return ShardSet.open(folder)


def _pack(shards, folder, clients, split, pieces):
    """Pack the set beside `folder`, and then have it there at once."""
    with ExitStack() as opened:
        beside = opened.enter_context(tempfile.TemporaryDirectory(dir=folder.parent, prefix=".clients-"))
        files = {
            name: opened.enter_context(tempfile.TemporaryFile(dir=beside)) for name in shards.arrays
        }
        for number in range(len(shards.names)):
            with shards.opened(number) as shard:
                for name, file in files.items():
                    for piece in shard.pieces(name):
                        file.write(piece.tobytes())
        columns = {}
        for name, (shape, dtype) in shards.arrays.items():
            files[name].flush()
            whole = (sum(shards.samples), *shape)
            columns[name] = StoredRows(shards.folder, cast(BinaryIO, files[name]), 0, whole, dtype)
        columns[name].classes = shards.manifest.class_names
        made = pack_shards(columns, Path(beside, "set"), pieces, clients=clients, split=split)
        try:
            os.rename(made.folder, folder)
        except OSError:  # another run was sooner
            if not (folder / NAME).exists():
                raise
