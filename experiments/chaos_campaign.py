"""Kill ranks of hundreds of runs, one or two in each, at named moments: does every one keep its promise?

    python experiments/chaos_campaign.py [--kills N] [--seed S] [--minutes M] [-o FILE]
    python experiments/chaos_campaign.py --plain ...           # each run started as a user would
    python experiments/chaos_campaign.py --served SOCKET ...   # by a `warm_ranks.py serve` that is there
    python experiments/chaos_campaign.py --sites ...           # each site a job of its own
    python experiments/chaos_campaign.py --hubs ...            # and two of them may be the hub
    python experiments/chaos_campaign.py --rounds ...          # local_steps in the place of synchronous

A run has 3 to 6 ranks at two or three sites, and a case depends on (S, its number) alone: how many
ranks, the compressor, who is killed, when. All of `isthmus train` runs there (not the report's page), in
ranks that fork from a process that has imported everything, or from Python's start (--plain). With
--sites ranks are killed, stopped and frozen, links are cut, closed and slowed, bits flip on them, and
sites come back; with --hubs two of the sites listen. With --rounds sites exchange after every 2 to 5
steps. Each run is played again by `isthmus verify`: bits, and how often each sample was taken. A run
that has ended is started once more, and must then be right. Results are added, a line a run, to
data/measurements/chaos_campaign.jsonl (or FILE), where the next start goes on. Exit code 1 if a run
was wrong.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tomli_w
from study import code

import isthmus
from isthmus.jobs.chaos import ISTHMUS, play_faults
from isthmus.jobs.fault_plans import random_faults
from isthmus.jobs.site_fault_plans import random_site_faults
from isthmus.json_text import dumps, loads

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "data/measurements/chaos_campaign.jsonl"
SITES = ((2, 1), (1, 1, 1), (2, 2), (3, 1), (2, 2, 1), (3, 2), (3, 2, 1), (2, 2, 2))
COMPRESSORS = (None, {"kind": "int8", "block": 8}, {"kind": "top_k", "ratio": 0.1})
SITES_APART = ((1, 1), (1, 1, 1), (1, 1, 1, 1), (2, 1, 1), (1, 2, 1))
KINDS_APART = ("kill", "kill", "kill", "stop", "freeze", "cut", "cut", "close", "slow", "flip")
RECOVERY_APART = {"deadline_seconds": 3.0, "wait_seconds": 60.0}
SECONDS = 120.0
"""After which a run counts as hung; one takes about a second of a core."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--sites", action="store_true")
    parser.add_argument("--hubs", action="store_true")
    parser.add_argument("--rounds", action="store_true")
    parser.add_argument("--served", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    until, mode = time.monotonic() + 60 * asked.minutes, "plain" if asked.plain else "forked"
    mode = ("hubs" if asked.hubs else "sites" if asked.sites else mode) + ", rounds" * asked.rounds
    hubs = 2 if asked.hubs else 1 if asked.sites else 0
    made = [row for row in read(asked.output) if (row["mode"], row["seed"]) == (mode, asked.seed)]

    def left():
        return sum(row["happened"] for row in made) < asked.kills and time.monotonic() < until

    if not left():
        print(summary(made))
        return 0 if all(row["right"] for row in made) else 1
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        run = compiled(Path(scratch)) if asked.served is None else None
        with plain() if asked.plain else warm(Path(scratch), asked.served, run) as program:
            while left():
                case = len(made), asked.seed, program, hubs, asked.rounds
                row = play(Path(scratch), *case)
                made.append(row | {"mode": mode} | code() | {"date": time.strftime("%Y-%m-%dT%H:%M:%S")})
                with open(asked.output, "a") as file:
                    file.write(dumps(made[-1]) + "\n")
                if not row["right"]:
                    print(dumps(row), flush=True)
    print(summary(made))
    return 0 if all(row["right"] for row in made) else 1


def read(path):
    """Return the rows of all runs so far."""
    return [loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def prepare(folder):
    """Pack 120 samples in 6 shards, for learning and for judging."""
    draw = np.random.default_rng(0)
    for name in ("train", "test"):
        arrays = {
            "features": draw.normal(size=(120, 8)).astype("f4"),
            "targets": draw.integers(0, 3, 120, dtype="u1"),
        }
        isthmus.pack_shards(arrays, folder / "data" / name, 6)


def settings(folder, number, seed, hubs=0, rounds=False):
    """Write the settings and the cluster file of a case; return the settings' path, and its ranks.

    hubs: of how many sites each may be the hub, where each is a job of its own. rounds: whether sites
    exchange now and then.
    """
    draw = np.random.default_rng([seed, number])
    choice = [each for each in SITES_APART if len(each) > hubs] if hubs else SITES
    sites = choice[int(draw.integers(len(choice)))]
    compressor = COMPRESSORS[int(draw.integers(len(COMPRESSORS)))]
    fast = {"latency_seconds": 1e-5, "bytes_per_second": 1e9}
    cluster = {
        "site": [
            {
                "name": f"site{site}",
                "tier": "edge" if site else "cloud",
                "ranks": ranks,
                "samples_per_second": 1000.0 / (site + 1),
                "network": fast,
            }
            for site, ranks in enumerate(sites)
        ],
        "link": [
            {"between": [f"site{site}", f"site{other}"], **fast}
            for site in range(len(sites))
            for other in range(site)
        ],
    }
    table = {
        "cluster": {"file": "cluster.toml"},
        "data": {"train": "data/train", "test": "data/test"},
        "model": {"kind": "perceptron", "inputs": 8, "hidden": [8], "classes": 3},
        "training": {"epochs": 2, "batch_size": 24},
        "allreduce": {"chunk_nbytes": 128} | ({"compressor": compressor} if compressor else {}),
        "run": {"folder": "runs", "checkpoint_every": 3},
        "recovery": {"survive": True} | (RECOVERY_APART if hubs else {}),
    }
    if rounds:
        table["strategy"] = {"kind": "local_steps", "every": int(draw.integers(2, 6))}
    (folder / "cluster.toml").write_text(tomli_w.dumps(cluster))
    (folder / "run.toml").write_text(tomli_w.dumps(table))
    return folder / "run.toml", list(sites)


def play(folder, number, seed, program, hubs, rounds):
    """Play a case; return its row."""
    path, sites = settings(folder, number, seed, hubs, rounds)
    of_run, listen = seed * 1_000_000 + number, [f"site{hub}" for hub in range(hubs)]
    if listen:
        faults = random_site_faults(path, 1, of_run, KINDS_APART, listen)
    else:
        faults = random_faults(path, 1, of_run)
    began = time.monotonic()
    (row,) = play_faults(path, faults, SECONDS, lambda line: None, program, listen)["runs"]
    row |= {"run": number, "seed": seed, "sites": sites, "wall_seconds": time.monotonic() - began}
    row.pop("folder")
    if row["right"]:
        row.pop("said")
    return row


def compiled(folder):
    """Return the folder of a run to which nothing happens, after which the kernels are compiled."""
    path, _ = settings(folder, 0, 0)
    (row,) = play_faults(path, [[]], 10 * SECONDS, lambda line: None)["runs"]
    return row["folder"]


@contextmanager
def warm(folder, served, run):
    """Give a program that is `isthmus` in a process that was forked from one which has all in memory.

    served: the socket of such a one that is there; None: it is started, and ended. run: a run's folder.
    """
    server, place = str(HERE / "warm_ranks.py"), str(served or folder / "socket")
    if served is not None:
        yield (sys.executable, "-IS", server, place)
        return
    forks = subprocess.Popen([sys.executable, server, "serve", place, run], stdout=subprocess.PIPE)
    try:
        assert forks.stdout.readline() == b"ready\n"
        yield (sys.executable, "-IS", server, place)
    finally:
        forks.terminate()
        forks.wait()


@contextmanager
def plain():
    """Give the program that a user starts."""
    yield ISTHMUS


def summary(rows):
    """Return what all runs came to, in words."""
    killed, outcomes = sum(row["happened"] for row in rows), {}
    for row in rows:
        outcomes[row["outcome"]] = outcomes.get(row["outcome"], 0) + 1

    def told(key):
        seconds = sorted(each for row in rows for each in row[key] if each is not None)
        if not seconds:
            return "none"
        tenth = seconds[int(0.95 * (len(seconds) - 1))]
        return f"{statistics.median(seconds):.2f} s (95 % {tenth:.2f} s, most {seconds[-1]:.2f} s)"

    return (
        f"{len(rows)} runs, {killed} faults: {sum(not row['right'] for row in rows)} wrong; "
        + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        + f"; noticed after {told('noticed')}, went on after {told('seconds')}"
    )


if __name__ == "__main__":
    sys.exit(main())
