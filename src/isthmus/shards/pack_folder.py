"""The files of a folder that is packed into: what they are called, and which of them stand."""

import fcntl
import os
import re
from contextlib import contextmanager, suppress

from isthmus.cures import explained
from isthmus.errors import OutputError, ShardError
from isthmus.files import open_plain
from isthmus.security.at_rest import HEAD
from isthmus.shards.manifest import NAME, Manifest

SHARD = re.compile(r"shard-\d{5,}(\.new)*\.h5")
STARTS = (b"\x89HDF\r\n\x1a\n\x03", HEAD)  # of HDF5 files in the format of version 1.10, or sealed


def use_plain_names(folder):
    """Call the files of the set that stands as if there had been no other; or leave it as it is.

    Each has two names until a manifest with the plain ones is there: at every moment a set stands.
    """
    manifest = Manifest.read(folder)
    names = [shard.file for shard in manifest.shards]
    pairs, linked = list(zip(names, shard_names(len(names), 0))), []
    if names == [plain for _, plain in pairs]:
        return
    with suppress(OSError, OutputError):  # a file system without hard links
        for name, plain in pairs:
            os.link(folder / name, folder / plain)
            linked.append(plain)
        manifest.model_copy(
            update={
                "shards": tuple(
                    shard.model_copy(update={"file": plain})
                    for shard, (_, plain) in zip(manifest.shards, pairs)
                )
            }
        ).write(folder)
    remove_files(folder, {*names, *linked} - standing_files(folder))


@contextmanager
def alone_in(folder):
    """Keep others from packing into `folder` meanwhile, where the file system has locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as problem:
        raise OutputError(
            f"{folder}: cannot be listed: {explained(problem, 'choose another folder')}"
        ) from None
    try:
        with suppress(OSError):
            _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor, folder):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"{folder}: another process packs into this folder; wait until it ends, or "
            "choose another folder"
        ) from None


def standing_files(folder):
    """Return the names of the files of the set in `folder`; None where there is no manifest.

    Where the manifest is damaged they are all that look like shards.
    """
    try:
        return {shard.file for shard in Manifest.read(folder).shards}
    except ShardError:
        if not os.path.lexists(folder / NAME):
            return None
        return shards_in(folder)


def shards_in(folder):
    """Return the names of all files that look like shards."""
    return {path.name for path in folder.iterdir() if _is_shard(path)}


def shard_names(shards, times):
    """Return the names of so many files; times: how many sets of other names stand beside them."""
    return [f"shard-{number:05d}{'.new' * times}.h5" for number in range(shards)]


def _is_shard(path):
    """Whether `path` has the name and the first bytes of a shard that `pack_shards` has written."""
    if not SHARD.fullmatch(path.name):
        return False
    try:
        with open_plain(path) as file:
            return file.read(max(map(len, STARTS))).startswith(STARTS)
    except OSError:
        return False


def remove_files(folder, names):
    """Remove what is there of `names`, and leave what cannot be removed."""
    for name in names:
        with suppress(OSError):
            (folder / name).unlink()
