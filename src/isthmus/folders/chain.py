"""Lines of metrics.jsonl that hang together: each has a hash of itself and of all before it.

Whoever changes a line, or takes one out, has to write all that follow again; and the last hash is in
what each site has kept, and signed, at every checkpoint and at the end.
"""

from hashlib import sha256
from pathlib import Path

from isthmus.errors import RecordError
from isthmus.folders.reading import read_bytes
from isthmus.folders.seals import BEFORE, FORMAT, sealed
from isthmus.json_text import dumps, loads

BEGINNING = sha256(b"isthmus record 1").hexdigest()
_KEY = b', "chain": '


def linked(table, previous):
    """Return the line of `table`, with its hash after the hash `previous`, and that hash."""
    text = dumps({"format": FORMAT, **table}).rstrip()[:-1].rstrip()
    chain = _after(previous, text.encode())
    return sealed({**table, "chain": chain}), chain


def last_hash(lines):
    """Return the hash of the last of these lines (bytes), or that of a record's beginning."""
    return (_hash_of(lines[-1]) if lines else None) or BEGINNING


def read_chain(path):
    """Return the hash of every line of the metrics.jsonl at `path`.

    RecordError names the first line that is not what was written.
    """
    hashes = []
    try:
        *lines, rest = read_bytes(path).split(b"\n")
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file; name the folder of a run") from None
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        text, _, _ = line.rpartition(BEFORE)[0].rpartition(_KEY)
        told = _hash_of(line)
        if told is None:
            raise RecordError(
                f'{path}: line {number} has no hash: it was added, or written with record = "plain"; '
                "look for who else writes there"
            )
        if _after(hashes[-1] if hashes else BEGINNING, text) != told or not _is_whole(line):
            raise RecordError(
                f"{path}: line {number} is not what was written, or one before it is missing; compare "
                "with a copy that another site has kept"
            )
        hashes.append(told)
    return hashes


def file_hashes(folder, names=("run.json", "plan.json", "summary.json", "model.h5")):
    """Return name -> SHA-256 of those of a run's files that are there."""
    paths = [Path(folder, name) for name in names]
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in paths if path.exists()}


def _after(previous, text):
    return sha256(previous.encode() + text).hexdigest()


def _hash_of(line):
    """Return the hash that a line tells of itself; None where it tells none."""
    _, found, told = line.rpartition(BEFORE)[0].rpartition(_KEY)
    try:
        value = loads(told) if found else None
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _is_whole(line):
    """Whether nothing stands beside what the hash and the checksum are of."""
    try:
        table = loads(line)
    except ValueError:
        return False
    table.pop("format", None), table.pop("crc32", None)
    return sealed(table).encode() == line + b"\n"
