"""JSON that tells when it was changed: the last entry of a table is a checksum of all before it."""

import zlib

from isthmus.json_text import dumps, loads

KEY = "crc32"
BEFORE = f', "{KEY}": '.encode()


def sealed(table, indent=None):
    """Return the JSON of a table that is not empty, with its checksum, and a line's end."""
    body = dumps(table, indent).rstrip()[:-1].rstrip()
    return f"{body}{BEFORE.decode()}{zlib.crc32(body.encode())}}}\n"


def unsealed(text):
    """Return what the JSON in `text` (bytes) says, without its checksum; ValueError if it is another.

    What has no checksum is of an older version, or of another program: it is taken as it is.
    """
    body, found, told = text.rpartition(BEFORE)
    if found and told.strip() != f"{zlib.crc32(body)}}}".encode():
        raise ValueError("its checksum is not that of what it holds")
    value = loads(text)
    if isinstance(value, dict):
        value.pop(KEY, None)
    return value
