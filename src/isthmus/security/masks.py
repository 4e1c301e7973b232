"""Masks that cancel in a sum: what pairs of sites add to their vectors, one of them with a minus.

The protocol is that of Bonawitz et al. 2017 (doi:10.1145/3133956.3133982) with the hub as the server,
which follows it and is curious, and without their sharing of secrets: who has told that it takes part is
waited for. Masks are AES-256 in counter mode, and seeds are of 256 bits, one for each pair, sum and
attempt, so that none is used twice.
"""

import os
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import SecurityError
from isthmus.security.key_files import library

Codes = npt.NDArray[np.unsignedinteger[Any]]
SEED_NBYTES = 32
FEWEST = 3
"""Sites that contribute to a sum: of two, each would know what the other has sent."""
CHUNK_NBYTES = 1 << 15
_ZEROS = bytes(CHUNK_NBYTES)


class Stream:
    """The mask of one seed, piece after piece. sign: 1 where it is added, -1 where it is taken away."""

    def __init__(self, seed: bytes, sign: int):
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self.add = np.add if sign > 0 else np.subtract
        self.encryptor = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        self.room = np.empty(CHUNK_NBYTES + 15, np.uint8)  # the library asks for a block more

    def mask(self, codes: Codes) -> None:
        """Add the next entries of the mask to `codes` in place, modulo what their type holds."""
        entries = CHUNK_NBYTES // codes.itemsize
        for first in range(0, codes.size, entries):
            part = codes[first : first + entries]
            self.encryptor.update_into(memoryview(_ZEROS)[: part.nbytes], self.room.data)
            self.add(part, self.room[: part.nbytes].view(codes.dtype), out=part)


class Masking:
    """One site's side: the masks that it adds, and what of them it is willing to tell.

    site: its number. pair_keys: 32 bytes that it shares with each other site but the hub, from which
    nothing has to be hidden that it adds up itself. reveals: whether it adds a mask of its own as well,
    which it tells once it is known who takes part, with those that it shares with who does not; else
    what is missing is repaired by masking again.
    """

    def __init__(self, site: int, pair_keys: Mapping[int, bytes], reveals: bool):
        self.site, self.pair_keys, self.reveals = site, pair_keys, reveals
        self.sum, self.attempt, self.told = -1, 0, True
        self.among: frozenset[int] = frozenset()
        self.own = b""

    def begin(self, number: int, among: Collection[int]) -> list[Stream]:
        """Return the masks of a vector in sum `number`, to which the sites `among` contribute.

        Of one sum a site masks its vector again only for fewer sites. SecurityError where another would
        learn what this one has sent.
        """
        sites = frozenset(among)
        again = number == self.sum
        if number < self.sum or (again and not sites < self.among) or self.site not in sites:
            raise SecurityError(
                f"sum {number} of sites {sorted(sites)} is not one that site {self.site} masks its "
                "vector for: it has done so already"
            )
        _check_count(sites)
        self.attempt = self.attempt + 1 if again else 0
        self.sum, self.among, self.told = number, sites, False
        masks = [Stream(self._seed(other), _sign(self.site, other)) for other in self._partners(sites)]
        if self.reveals:
            self.own = os.urandom(SEED_NBYTES)
            masks.append(Stream(self.own, 1))
        return masks

    def reveal(self, present: Collection[int]) -> bytes:
        """Return this site's own seed, and those that it shares with who is not `present`, in order.

        Once an attempt: the two seeds that hide another site's vector are never both told.
        """
        if not self.reveals or self.told or self.site not in present or not self.among >= {*present}:
            raise SecurityError(
                f"site {self.site} does not tell its masks of sum {self.sum} for {sorted(present)}: it "
                "has told them already, or never will"
            )
        _check_count(present)
        self.told = True
        missing = self._partners(self.among - {*present})
        return b"".join([self.own, *(self._seed(other) for other in missing)])

    def _partners(self, sites: Collection[int]) -> list[int]:
        return sorted({*sites} & {*self.pair_keys} - {self.site})

    def _seed(self, other: int) -> bytes:
        primitives = library()
        from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

        info = b"isthmus mask 1\0" + struct.pack(">QI", self.sum, self.attempt)
        return HKDFExpand(primitives.hashes.SHA256(), SEED_NBYTES, info).derive(self.pair_keys[other])


def revealed_nbytes(missing: int) -> int:
    """Return the bytes that `reveal` gives where so many sites are missing."""
    return SEED_NBYTES * (1 + missing)


def unmask(
    total: Codes, present: Sequence[int], missing: Sequence[int], told: Mapping[int, bytes]
) -> None:
    """Take from the sum of the vectors of `present` what is left of masks in it.

    missing: who had begun with them. told: what each of the present has revealed; the hub's own vector
    is not in `total`.
    """
    for site in present:
        seeds = [
            told[site][first : first + SEED_NBYTES] for first in range(0, len(told[site]), SEED_NBYTES)
        ]
        Stream(seeds[0], -1).mask(total)
        for other, seed in zip(sorted(missing), seeds[1:], strict=True):
            Stream(seed, -_sign(site, other)).mask(total)


def _sign(site: int, other: int) -> int:
    return 1 if site < other else -1


def _check_count(sites: Collection[int]) -> None:
    if len(sites) < FEWEST:
        raise SecurityError(
            f"{len(sites)} sites contribute to a secure sum: of fewer than {FEWEST}, each would know "
            "what another has sent; look at why the others do not"
        )
