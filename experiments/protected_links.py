"""What seals, secure sums and robust means cost on slow links, beside plain sums: bytes and seconds.

    python experiments/protected_links.py [ENTRIES] [TURNS]

As root, with the extra isthmus[security]: a testbed of a cloud and four edge sites, each 100 Mbit/s and
5 ms from it. In each turn every kind of sum is made once, one after another, so that what else the
machine does falls on all of them. Prints what it finds, and writes it to
data/measurements/protected_links.jsonl.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import isthmus

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "data/measurements/protected_links.jsonl"
SITES = ("cloud", "north", "east", "south", "west")


def cluster_table():
    """Return the cluster: one rank a site, all linked to the cloud."""
    return {
        "hub": "cloud",
        "site": [
            {"name": name, "tier": "edge" if number else "cloud", "ranks": 1, "samples_per_second": 1e3}
            for number, name in enumerate(SITES)
        ],
        "link": [
            {"between": ["cloud", name], "latency_seconds": 0.005, "bytes_per_second": 12.5e6}
            for name in SITES[1:]
        ],
    }


def measure(cluster_path, keys, entries, turns):
    """Time all kinds in turns, on every rank; rank 0 prints a line of JSON."""
    from mpi4py import MPI

    from isthmus.links.agreement import gather_json
    from isthmus.links.comm import Wrapped
    from isthmus.links.world import barrier

    cluster, comm, int8 = isthmus.Cluster.from_toml(cluster_path), MPI.COMM_WORLD, isthmus.Int8()
    with (
        isthmus.split_tiers(comm, cluster) as clear,
        isthmus.split_tiers(comm, cluster, keys=keys) as sealed,
    ):
        kinds = {
            "int8": (clear, {"compressor": int8}),
            "int8, in Python": (clear.through(lambda comm, ranks: Wrapped(comm)), {"compressor": int8}),
            "int8, sealed": (sealed, {"compressor": int8}),
            "secure sum, repeat, 8 bits, sealed": (sealed, {"secure": isthmus.SecureSum("repeat")}),
            "secure sum, reveal, 8 bits, sealed": (sealed, {"secure": isthmus.SecureSum("reveal")}),
            "int8, median": (clear, {"compressor": int8, "combine": isthmus.RobustMean("median")}),
            "int8, krum": (clear, {"compressor": int8, "combine": isthmus.RobustMean("krum")}),
        }
        sums = {
            name: isthmus.Allreduce(tiers, entries, **named) for name, (tiers, named) in kinds.items()
        }
        vector = np.random.default_rng(comm.rank).normal(0, 0.02, entries).astype("f4")
        found = {name: [] for name in kinds}
        for turn in range(turns + 1):
            for name, allreduce in sums.items():
                barrier(clear.world)
                start = time.perf_counter()
                allreduce(vector)
                seconds = max(gather_json(clear.world, time.perf_counter() - start))
                if turn:  # the first warms up
                    found[name].append(seconds)
        for name, allreduce in sums.items():
            nbytes = gather_json(clear.world, [allreduce.sent_nbytes, allreduce.predicted_nbytes()])
            sent = sum(each["link"] for each, _ in nbytes) / (turns + 1)
            if comm.rank == 0:
                print(
                    json.dumps(
                        {
                            "what": name,
                            "sites": len(SITES),
                            "entries": entries,
                            "turns": turns,
                            "link_nbytes": sent,
                            "formula_nbytes": sum(each["link"] for _, each in nbytes),
                            "seconds": float(np.median(found[name])),
                            "ratio": float(np.median(np.divide(found[name], found["int8"]))),
                            "least_ratio": float(np.min(np.divide(found[name], found["int8"]))),
                            "most_ratio": float(np.max(np.divide(found[name], found["int8"]))),
                        }
                    ),
                    flush=True,
                )


def main(entries, turns):
    """Bring the testbed up, have its ranks measure, and keep what they print."""
    import subprocess

    import tomli_w

    from isthmus.security.key_files import make_keys

    with tempfile.TemporaryDirectory() as folder:
        path, keys = Path(folder, "cluster.toml"), Path(folder, "keys")
        path.write_text(tomli_w.dumps(cluster_table()))
        for name in SITES:
            make_keys(keys, name)
        command = [
            sys.executable,
            "-m",
            "isthmus",
            "testbed",
            "run",
            "--name",
            "protected",
            str(path),
            "--",
        ]
        command += [sys.executable, "-m", "mpi4py", __file__, "--inside", str(path), str(keys)]
        made = subprocess.run([*command, str(entries), str(turns)], stdout=subprocess.PIPE, text=True)
    if made.returncode:
        raise SystemExit(f"the testbed's job ended with {made.returncode}; see above")
    lines = [line for line in made.stdout.splitlines() if line.startswith("{")]
    for line in map(json.loads, lines):
        print(
            f"{line['what']:36} {line['link_nbytes'] / 1e6:7.2f} MB  {line['seconds']:.3f} s  "
            f"{line['ratio']:.3f} x int8 ({line['least_ratio']:.3f} to {line['most_ratio']:.3f})"
        )
    OUTPUT.write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        measure(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    else:
        main(*(list(map(int, sys.argv[1:])) or [4_000_000, 9]))
