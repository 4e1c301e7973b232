"""Who is sampled, and the noise: from a secret of the site, so that nobody outside can take it away.

The source is AES-256 in counter mode, under a key for each run, rank and purpose, and a counter for each
step: the same key gives the same bits, so that a run which goes on repeats no draw for another sum.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.security.key_files import library

SAMPLE, NOISE = b"sample", b"noise"
PIECE = 1 << 15
"""Entries of noise that are drawn at once, so that they stay in the cache."""


def site_secret(private: Any, run: bytes) -> bytes:
    """Return 32 bytes that who has a site's private key, and nobody else, can make for a run.

    run: of 16 random bytes, so that no two runs draw alike.
    """
    primitives = library()
    derivation = primitives.kdf.hkdf.HKDF(primitives.hashes.SHA256(), 32, run, b"isthmus privacy 1\0")
    return derivation.derive(private.private_bytes_raw())


class Draws:
    """The draws of one rank for one purpose. secret: of its site, 32 bytes."""

    def __init__(self, secret: bytes, rank: int, purpose: bytes):
        primitives = library()
        info = b"isthmus draws 1\0" + struct.pack(">I", rank) + purpose
        derivation = primitives.kdf.hkdf.HKDF(primitives.hashes.SHA256(), 32, None, info)
        self._key = derivation.derive(secret)

    def sampled(self, step: int, samples: int, probability: float) -> npt.NDArray[np.int64]:
        """Return which of so many samples are in a step: each with `probability`, independently."""
        numbers = np.frombuffer(self._bits(step, 8 * samples), np.uint64)
        if probability >= 1:
            return np.arange(samples)
        return np.flatnonzero(numbers < np.uint64(int(probability * 2.0**64)))

    def noise(self, step: int, size: int) -> npt.NDArray[np.float32]:
        """Return float32[size], independent standard normals (Box and Muller 1958), at most 6.7."""
        pairs = -(-size // 2)
        words = np.frombuffer(self._bits(step, 8 * pairs), np.uint32).reshape(2, pairs)
        found = np.empty((2, pairs), np.float32)
        for first in range(0, pairs, PIECE):
            part = slice(first, first + PIECE)
            radius = words[0, part].astype(np.float32)
            radius += np.float32(1)
            radius *= np.float32(2.0**-32)
            np.log(radius, out=radius)
            radius *= np.float32(-2)
            np.sqrt(radius, out=radius)
            angle = words[1, part].astype(np.float32)
            angle *= np.float32(2 * np.pi * 2.0**-32)
            np.multiply(radius, np.cos(angle), out=found[0, part])
            np.multiply(radius, np.sin(angle, out=angle), out=found[1, part])
        return found.reshape(-1)[:size]

    def _bits(self, step: int, nbytes: int) -> bytes:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        mode = modes.CTR(struct.pack(">QQ", step, 0))
        return Cipher(algorithms.AES(self._key), mode).encryptor().update(bytes(nbytes))
