"""Residuals in a checkpoint: sealed to the site that they are of, before they travel to who writes it.

What a site has not sent yet tells of its samples as much as what it has, and so is nothing for those who
see the run's folder. It is opened where a run goes on, by the ranks of that site alone.
"""

import os
import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from isthmus.errors import CheckpointError
from isthmus.links.agreement import broadcast_json, together
from isthmus.security.at_rest import DamagedError, FileKey, derived
from isthmus.security.key_files import read_private

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers

SALT_NBYTES = 32


def is_residual(name: str) -> bool:
    """Whether an array of a training is what a sum remembers, by its name."""
    return re.fullmatch(r"strategy/sums/\d+/memory", name) is not None


class SealedResidual:
    """A residual that its site alone can open; of the array it is, it tells all but the numbers."""

    def __init__(self, content: np.ndarray, told: str):
        self.content = content
        entries, dtype = told.split()
        self.size, self.dtype = int(entries), np.dtype(dtype)
        self.shape = (self.size,)

    def any(self) -> bool:
        """Whether it may hold something: nobody here knows better."""
        return True


class ResidualSeal:
    """What seals and opens the residuals of one site, on each of its ranks."""

    def __init__(self, site: str, secret: bytes):
        self.site, self._secret = site, secret

    @classmethod
    def of(cls, tiers: "Tiers", keys: str | os.PathLike[str] | None) -> Self | None:
        """Return that of this rank's site, whose leader has the site's key in the folder `keys`.

        None where there are no `keys`. The leader tells the other ranks of its site what they need.
        Collective.
        """
        if keys is None:
            return None
        leads = tiers.site.rank == 0

        def secret() -> str:
            private = read_private(Path(keys).expanduser(), tiers.site_name)
            return derived(private.private_bytes_raw(), b"isthmus residuals 1").hex()

        told = together(tiers.world, lambda: secret() if leads else None)
        return cls(tiers.site_name, bytes.fromhex(broadcast_json(tiers.site, told)))

    def seal(self, name: str, step: int, array: np.ndarray) -> np.ndarray:
        """Return the bytes of the array `name` as it was after `step`, sealed."""
        salt, plain = os.urandom(SALT_NBYTES), np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        sealed = b"".join([salt, *self._key(name, step, salt).seal(plain.tobytes())])
        return np.frombuffer(sealed, np.uint8)

    def open(self, name: str, step: int, content: np.ndarray, into: np.ndarray) -> None:
        """Write what was sealed of the array `name` to `into`; CheckpointError if it does not open."""
        salt, sealed = content[:SALT_NBYTES].tobytes(), content[SALT_NBYTES:].tobytes()
        try:
            plain = self._key(name, step, salt).open(BytesIO(sealed), len(sealed))
        except DamagedError:
            plain = BytesIO()
        values = np.frombuffer(plain.getbuffer(), into.dtype) if plain.getbuffer().nbytes else None
        if values is None or values.size != into.size:
            raise CheckpointError(
                f"the residual of site {self.site!r} does not open with the key that the site has here: "
                "it was sealed with another; bring that back, or start without --resume"
            )
        into[:] = values

    def _key(self, name: str, step: int, salt: bytes) -> FileKey:
        info = b"isthmus residual 1\0" + step.to_bytes(8, "big") + f"{self.site}\0{name}".encode()
        return FileKey(derived(self._secret, info, salt))


def described(array: np.ndarray) -> str:
    """Return what `SealedResidual` is told of an array."""
    return f"{array.size} {array.dtype.str}"


def sealed_nbytes(stored: dict[str, Any], holder_of_rank: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return for each name with something sealed the bytes of each rank's; None for what is clear."""
    found = {}
    for name, holders in holder_of_rank.items():
        each = [stored.get(f"{name}/{holder}") for holder in holders]
        if any(isinstance(array, SealedResidual) for array in each):
            found[name] = [
                array.content.size if isinstance(array, SealedResidual) else None for array in each
            ]
    return found
