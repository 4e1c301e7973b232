"""Who may join a job of several sites: a secret that all of them hold, or the keys of sites.

Neither crosses: each end proves what it has on what both have said just now, nonces among it.
"""

import hmac
import os
import stat
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from isthmus.cures import explained
from isthmus.errors import SecurityError
from isthmus.security.key_files import MOST_NBYTES, read_private, read_public

LEAST_TOKEN_NBYTES = 16


class Admission(Protocol):
    """What an end proves itself with, and tells others by."""

    def prove(self, said: bytes) -> bytes:
        """Return the proof of this end for `said`, which names its site and its part."""

    def holds(self, site: str, said: bytes, proof: bytes) -> bool:
        """Whether `proof` is one of `site` for `said`."""


class Token:
    """A secret that all sites share; an empty one lets everybody in."""

    def __init__(self, secret: bytes):
        self._secret = secret

    def prove(self, said: bytes) -> bytes:
        return hmac.digest(self._secret, b"isthmus join\0" + said, sha256)

    def holds(self, site: str, said: bytes, proof: bytes) -> bool:
        return hmac.compare_digest(self.prove(said), proof)


class SiteKeys:
    """The key of a site in `folder`, and the public ones of those that it trusts."""

    def __init__(self, folder: str | os.PathLike[str], site: str):
        self._folder, self._private = folder, read_private(folder, site)

    def prove(self, said: bytes) -> bytes:
        return self._private.sign(b"isthmus join\0" + said)

    def holds(self, site: str, said: bytes, proof: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        known = read_public(self._folder, site)
        if known is None:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(known).verify(proof, b"isthmus join\0" + said)
        except InvalidSignature:
            return False
        return True


def read_token(path: str | os.PathLike[str]) -> Token:
    """Return the token in a file. SecurityError unless it is its owner's alone, and long enough.

    What the file holds is in no message.
    """
    path = Path(path).expanduser()
    make = (
        f"make it on one site, (umask 077; head -c 32 /dev/urandom | base64 > {path}), and bring it here"
    )
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            text = os.read(descriptor, MOST_NBYTES) if stat.S_ISREG(found.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as problem:
        raise SecurityError(f"{path}: {explained(problem, make)}") from None
    if found.st_mode & 0o077:
        raise SecurityError(
            f"{path}: mode {stat.S_IMODE(found.st_mode):#o} lets others in; chmod 600 {path}, and make "
            "another token if somebody may have read it"
        )
    secret = text.strip()
    if len(secret) < LEAST_TOKEN_NBYTES:
        raise SecurityError(
            f"{path}: holds {len(secret)} bytes, a token has {LEAST_TOKEN_NBYTES} or more; {make}"
        )
    return Token(secret)
