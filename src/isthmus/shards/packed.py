"""What a packed set came to: its size, its classes, and what is set apart from it."""

import itertools

from isthmus.shards.packing import set_apart_from

ENOUGH = 10
"""Samples of a class, on average, from which on class numbers are taken to be those of classes."""
MOST_NAMED = 12


def packed_table(packed):
    """Return a JSON table of the ShardSet `packed`, and of what is set apart from it."""
    apart = set_apart_from(packed.folder)
    return _table(packed) | ({"validation": _table(apart)} if apart else {})


def packed_words(packed):
    """Return the lines that tell of the ShardSet `packed`."""
    apart = set_apart_from(packed.folder)
    lines = [_size(packed), *_classes(packed), *_clients(packed), *_readers(packed)]
    if apart is not None:
        lines.append(f"{_size(apart)}: name it under [data] validation")
        lines += _lacking(packed, apart)
    return lines


def _table(packed):
    classes, names = packed.manifest.samples_of_class, packed.manifest.class_names
    return {
        "folder": str(packed.folder),
        "shards": len(packed.samples),
        "samples": sum(packed.samples),
        "nbytes": sum(packed.nbytes),
        "packed_nbytes": packed.packed_nbytes,
        "samples_of_class": classes and {str(kind): number for kind, number in classes.items()},
        "class_names": names and list(names),
        "samples_of_client": _sizes(packed),
        "sealed": packed.manifest.sealed,
        "readers": [shard.readers and list(shard.readers) for shard in packed.manifest.shards],
    }


def _size(packed):
    return (
        f"{packed.folder}: {sum(packed.samples)} samples in {len(packed.samples)} shards, "
        f"{_bytes(sum(packed.nbytes))} raw, {_bytes(packed.packed_nbytes)} packed"
    )


def _bytes(number):
    return f"{number / 1e6:.1f} MB" if number >= 100_000 else f"{number / 1e3:.1f} kB"


def _counts(packed):
    """Return samples by class number where the last array of the set holds classes, else {}."""
    counts = packed.manifest.samples_of_class or {}
    return counts if 1 < len(counts) <= sum(packed.samples) / ENOUGH else {}


def _classes(packed):
    """Return the lines on a set's classes: how many samples each has, and whether shards mix them."""
    counts = _counts(packed)
    if not counts:
        return []
    names = packed.manifest.class_names
    told = [
        f"{kind}{f' {names[kind]}' if names else ''} ({samples})" for kind, samples in counts.items()
    ]
    more = f", and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
    lines = [f"classes: {', '.join(told[:MOST_NAMED])}{more}"]
    alone = sum(len(shard.samples_of_class or ()) == 1 for shard in packed.manifest.shards)
    if alone > len(packed.samples) / 2:
        lines.append(
            f"{alone} of {len(packed.samples)} shards hold samples of one class alone; "
            "--shuffle SEED or --stratify mixes them"
        )
    return lines


def _clients(packed):
    """Return a line on the clients of a set: how many there are, and of how many samples."""
    sizes = _sizes(packed)
    if sizes is None:
        return []
    return [f"{len(sizes)} clients of {min(sizes)} to {max(sizes)} samples, each whole in a shard"]


def _readers(packed):
    """Return a line for each kind of shards with a policy: who may read so many of them."""
    kinds, sealed = {}, ", sealed," if packed.manifest.sealed else ""
    for shard in packed.manifest.shards if packed.manifest.signatures else ():
        kinds.setdefault((shard.origin, shard.readers), []).append(shard)
    return [
        f"{len(shards)} shards{sealed} for {' and '.join(readers)} alone to read, signed by {origin}"
        for (origin, readers), shards in kinds.items()
    ]


def _sizes(packed):
    """Return the samples of each client; None where there are none."""
    clients = packed.manifest.clients
    return clients and list(itertools.chain(*clients))


def _lacking(packed, apart):
    """Return a line on classes of which nothing was set apart."""
    found = apart.manifest.samples_of_class or {}
    lacking = [str(kind) for kind in _counts(packed) if kind not in found]
    if not lacking:
        return []
    more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
    return [
        f"{apart.folder}: has no sample of class {', '.join(lacking[:MOST_NAMED])}{more}; "
        "--shuffle SEED or --stratify mixes them"
    ]
