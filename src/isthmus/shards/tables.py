"""Columns of numbers from CSV and TSV files, in bounded memory."""

import csv
import gzip
import io
import math
import tempfile
from pathlib import Path

import numpy as np

from isthmus.errors import ShardError
from isthmus.files import open_plain
from isthmus.shards.rows import StoredRows
from isthmus.toml_files import TEXT, nearest

SUFFIXES = (".csv", ".tsv", ".tab")
BLOCK_FIELDS = 1 << 16
LONGEST_LINE = 16 << 20
MOST_WHOLE = 2.0**53
BLUR = 1e-4
"""Share of a column's range that float32 may change; beyond it a table stays float64."""
MEMORY_NBYTES = 16 << 20
"""What is unpacked stays in memory up to here, and then goes to a file without a name."""


def is_table(path):
    """Whether a file's name is that of a CSV or TSV file, gzipped or not."""
    return Path(str(path).lower().removesuffix(".gz")).suffix in SUFFIXES


def open_tables(path, columns_of, scratch, opened):
    """Return name -> Rows of the CSV or TSV file `path`, whose numbers it reads once.

    columns_of: array -> "NAME,NAME,..." as in the first line, or numbers from 1 where that has numbers;
    "" for all columns that no other array takes. An array of one column has one number a sample, a
    whole one where all are; of several, a row of floats.
    scratch: the folder of what memory does not hold. opened: an ExitStack that closes the files.
    """
    delimiter = "\t" if ".csv" not in Path(path).name.lower() else None
    with open_plain(path) as stored:
        plain = gzip.GzipFile(fileobj=stored) if stored.read(2) == b"\x1f\x8b" else stored
        stored.seek(0)
        lines = _lines(path, io.TextIOWrapper(plain, encoding=TEXT, newline=""))
        try:
            return _read(path, lines, delimiter, columns_of, scratch, opened)
        except UnicodeDecodeError:
            raise ShardError(f"{path}: is not text in UTF-8; save it as that") from None
        except csv.Error as problem:
            raise ShardError(f"{path}: is no table: {problem}; mend that line") from None


def _lines(path, text):
    """Yield the lines of a file, which has an end of line now and then, or is none of a table."""
    while line := text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ShardError(f"{path}: has a line of {LONGEST_LINE >> 20} MiB; it is no table")
        yield line


def _read(path, lines, delimiter, columns_of, scratch, opened):
    first = next(lines, "")
    if delimiter is None:
        delimiter = ";" if ";" in first and "," not in first else ","
    records = csv.reader(_after(first, lines), delimiter=delimiter, strict=True)
    head = [field.strip() for field in next(records, [])]
    if not head:
        raise ShardError(f"{path}: is empty; give a file with a line a sample")
    has_names = any(_number(field) is None for field in head)
    names = head if has_names else [str(number + 1) for number in range(len(head))]
    arrays = {
        name: _Column(path, name, [names[place] for place in places], places, scratch, opened)
        for name, places in _places(path, names, columns_of).items()
    }
    block = [] if has_names else [(1, head)]
    for fields in records:
        if not fields:  # an empty line
            continue
        if len(fields) != len(names):
            raise ShardError(
                f"{path}: line {records.line_num} has {len(fields)} columns, the first has "
                f"{len(names)}; mend that line"
            )
        block.append((records.line_num, fields))
        if len(block) * len(names) >= BLOCK_FIELDS:
            _take(arrays, block)
    _take(arrays, block)
    return {name: array.rows() for name, array in arrays.items()}


def _after(first, lines):
    yield first
    yield from lines


def _take(arrays, block):
    for array in arrays.values():
        array.add(block)
    block.clear()


def _places(path, names, columns_of):
    """Return array -> places of its columns among `names`."""
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ShardError(f"{path}: has two columns {twice!r}; give them different names")
    place_of = {name: place for place, name in enumerate(names)}
    asked = {
        name: [column.strip() for column in columns.split(",")]
        for name, columns in columns_of.items()
        if columns
    }
    for columns in asked.values():
        for column in columns:
            if column not in place_of:
                shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                raise ShardError(
                    f"{path}: has no column {column!r}; "
                    + (nearest(column, names) or f"its columns are {shown}")
                )
    taken = {column for columns in asked.values() for column in columns}
    rest = [column for column in names if column not in taken]
    if len(asked) < len(columns_of) and not rest:
        raise ShardError(f"{path}: no column is left for the array without names; name its columns")
    return {name: [place_of[column] for column in asked.get(name, rest)] for name in columns_of}


class _Column:
    """The columns of one array while a table is read: numbers on a disk, and what they are like."""

    def __init__(self, path, name, names, places, scratch, opened):
        self.path, self.name, self.names, self.places = path, name, names, places
        self.file = opened.enter_context(
            tempfile.SpooledTemporaryFile(MEMORY_NBYTES, dir=scratch)  # noqa: SIM115
        )
        self.samples, self.whole = 0, True
        self.least, self.most, self.blur = np.inf, -np.inf, 0.0

    def add(self, block):
        """Take in the lines of `block`, (number, fields) of each."""
        if not block:
            return
        fields = [fields[place] for _, fields in block for place in self.places]
        try:
            values = np.array(list(map(float, fields)))
            good = np.isfinite(values).all()
        except ValueError:
            good = False
        if not good:
            self._refuse(block)
        values = values.reshape(len(block), len(self.places))
        self.samples += len(block)
        self.whole = self.whole and bool((values == np.rint(values)).all())
        self.least = np.minimum(self.least, values.min(axis=0))
        self.most = np.maximum(self.most, values.max(axis=0))
        with np.errstate(over="ignore", invalid="ignore"):
            self.blur = np.maximum(self.blur, np.abs(values - values.astype("f4")).max(axis=0))
        self.file.write(values.astype("<f8").tobytes())

    def _refuse(self, block):
        line, place = next(
            (line, place)
            for line, fields in block
            for place in self.places
            if _number(fields[place]) is None
        )
        field = dict(block)[line][place].strip()
        what = f"{field[:40]!r} is not a number" if field else "a number is missing"
        column = self.names[self.places.index(place)]
        raise ShardError(
            f"{self.path}: line {line}, column {column!r}: {what}; name the columns "
            f"of numbers, as in {self.name}={self.path}:NAME,NAME, or mend that line"
        )

    def rows(self):
        """Return what was read as Rows, in the dtype that holds it."""
        if not self.samples:
            raise ShardError(f"{self.path}: has no line after its first; give a line a sample")
        alone, largest = len(self.places) == 1, max(np.abs(self.least).max(), np.abs(self.most).max())
        dtype = "<f4"
        if alone and self.whole and largest <= MOST_WHOLE:
            dtype = "<i8"
        elif np.any((self.blur > BLUR * (self.most - self.least)) & (self.most > self.least)) or (
            largest > np.finfo("f4").max
        ):
            dtype = "<f8"
        shape = (self.samples,) if alone else (self.samples, len(self.places))
        rows = StoredRows(self.path, self.file, 0, shape, "<f8", dtype)
        columns = f"column {self.names[0]!r}" if alone else f"{len(self.names)} columns"
        rows.told = f"{columns} of {Path(self.path).name}, {np.dtype(dtype).name}"
        return rows


def _number(field):
    """Return the finite number that `field` says, or None."""
    try:
        value = float(field)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
