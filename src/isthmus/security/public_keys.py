"""Public keys as people pass them on: one line of text, as OpenSSH writes those of kind Ed25519."""

import base64
import binascii
from hashlib import sha256

KIND = "ssh-ed25519"
_HEAD = b"\x00\x00\x00\x0b" + KIND.encode() + b"\x00\x00\x00\x20"
KEY_NBYTES = 32


def key_bytes(line: str) -> bytes:
    """Return the 32 bytes of an Ed25519 public key that `line` holds; ValueError where it holds none."""
    kind, _, rest = line.strip().partition(" ")
    try:
        blob = base64.b64decode(rest.partition(" ")[0], validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    if kind != KIND or len(blob) != len(_HEAD) + KEY_NBYTES or not blob.startswith(_HEAD):
        raise ValueError(f"must be a line as `isthmus keys show` gives it, which begins with {KIND}")
    return blob[len(_HEAD) :]


def key_line(key: bytes, name: str = "") -> str:
    """Return the line that holds a public key of 32 bytes, and whose it is."""
    return f"{KIND} {base64.b64encode(_HEAD + key).decode()} {name}".rstrip()


def fingerprint(key: bytes) -> str:
    """Return what people compare, the same that `ssh-keygen -lf SITE.pub` says."""
    digest = base64.b64encode(sha256(_HEAD + key).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"
