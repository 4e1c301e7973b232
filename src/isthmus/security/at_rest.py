"""Bytes at rest that only some sites can open: keys of files wrapped for sites, and content in segments.

A file has a key of its own, which is wrapped for each site that may open it, by HPKE (RFC 9180) with
X25519, HKDF-SHA256 and AES-256-GCM. Content is AES-256-GCM in segments, by STREAM (Hoang et al. 2015,
doi:10.1007/978-3-662-47989-6_24) as age has it: the nonce is a segment's number and whether it is the
last, so that none can be left out, put elsewhere or cut off. All primitives are those of `cryptography`.
"""

import hmac
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from typing import Any, BinaryIO

from isthmus.security.key_files import library

KEY_NBYTES, TAG_NBYTES = 32, 16
SEGMENT_NBYTES = 1 << 18
HEAD = b"isthmus sealed 1"
"""What a sealed file begins with."""


class DamagedError(Exception):
    """Sealed bytes do not open; what else is to be said of it the caller knows."""


def new_key() -> bytes:
    """Return a key for one file."""
    return os.urandom(KEY_NBYTES)


def derived(secret: bytes, info: bytes, salt: bytes = b"", nbytes: int = KEY_NBYTES) -> bytes:
    """Return so many bytes that HKDF-SHA256 makes of a secret for one use."""
    primitives = library()
    return primitives.kdf.hkdf.HKDF(primitives.hashes.SHA256(), nbytes, salt, info).derive(secret)


def wrap(key: bytes, site: str, public: bytes, purpose: bytes) -> bytes:
    """Return `key` so that only `site`, whose X25519 public key is `public`, gets it back; 80 bytes."""
    theirs = library().asymmetric.x25519.X25519PublicKey.from_public_bytes(public)
    return _suite().encrypt(key, theirs, _wrapping(site, purpose))


def unwrap(wrapped: bytes, site: str, private: Any, purpose: bytes) -> bytes:
    """Return the key that was wrapped for `site`, whose X25519 key is `private`; else DamagedError."""
    from cryptography.exceptions import InvalidTag

    try:
        return _suite().decrypt(wrapped, private, _wrapping(site, purpose))
    except (InvalidTag, ValueError):
        raise DamagedError("is wrapped for another key") from None


class FileKey:
    """What is done with the key of one file: its content, and digests that tell others nothing."""

    def __init__(self, key: bytes):
        self._key = key

    @property
    def secret(self) -> bytes:
        return self._key

    def digest(self, name: str) -> Any:
        """Return an HMAC-SHA256, to be updated, of what is called `name`: another with every key."""
        return hmac.new(self._keys[KEY_NBYTES:], name.encode() + b"\0", sha256)

    def wraps(self, publics: Mapping[str, bytes], purpose: bytes) -> dict[str, str]:
        """Return the key wrapped for each site, as hexadecimal text. publics: their X25519 keys."""
        return {site: wrap(self._key, site, key, purpose).hex() for site, key in publics.items()}

    def seal(self, content: bytes) -> Iterator[bytes]:
        """Yield the bytes of a sealed file, piece by piece."""
        aead, plain = self._content(), memoryview(content)
        yield HEAD
        segments = _segments(len(plain))
        for number in range(segments):
            part = plain[number * SEGMENT_NBYTES : (number + 1) * SEGMENT_NBYTES]
            yield aead.encrypt(_nonce(number, number == segments - 1), part, HEAD)

    def open(self, file: BinaryIO, nbytes: int) -> BytesIO:
        """Return the content of a sealed file of so many bytes, in memory alone.

        DamagedError tells what is wrong with it.
        """
        from cryptography.exceptions import InvalidTag

        whole = SEGMENT_NBYTES + TAG_NBYTES
        segments, rest = divmod(nbytes - len(HEAD), whole)
        segments += rest > 0
        if file.read(len(HEAD)) != HEAD or segments < 1 or 0 < rest < TAG_NBYTES:
            raise DamagedError("does not begin or end as a sealed file does")
        aead, room, held = self._content(), BytesIO(), bytearray(min(whole, nbytes))
        content_nbytes = nbytes - len(HEAD) - segments * TAG_NBYTES
        if content_nbytes:
            room.seek(content_nbytes - 1)
            room.write(b"\0")
            room.seek(0)
        with room.getbuffer() as place:
            for number in range(segments):
                came = file.readinto(held)  # type: ignore[attr-defined]
                first = number * SEGMENT_NBYTES
                part = place[first : first + SEGMENT_NBYTES]
                try:
                    if came != len(part) + TAG_NBYTES:
                        raise InvalidTag
                    nonce = _nonce(number, number == segments - 1)
                    aead.decrypt_into(nonce, memoryview(held)[:came], HEAD, part)
                except InvalidTag:
                    raise DamagedError(f"does not open at its segment {number} of {segments}") from None
                finally:
                    part.release()
        return room

    @cached_property
    def _keys(self):
        """The key of the content, and that of digests."""
        return derived(self._key, b"isthmus file 1", nbytes=2 * KEY_NBYTES)

    def _content(self):
        return library().ciphers.aead.AESGCM(self._keys[:KEY_NBYTES])


def _segments(nbytes):
    return max(1, -(-nbytes // SEGMENT_NBYTES))


def _nonce(number, last):
    return number.to_bytes(11, "big") + bytes([last])


def _suite():
    from cryptography.hazmat.primitives import hpke

    return hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def _wrapping(site, purpose):
    return b"isthmus wrap 1\0" + purpose + b"\0" + site.encode()
