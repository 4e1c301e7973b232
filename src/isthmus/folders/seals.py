"""JSON of a run's folder: a table tells first which format it has, and last a checksum of all before."""

import zlib

from isthmus.json_text import dumps, loads

KEY = "crc32"
BEFORE = f', "{KEY}": '.encode()
FORMAT = 1
"""What is written and read: one more when what is there already is renamed, dropped or means another
thing. New keys are no new format. What tells of none is of the first."""


class FormatError(Exception):
    """What is read is whole, and of a format that this program does not know."""


def sealed(table, indent=None):
    """Return the JSON of a table that is not empty, with format and checksum, and a line's end."""
    body = dumps({"format": FORMAT, **table}, indent).rstrip()[:-1].rstrip()
    return f"{body}{BEFORE.decode()}{zlib.crc32(body.encode())}}}\n"


def unsealed(text):
    """Return what the JSON in `text` (bytes) says, without its format and checksum.

    Raises ValueError if the checksum is another, and FormatError if the format is. What has no checksum
    is of an older version, or of another program: it is taken as it is.
    """
    body, found, told = text.rpartition(BEFORE)
    if found and told.strip() != f"{zlib.crc32(body)}}}".encode():
        raise ValueError("its checksum is not that of what it holds")
    value = loads(text)
    if isinstance(value, dict):
        value.pop(KEY, None)
        found = value.pop("format", 1)
        if found != FORMAT or isinstance(found, bool):
            raise FormatError(
                f"is of format {found!r:.40}, this program reads {FORMAT}; use the "
                "isthmus that wrote it, whose version run.json tells"
            )
    return value
