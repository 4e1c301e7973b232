"""Which samples of a set are which client's: splits of a whole set into clients.

A client is rows of one shard, so that it is wherever that shard is. Every client has one sample at
least: one that would have none is given the last of the client that has most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from isthmus.errors import ShardError
from isthmus.kinds import of_kind
from isthmus.quantities import real, whole
from isthmus.vectors import part_bounds

Numbers = npt.NDArray[np.integer]


class Split(Protocol):
    """How samples are split. takes_classes: whether by their classes, which need not be known else."""

    takes_classes: ClassVar[bool]

    def parts(self, labels: Numbers, count: int) -> list[Numbers]:
        """Return the numbers of each client's samples.

        labels: int[samples], their classes; of any numbers where classes are not asked for.
        """


@dataclass(frozen=True)
class Iid:
    """Each client has as many samples as any other, by chance."""

    takes_classes: ClassVar[bool] = False

    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole("seed", self.seed, least=0))

    def parts(self, labels: Numbers, count: int) -> list[Numbers]:
        order = _random(self.seed).permutation(len(labels))
        return np.split(order, part_bounds(len(labels), count)[1:-1])


@dataclass(frozen=True)
class Dirichlet:
    """The shares that clients have of a class are drawn from a Dirichlet distribution.

    As Yurochkin et al. 2019 (arXiv:1905.12022) and Li et al. 2022 (arXiv:2102.02079) have it: the
    smaller `alpha` is, the fewer clients have most of a class; clients differ in size too.
    """

    takes_classes: ClassVar[bool] = True

    alpha: float
    seed: int = 0

    def __post_init__(self) -> None:
        if real("alpha", self.alpha, least=0) == 0:
            raise ValueError("alpha must be greater than 0, not 0")
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "seed", whole("seed", self.seed, least=0))

    def parts(self, labels: Numbers, count: int) -> list[Numbers]:
        draw = _random(self.seed)
        parts: list[list[Numbers]] = [[] for _ in range(count)]
        for rows in _rows_of_classes(labels, draw):
            shares = draw.dirichlet(np.full(count, self.alpha))
            # Of very small alphas all shares may be NaN: then one client has the class.
            if not np.isfinite(shares).all():
                shares = np.eye(count)[draw.integers(count)]
            ends = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for part, own in zip(parts, np.split(rows, ends)):
                part.append(own)
        return _none_empty([np.concatenate(part) for part in parts])


@dataclass(frozen=True)
class ClassesEach:
    """Each client has samples of so many classes alone (McMahan et al. 2017, arXiv:1602.05629)."""

    takes_classes: ClassVar[bool] = True

    classes_each: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("classes_each", 1), ("seed", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))

    def parts(self, labels: Numbers, count: int) -> list[Numbers]:
        draw = _random(self.seed)
        rows_of_class = _rows_of_classes(labels, draw)
        classes = len(rows_of_class)
        if not self.classes_each <= classes <= count * self.classes_each:
            raise ShardError(
                f"{classes} classes cannot be split among {count} clients of {self.classes_each} each: "
                f"classes_each must be at most {classes}, and clients must have all of them together"
            )
        clients_of_class: list[list[int]] = [[] for _ in range(classes)]
        for client in range(count):  # those that the fewest have, by chance among them
            held = [len(clients) for clients in clients_of_class]
            mixed = draw.permutation(classes)
            for kind in mixed[np.argsort(np.array(held)[mixed], kind="stable")][: self.classes_each]:
                clients_of_class[kind].append(client)
        parts: list[list[Numbers]] = [[] for _ in range(count)]
        for rows, clients in zip(rows_of_class, clients_of_class):
            for client, own in zip(clients, np.split(rows, part_bounds(len(rows), len(clients))[1:-1])):
                parts[client].append(own)
        return _none_empty([np.concatenate(part) for part in parts])


@dataclass(frozen=True)
class ByOwner:
    """Each client has the samples that bear its number, in their order; the numbers come as labels."""

    takes_classes: ClassVar[bool] = True

    def parts(self, labels: Numbers, count: int) -> list[Numbers]:
        _, counts = np.unique(labels, return_counts=True)
        return np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])


SPLITS: dict[str, Any] = {"iid": Iid, "dirichlet": Dirichlet, "classes_each": ClassesEach}
"""Name in a settings file -> class."""
FIRST = {"dirichlet": "alpha", "classes_each": "classes_each"}
"""Name -> the argument that it may stand for, as in { classes_each = 2 }."""


def split_of(value: Any) -> Any:
    """Return the split that `value` is or tells; ValueError for what is none.

    value: a Split; a table with `kind` and its arguments, or { dirichlet = 0.1 }; or text, the kind and
    then its numbers, as "iid" or "dirichlet:0.1:SEED".
    """
    if isinstance(value, Mapping):
        arguments = dict(value)
        kind = arguments.pop("kind", None)
        if kind is None and (named := [name for name in FIRST if name in arguments]):
            kind = named[0]
            arguments[FIRST[kind]] = arguments.pop(kind)
    elif isinstance(value, str):
        kind, *numbers = value.split(":")
        names = ([FIRST[kind]] if kind in FIRST else []) + ["seed"]
        if len(numbers) > len(names):
            raise ValueError(
                f"split {kind!r:.80} takes {', '.join(names)}, not {':'.join(numbers)!r:.80}"
            )
        arguments = {name: _number(text) for name, text in zip(names, numbers, strict=False)}
    elif hasattr(value, "parts") and not isinstance(value, type):
        return value
    else:
        kind, arguments = value, {}
    if kind in FIRST and FIRST[kind] not in arguments:
        raise ValueError(f"split {kind!r} needs {FIRST[kind]}")
    return of_kind("split", {"kind": kind, **arguments}, SPLITS)


def _number(text):
    """Return the number that `text` is; as it is where it is none."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def client_order(labels: Numbers, count: int | None, split: Split) -> tuple[Numbers, list[int]]:
    """Return samples in the order of their clients, and how many each client has.

    labels: int[samples], as `Split.parts` takes them. count: of clients; None where labels tell.
    ShardError where there are fewer samples than that.
    """
    count = 1 if count is None else whole("clients", count, least=1)
    if count > len(labels):
        raise ShardError(
            f"{len(labels)} samples cannot make {count} clients; ask for 1 to {len(labels)}"
        )
    parts = split.parts(labels, count)
    return np.concatenate(parts), [len(part) for part in parts]


def shard_bounds(sizes: Sequence[int], shards: int) -> list[int]:
    """Return the first client of each shard, and the number of all: shards hold clients whole.

    sizes: samples of each client. Shards have about as many samples as each other, and a client each.
    """
    ends = np.cumsum(sizes)
    bounds = [0]
    for number in range(1, shards):
        wanted = int(np.searchsorted(ends, ends[-1] * number / shards, side="right"))
        bounds.append(min(max(wanted, bounds[-1] + 1), len(sizes) - shards + number))
    return [*bounds, len(sizes)]


def _rows_of_classes(labels, draw):
    """Return the numbers of the samples of each class there is, in random order."""
    return [draw.permutation(np.flatnonzero(labels == kind)) for kind in np.unique(labels)]


def _none_empty(parts):
    """Give every client a sample."""
    for client, part in enumerate(parts):
        if not len(part):
            richest = max(range(len(parts)), key=lambda number: len(parts[number]))
            parts[client], parts[richest] = parts[richest][-1:], parts[richest][:-1]
    return parts


def _random(seed):
    return np.random.Generator(np.random.PCG64(seed))
