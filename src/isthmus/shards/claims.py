"""What a file says that it holds, against the bytes that it has."""

from isthmus.errors import ShardError

HARMLESS_NBYTES = 64 << 20
MOST_TIMES = 40_000
"""Zstandard has at least 4 bytes for 128 KiB: 32,768 times fewer; gzip 1,032 times, LZ4 255."""


def check_claim(path, claimed_nbytes, stored_nbytes):
    """Raise ShardError if `path` claims to be far more bytes than those stored can be."""
    if claimed_nbytes > max(HARMLESS_NBYTES, MOST_TIMES * stored_nbytes):
        raise ShardError(
            f"{path}: claims to hold {claimed_nbytes:,} bytes and has {stored_nbytes:,}; "
            "nothing real is that small: fetch it from whom you trust, or write all its "
            "numbers"
        )
