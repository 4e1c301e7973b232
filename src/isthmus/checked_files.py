"""Files of arrays and a table: HDF5, under one digest of every byte.

Each begins with a block of 512 bytes, which HDF5 skips, of two lines of text and zeros:

    isthmus checkpoint 5
    sha256 4af9f6...

The digest is that of the whole file with the digit 0 in the place of its own digits, and is compared
before HDF5 sees any of it. This block is the same in all versions to come.
"""

import hashlib
import io
import re
from dataclasses import dataclass

import numpy as np

from isthmus.cures import explained
from isthmus.errors import IsthmusError
from isthmus.files import open_plain, write_bytes
from isthmus.hdf5_files import hdf5_bytes
from isthmus.json_text import dumps, loads

BLOCK_NBYTES = 512
TABLE = "table"


@dataclass(frozen=True)
class CheckedKind:
    """A kind of such files: the word in its first line, and what is said of one that is no good.

    error: what a bad one raises. cure: the end of every such message. missing: what is said of one
    that is not there. bare: the versions that had no block, in words; "" where none had none.
    """

    word: str
    version: int
    error: type[IsthmusError]
    cure: str
    missing: str
    bare: str = ""

    def write(self, path, arrays, table):
        """Write `arrays`, name -> array of numbers, and a JSON `table` to `path`, whole or not at all.

        A name with slashes is one in groups. Takes twice the file's bytes of memory while it lasts.
        """

        def fill(file):
            for name, array in arrays.items():
                file[name] = array
            file[TABLE] = np.frombuffer(dumps(table, exact=True).encode(), np.uint8)

        write_bytes(path, *self.sealed(hdf5_bytes(fill)))

    def read(self, path):
        """Return the arrays and the table in `path`; `error` if one bit of it is another one."""
        return self.unpacked(path, self.content(path))

    def content(self, path):
        """Return the bytes of the file at `path`; `error` if it is not there or cannot be read."""
        try:
            with open_plain(path) as file:
                return file.read()
        except FileNotFoundError:
            raise self.error(f"{path}: {self.missing}") from None
        except OSError as problem:
            raise self.error(
                f"{path}: cannot be read: {explained(problem, elsewhere=self.cure)}"
            ) from None

    def unpacked(self, path, content):
        """Return what `read` does of bytes that came from `path`."""
        block, image = content[:BLOCK_NBYTES], memoryview(content)[BLOCK_NBYTES:]
        self._check_whole(path, block, image)
        import h5py

        try:
            with h5py.File(io.BytesIO(image), "r") as file:
                arrays = {}
                file.visititems(
                    lambda name, item: (
                        arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
                    )
                )
            return arrays, loads(arrays.pop(TABLE).tobytes(), exact=True)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as problem:
            raise self.error(f"{path}: is not what isthmus writes ({problem}); {self.cure}") from None

    def sealed(self, image):
        """Return the block that tells of `image`, the bytes of an HDF5 file, and the image."""
        return self._block(self.version, image), image

    def _check_whole(self, path, block, image):
        """Raise `error` unless the digest is that of all bytes and the version is this one."""
        if self.bare and block.startswith(b"\x89HDF"):
            raise self._other_version(path, self.bare)
        found = re.fullmatch(rb"isthmus %b (\d+)\nsha256 [0-9a-f]{64}\n\0*" % self.word.encode(), block)
        if not found or block != self._block(version := int(found[1]), image):
            raise self.error(
                f"{path}: is damaged: its bytes are not those that were written; {self.cure}"
            )
        if version != self.version:
            raise self._other_version(path, version)

    def _other_version(self, path, version):
        return self.error(
            f"{path}: is of version {version}, this program reads {self.version}; use the "
            f"isthmus that wrote it, or {self.cure}"
        )

    def _block(self, version, image):
        def of(digest):
            text = f"isthmus {self.word} {version}\nsha256 {digest}\n"
            return text.encode().ljust(BLOCK_NBYTES, b"\0")

        whole = hashlib.sha256(of("0" * 64))
        whole.update(image)
        return of(whole.hexdigest())
