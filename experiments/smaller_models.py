"""What compression loses: perceptrons of 128 units, three seeds, a teacher at two temperatures.

    python experiments/smaller_models.py

The demo's training, in one process: 9,000 of the images of clothes to learn from, 3,000 by which rungs
are judged, and the 2,000 of the test set for the one that is kept. Models are their own teachers. Writes
a JSON line a ladder to data/measurements/smaller_models.jsonl, and prints tables; takes some minutes.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import tomli_w
from mpi4py import MPI

import isthmus
from isthmus.jobs.compressing import compress_run, compression_words
from isthmus.jobs.train import train
from isthmus.json_text import dumps
from isthmus.provenance import process_provenance
from isthmus.terminal import Terminal

DATA = Path(__file__).resolve().parent.parent / "data"
RESULTS = DATA / "measurements/smaller_models.jsonl"
SEEDS = (1, 2, 3)
LADDERS = {
    "int8": {"weights": "int8"},
    "teacher at 1": {"temperature": 1.0},
    "teacher at 4": {"temperature": 4.0},
}
LEARNT_SHARDS = range(45)  # of 60, which are alike; the others judge
SITE = {
    "name": "cloud",
    "tier": "cloud",
    "ranks": 1,
    "samples_per_second": 1e5,
    "network": {"latency_seconds": 1e-6, "bytes_per_second": 1e10},
}


def prepare(folder):
    """Pack both sets, and write the cluster's file and a settings file for each seed."""
    shards = isthmus.ShardSet.open(DATA / "fashion_mnist/train")
    read = [shards.read(number) for number in range(len(shards.samples))]
    for name, chosen in (("train", True), ("validation", False)):
        parts = [each for number, each in enumerate(read) if (number in LEARNT_SHARDS) == chosen]
        arrays = {key: np.concatenate([part[key] for part in parts]) for key in shards.arrays}
        isthmus.pack_shards(arrays, folder / name, 15)
    (folder / "cluster.toml").write_text(tomli_w.dumps({"site": [SITE]}))
    for seed in SEEDS:
        settings = {
            "cluster": {"file": "cluster.toml"},
            "data": {
                "train": "train",
                "validation": "validation",
                "test": str(DATA / "fashion_mnist/test"),
            },
            "model": {"kind": "perceptron", "hidden": [128]},
            "training": {
                "epochs": 10,
                "batch_size": 256,
                "learning_rate": 0.2,
                "schedule": "linear",
                "momentum": 0.9,
                "seed": seed,
            },
            "run": {"folder": "runs"},
        }
        (folder / f"{seed}.toml").write_text(tomli_w.dumps(settings))


def main():
    """Measure what is not measured yet."""
    terminal = Terminal()

    def say(line, passing=False):
        terminal.tell(line)

    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    there = {(line["seed"], line["ladder"]) for line in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for seed in SEEDS:
            settings, name = folder / f"{seed}.toml", f"seed{seed}"
            run = train(MPI.COMM_WORLD, settings, say, name=name)["folder"]
            for ladder in (each for each in LADDERS if (seed, each) not in there):
                chosen = LADDERS[ladder]
                teacher = run if "temperature" in chosen else None
                made = compress_run(run, teacher=teacher, overwrite=True, **chosen)
                for part in compression_words(made):
                    terminal.result(part)
                told = {key: made[key] for key in ("rungs", "best", "validation", "test", "file_nbytes")}
                what = {"seed": seed, "ladder": ladder, **told, **process_provenance()}
                with open(RESULTS, "a", encoding="utf-8") as file:
                    file.write(dumps(what) + "\n")


if __name__ == "__main__":
    sys.exit(main())
