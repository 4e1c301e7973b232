"""The file of a checkpoint: arrays and a table in HDF5, under one digest of every byte.

It begins with a block of 512 bytes, which HDF5 skips, of two lines of text and zeros:

    isthmus checkpoint 5
    sha256 4af9f6...

The digest is that of the whole file with the digit 0 in the place of its own digits, and is compared
before HDF5 sees any of it. This block is the same in all versions to come.
"""

import hashlib
import io
import re

import numpy as np

from isthmus.cures import explained
from isthmus.errors import CheckpointError
from isthmus.files import open_plain, write_bytes
from isthmus.hdf5_files import hdf5_bytes
from isthmus.json_text import dumps, loads

VERSION = 5
BLOCK_NBYTES = 512
BLOCK = re.compile(rb"isthmus checkpoint (\d+)\nsha256 ([0-9a-f]{64})\n\0*")
TABLE = "table"


def write_checkpoint_file(path, arrays, table):
    """Write `arrays`, name -> float32[...], and a JSON `table` to `path`, whole or not at all.

    Takes twice the file's bytes of memory while it lasts.
    """

    def fill(file):
        for name, array in arrays.items():
            file[name] = array
        file[TABLE] = np.frombuffer(dumps(table, exact=True).encode(), np.uint8)

    image = hdf5_bytes(fill)
    write_bytes(path, _block(VERSION, _digest(VERSION, image)), image)


def read_checkpoint_file(path):
    """Return the arrays and the table in `path`; CheckpointError if one bit of it is another one."""
    try:
        with open_plain(path) as file:
            block, image = file.read(BLOCK_NBYTES), file.read()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such checkpoint; set run.checkpoint_every, or start without --resume"
        ) from None
    except OSError as problem:
        raise CheckpointError(
            f"{path}: cannot be read: {explained(problem, elsewhere='start without --resume')}"
        ) from None
    _check_whole(path, block, image)
    import h5py

    try:
        with h5py.File(io.BytesIO(image), "r") as file:
            arrays = {}
            file.visititems(
                lambda name, item: (
                    arrays.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None
                )
            )
        return arrays, loads(arrays.pop(TABLE).tobytes(), exact=True)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as problem:
        raise CheckpointError(
            f"{path}: is not what isthmus writes ({problem}); start without --resume"
        ) from None


def _check_whole(path, block, image):
    """Raise CheckpointError unless the digest is that of all bytes and the version is this one."""
    if block.startswith(b"\x89HDF"):
        raise CheckpointError(
            f"{path}: is of version 3 or older, this program reads {VERSION}; use the "
            "isthmus that wrote it, or start without --resume"
        )
    found = BLOCK.fullmatch(block)
    if not found or block != _block(version := int(found[1]), _digest(version, image)):
        raise CheckpointError(
            f"{path}: is damaged: its bytes are not those that were written; start without --resume"
        )
    if version != VERSION:
        raise CheckpointError(
            f"{path}: is of version {version}, this program reads {VERSION}; use the "
            "isthmus that wrote it, or start without --resume"
        )


def _block(version, digest):
    return f"isthmus checkpoint {version}\nsha256 {digest}\n".encode().ljust(BLOCK_NBYTES, b"\0")


def _digest(version, image):
    whole = hashlib.sha256(_block(version, "0" * 64))
    whole.update(image)
    return whole.hexdigest()
