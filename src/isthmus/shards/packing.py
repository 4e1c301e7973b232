"""From arrays to a folder of shards, in which a whole set stands at every moment once there was one."""

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from isthmus.errors import PolicyError, ShardError
from isthmus.files import check_folder, remove_leftovers, replacing
from isthmus.quantities import whole
from isthmus.security.at_rest import FileKey, new_key
from isthmus.shards.clients import ByOwner, client_order, shard_bounds, split_of
from isthmus.shards.manifest import NAME, NUMBERS, Manifest
from isthmus.shards.order import packing_order, set_apart
from isthmus.shards.pack_folder import (
    alone_in,
    remove_files,
    shard_names,
    shards_in,
    standing_files,
    use_plain_names,
)
from isthmus.shards.parts import ClassCounts, Part
from isthmus.shards.policy import Policy
from isthmus.shards.rows import Rows
from isthmus.shards.shard_file import ShardSet, write_shard
from isthmus.vectors import part_bounds

VALIDATION = "validation"
"""The folder, in that of a set, of the samples that were set apart from it."""
COMPRESSIONS = ("lz4", "zstd", "gzip", "none")


def pack_shards(
    arrays: Mapping[str, npt.ArrayLike | Rows],
    folder: str | os.PathLike[str],
    shards: int = 64,
    compression: str = "lz4",
    overwrite: bool = False,
    *,
    shuffle: int | None = None,
    stratify: bool = False,
    validation: float = 0.0,
    clients: int | npt.ArrayLike | Rows | None = None,
    split: Any = "iid",
    policy: Policy | Mapping[str, Any] | None = None,
    keys: str | os.PathLike[str] = "keys",
    sealed: bool = False,
) -> ShardSet:
    """Pack `arrays`, name -> array with one row a sample, into `shards` HDF5 files in `folder`.

    Each file is written under a temporary name and renamed, chunked, compressed and checksummed;
    the manifest comes last, so that a folder with a manifest is whole. The same arrays give the same
    bytes. compression: "lz4", "zstd", "gzip" or "none". overwrite: take the place of another packed
    set, which stands until the new one does. What a pack that was killed left in `folder` is removed.

    shuffle: the seed of a random order. stratify: the last array holds class numbers, and every shard
    gets its share of each. validation: the share of samples, the last ones in that order, that make a
    set of their own in `folder`/validation, of as many shards for their number.

    clients: the number of the client that each row is of, an array of whole numbers; or how many clients
    to `split` the samples into: "iid", or a table as in [clients] of a run's settings,
    {"kind": "dirichlet", "alpha": 0.1, "seed": 0}. Each is rows of one shard; there are no more shards
    than clients, who are numbered anew from 0, in the order of their numbers. Not of what is set apart.

    policy: the site where the samples were born, and those that may read them, {"origin": "edge",
    "readers": ["edge"]}, and of some shards others: "shards": [{"numbers": [0], "readers": ["cloud"]}].
    It is signed with each origin's private key, which lies in the folder `keys`. sealed: files are
    encrypted for the readers, whose .pub lie there.

    Held in memory at a time are at most two shards, and the order: see `packing_order`. Arrays may be
    larger than memory: np.load(FILE, mmap_mode="r"), or what `open_arrays` gives.

    Returns the ShardSet. Raises ShardError for arrays that do not fit each other, and for a folder that
    holds another packed set unless `overwrite`; PolicyError or SecurityError for a policy that cannot be
    signed; OutputError if it cannot be written, and then all is as it was.
    """
    folder, shards = Path(folder), whole("shards", shards)
    columns = {name: _checked(name, values) for name, values in arrays.items()}
    samples = _samples_of(columns)
    if compression not in COMPRESSIONS:
        raise ShardError(f"compression must be one of {', '.join(COMPRESSIONS)}, not {compression!r}")
    seed = None if shuffle is None else whole("shuffle", shuffle, least=0)
    apart = set_apart(samples, validation)
    kept = samples - apart
    if not 1 <= shards <= max(kept, 1):
        raise ShardError(f"{kept} samples cannot make {shards} shards; ask for 1 to {kept}")
    order = packing_order(samples, seed, _labels(columns) if stratify else None)
    sizes = None
    if clients is not None:
        order, sizes = _by_client(columns, order, samples, kept, clients, split_of(split))
        shards = min(shards, len(sizes))
    sets = [NewSet(folder, 0, kept, shards, sizes)]
    if apart:
        sets.append(NewSet(folder / VALIDATION, kept, apart, max(1, shards * apart // kept)))
    publics: dict[str, bytes] = {}
    if policy is not None:
        policy = policy if isinstance(policy, Policy) else Policy.of(policy, "policy")
        policy.check(keys, shards, apart > 0)
        publics = policy.publics(keys) if sealed else {}
    elif sealed:
        raise PolicyError("to seal shards takes a policy, which says for whom; give an origin")
    with _new_sets(sets, overwrite) as names_of:
        manifests = []
        for new, names in zip(sets, names_of):
            file_keys = [FileKey(new_key()) for _ in names] if sealed else None
            manifest = _write(new, names, columns, order, compression, file_keys)
            if policy is not None:
                manifest = policy.signed(manifest, keys, file_keys, publics)
            manifests.append(manifest)
        _switch(sets, manifests)
    return ShardSet.open(folder, None if policy is None else keys)


class NewSet(NamedTuple):
    """A set to be written: where, from which number in the order of packing on, how much, in what."""

    folder: Path
    first: int
    samples: int
    shards: int
    clients: list[int] | None = None  # samples of each, in that order

    def parts(self) -> Iterator[tuple[int, int, list[int] | None]]:
        """Yield of each shard from where to where it is in the order of packing, and its clients."""
        if self.clients is None:
            for first, last in itertools.pairwise(part_bounds(self.samples, self.shards)):
                yield self.first + first, self.first + last, None
            return
        ends = [self.first, *(self.first + np.cumsum(self.clients)).tolist()]
        for first, last in itertools.pairwise(shard_bounds(self.clients, self.shards)):
            yield ends[first], ends[last], self.clients[first:last]


def _by_client(columns, order, samples, kept, clients, split):
    """Return the order of packing with the first `kept` samples by client, and each client's samples."""
    order = np.arange(samples) if order is None else order
    if np.ndim(clients):
        owners = clients[:] if isinstance(clients, Rows) else np.asarray(clients)
        if owners.shape != (samples,) or owners.dtype.kind not in "iu":
            raise ShardError(
                f"clients must be a whole number for each of the {samples} samples, not {owners.dtype} "
                f"of shape {list(owners.shape)}; give a number of clients, or such an array"
            )
        mixed, sizes = client_order(owners[order[:kept]], None, ByOwner())
    else:
        labels = _labels(columns) if split.takes_classes else np.zeros(samples, np.uint8)
        mixed, sizes = client_order(labels[order[:kept]], clients, split)
    return np.concatenate([order[:kept][mixed], order[kept:]]), sizes


def _write(new, names, columns, order, compression, file_keys):
    """Write the files of a set, and return its Manifest, which is written later.

    file_keys: with which they are sealed; None where they are not.
    """
    entries, classes = [], ClassCounts(list(columns.values())[-1])
    for number, (file, (first, last, clients)) in enumerate(zip(names, new.parts())):
        parts = {name: Part(values, first, last, order) for name, values in columns.items()}
        counted = classes.of_shard()
        list(parts.values())[-1].look = counted
        key = file_keys and file_keys[number]
        digest, of_arrays = write_shard(new.folder / file, parts, compression, key)
        entries.append(
            {"file": file, "samples": last - first, "sha256": digest, "arrays_sha256": of_arrays}
            | ({} if clients is None else {"clients": clients})
        )
    if classes.found is not None and file_keys is None:  # who has no key is not told of classes either
        for entry, counted in zip(entries, classes.found):
            entry["samples_of_class"] = dict(sorted(counted.items()))
    named = getattr(list(columns.values())[-1], "classes", None)
    return Manifest.of(
        {
            "arrays": {
                name: {"shape": values.shape[1:], "dtype": values.dtype.newbyteorder("<").str}
                for name, values in columns.items()
            },
            "shards": entries,
            **({"class_names": named} if named else {}),
            **({"set_apart": True} if new.first else {}),
        },
        new.folder / NAME,
    )


def _switch(sets, manifests):
    """Have the new sets stand: from now on their manifests are there.

    A set that was set apart from the one which goes is no use beside the one that comes, whose samples
    it may hold: it goes first.
    """
    folder = sets[0].folder
    apart = set_apart_from(folder)
    old = apart and apart.manifest
    texts = {new.folder / NAME: manifest.text for new, manifest in zip(sets, manifests)}
    with ExitStack() as written:
        if old is not None:
            written.push(lambda kind, *_: kind and _bring_back(folder, manifests[0], old))
        for path, text in reversed(texts.items()):  # the block's end puts the last one there first
            written.enter_context(replacing(path)).write_text(text)
        if old is not None:
            (folder / VALIDATION / NAME).unlink()
    if old is not None and len(sets) == 1:
        remove_files(folder / VALIDATION, {shard.file for shard in old.shards})
        with suppress(OSError):
            (folder / VALIDATION).rmdir()


def _bring_back(folder, new, old):
    """Have the set apart that stood stand again, unless the new one does that it is not apart from."""
    with suppress(ShardError):
        if Manifest.read(folder) == new:
            return
    old.write(folder / VALIDATION)


def set_apart_from(folder: Path) -> ShardSet | None:
    """Return the ShardSet that was set apart from the one in `folder`; None where there is none."""
    try:
        found = ShardSet.open(folder / VALIDATION)
    except ShardError:
        return None
    return found if found.manifest.set_apart else None


@contextmanager
def _new_sets(sets, overwrite):
    """Give for each of `sets` the names of its files, as `_new_set` does."""
    with ExitStack() as opened:
        names = []
        for new in sets:
            if new.first:
                opened.callback(_remove_if_empty, new.folder)
            names.append(opened.enter_context(_new_set(new.folder, new.shards, overwrite)))
        yield names


def _remove_if_empty(folder):
    with suppress(OSError):
        folder.rmdir()


def _samples_of(columns):
    """Return how many rows all `columns` have."""
    if not columns:
        raise ShardError("there is nothing to pack: give at least one array")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ShardError(
            f"arrays must have one row a sample, as many as each other: {told}; give "
            "arrays of the same samples"
        )
    return next(iter(lengths.values()))


def _labels(columns):
    """Return the class numbers in the last of `columns`."""
    name, values = list(columns.items())[-1]
    if values.dtype.kind not in "iub" or values.ndim != 1:
        raise ShardError(
            f"to stratify takes class numbers, and {name!r}, the last array, is {values.dtype} of shape "
            f"{list(values.shape[1:])} a sample; give class numbers last, or leave --stratify out"
        )
    return values[:]


@contextmanager
def _new_set(folder, shards, overwrite):
    """Give names for the files of a new set, which the block writes, and then their manifest.

    No file of the set that stands has one of these names: it stands until the new one does. Then its
    files are removed and the new ones get their plain names.
    """
    check_folder(folder, "choose another folder")
    with alone_in(folder):
        standing = standing_files(folder)
        if standing is not None and not overwrite:
            raise ShardError(
                f"{folder}: already holds a packed set; choose another folder, or "
                "overwrite it with --overwrite"
            )
        standing = standing or set()
        remove_leftovers(folder)
        remove_files(folder, shards_in(folder) - standing)
        names = next(
            names
            for times in itertools.count()
            if not standing & set(names := shard_names(shards, times))
        )
        strange = next((name for name in names if os.path.lexists(folder / name)), None)
        if strange and not overwrite:
            raise ShardError(
                f"{folder / strange}: is there, and is of no packed set; choose another "
                "folder, or overwrite it with --overwrite"
            )
        try:
            yield names
        finally:  # also where something fails before or after the new manifest is there
            remove_files(folder, standing.union(names) - (standing_files(folder) or set()))
        use_plain_names(folder)


def _checked(name, values):
    """Return `values` as numbers with rows, in memory or not."""
    if not isinstance(values, Rows):
        values = np.asarray(values)
    if not str(name).isidentifier():
        raise ShardError(f"array {name!r}: a name is letters, digits and underscores")
    if values.dtype.kind not in NUMBERS:
        raise ShardError(
            f"array {name!r} is of dtype {values.dtype}; shards hold numbers: integers, "
            "floats or booleans"
        )
    if values.ndim == 0:
        raise ShardError(f"array {name!r} is a single number; give one row a sample")
    return values
