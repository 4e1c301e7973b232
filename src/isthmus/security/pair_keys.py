"""The keys of a job's messages: made for it, vouched for by the sites, and gone with it.

Each rank makes an X25519 key pair; its site signs the public half with the site's Ed25519 key. Two
ranks share what X25519 gives them (RFC 7748), and HKDF-SHA256 (RFC 5869) makes of it one key for each
communicator and direction. The salt is the hash of all that was said, so that ranks who were told
different things have different keys, and the first message does not open.
"""

import resource
import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from isthmus.errors import SecurityError
from isthmus.security.key_files import library

HELLO = struct.Struct("32s64s")
"""What a rank is announced with: its public key of this job, and its site's signature."""


def statement(context: bytes, rank: int, site: str, public: bytes) -> bytes:
    """Return what a site signs: that in this job the key `public` is that of its rank `rank`.

    context: 32 bytes, the hash of what all ranks must have in common.
    """
    return b"isthmus hello 1\0" + context + struct.pack(">I", rank) + public + site.encode()


class PairKeys:
    """This rank's half of the keys that it shares with ranks of other sites.

    A process that has keys leaves no core file.
    """

    def __init__(self) -> None:
        self._primitives = library()
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        self._private: Any = self._primitives.asymmetric.x25519.X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()
        self._secrets: dict[int, bytes] = {}
        self._salt = b""
        self._purposes = 0

    def meet(self, context: bytes, hellos: Sequence[bytes], strangers: Sequence[int]) -> None:
        """Share a secret with each of the ranks `strangers`, and forget the private key.

        hellos: of each rank, 96 bytes, whose signatures the leaders have verified. SecurityError for a
        public key that gives no secret.
        """
        self._salt = sha256(context + b"".join(hellos)).digest()
        for rank in strangers:
            theirs, _ = HELLO.unpack(hellos[rank])
            try:
                public = self._primitives.asymmetric.x25519.X25519PublicKey.from_public_bytes(theirs)
                self._secrets[rank] = self._private.exchange(public)
            except ValueError:
                raise SecurityError(
                    f"rank {rank} gives a key that keeps nothing secret; look at what its site runs"
                ) from None
        self._private = None

    def key(self, communicator: str, source: int, target: int, other: int) -> bytes:
        """Return the 32 bytes for messages from rank `source` to `target`, of which `other` is not this
        one."""
        info = b"isthmus link 1\0" + struct.pack(">II", source, target) + communicator.encode()
        return self._derived(info, other)

    def purpose(self) -> bytes:
        """Return the name of one more use of `shared`: the same on ranks that ask in the same order."""
        self._purposes += 1
        return struct.pack(">Q", self._purposes)

    def shared(self, purpose: bytes, other: int) -> bytes:
        """Return 32 bytes that this rank and rank `other` have for that purpose, and nobody else has."""
        return self._derived(b"isthmus shared 1\0" + purpose, other)

    def _derived(self, info: bytes, other: int) -> bytes:
        primitives = self._primitives
        derivation = primitives.kdf.hkdf.HKDF(primitives.hashes.SHA256(), 32, self._salt, info)
        return derivation.derive(self._secrets[other])


def signed(private: Any, context: bytes, site: str, publics: Mapping[int, bytes]) -> list[bytes]:
    """Return the hello of each of a site's ranks, signed with the site's private key."""
    return [
        HELLO.pack(public, private.sign(statement(context, rank, site, public)))
        for rank, public in publics.items()
    ]


def verify(key: bytes, context: bytes, rank: int, site: str, hello: bytes) -> None:
    """Raise SecurityError unless `site`, whose public key is `key`, has signed the hello of `rank`."""
    primitives = library()
    public, signature = HELLO.unpack(hello)
    try:
        primitives.asymmetric.ed25519.Ed25519PublicKey.from_public_bytes(key).verify(
            signature, statement(context, rank, site, public)
        )
    except Exception:  # InvalidSignature, or no point of the curve
        raise SecurityError(
            f"site {site!r} does not sign with the key that is known as its own; bring its new .pub to "
            "every site's folder of keys, or find out who else speaks for it"
        ) from None
