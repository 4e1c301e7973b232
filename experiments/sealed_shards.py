"""What it takes to read shards that are sealed at rest, beside the same shards in clear.

    python experiments/sealed_shards.py [ROUNDS]

Needs `pip install -e '.[security]'`; half a minute. The shipped training images, and noise that nothing
compresses, are packed in clear and sealed; both are read whole in turns, warm, in one process. A line
a set is printed as JSON: median seconds of a processor to open a set (of the sealed one the policy is
verified, and a key is unwrapped for each file) and to read it with all its checks, bytes of the files,
and the ratio of each pair of readings: median, least and largest.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import isthmus
from isthmus.security.key_files import make_keys

DATA = Path(__file__).resolve().parent.parent / "data/fashion_mnist/train"
NOISE_NBYTES, SHARDS = 64 << 20, 16


def sets():
    """Yield (name, arrays, shards, compression) of what is packed."""
    images = isthmus.ShardSet.open(DATA)
    read = [images.read(number) for number in range(len(images.names))]
    arrays = {name: np.concatenate([each[name] for each in read]) for name in images.arrays}
    yield "images, lz4", arrays, len(images.names), "lz4"
    noise = np.random.default_rng(0).normal(size=(NOISE_NBYTES // 4096, 1024)).astype("f4")
    noise = {"features": noise, "targets": np.arange(len(noise)) % 10}
    yield "noise, none", noise, SHARDS, "none"
    yield "noise, lz4", noise, SHARDS, "lz4"


def seconds_of(act):
    """Return what `act` gives, and the seconds of a processor that it takes, whoever else has it."""
    begun = time.process_time()
    made = act()
    return made, time.process_time() - begun


def measured(folder, keys, rounds):
    """Return the seconds of opening and of reading the clear and the sealed set, round by round."""
    found = {"clear": [], "sealed": []}
    for number in range(rounds + 1):
        for kind in ("clear", "sealed") if number % 2 else ("sealed", "clear"):
            shards, opened = seconds_of(
                lambda kind=kind: isthmus.ShardSet.open(folder / kind, keys=keys)
            )
            _, took = seconds_of(
                lambda shards=shards: [shards.read(each) for each in range(len(shards.names))] and None
            )
            if number:  # the first loads libraries and fills the cache
                found[kind].append((opened, took))
    return {kind: np.array(seconds).T for kind, seconds in found.items()}


def main(rounds="15"):
    """Print a line a set."""
    for name, arrays, shards, compression in sets():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make_keys(folder / "keys", "edge")
            isthmus.pack_shards(arrays, folder / "clear", shards, compression)
            sealed = isthmus.pack_shards(
                arrays,
                folder / "sealed",
                shards,
                compression,
                policy={"origin": "edge"},
                keys=folder / "keys",
                sealed=True,
            )
            found = measured(folder, folder / "keys", int(rounds))
            ratios = found["sealed"][1] / found["clear"][1]
            line = {
                "set": name,
                "shards": shards,
                "nbytes": sum(sealed.nbytes),
                "file_nbytes": {
                    kind: isthmus.ShardSet.open(folder / kind).packed_nbytes for kind in found
                },
                "open_seconds": {kind: float(np.median(each[0])) for kind, each in found.items()},
                "read_seconds": {kind: float(np.median(each[1])) for kind, each in found.items()},
                "ratio": [float(np.median(ratios)), float(ratios.min()), float(ratios.max())],
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
