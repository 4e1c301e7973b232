"""Allreduces under mpirun, as `isthmus bench collectives` times them: the slowest rank counts.

One mpirun for each rank count measures all that the figures pick from. On real links, which are this
machine's shared memory, ranks that share cores make noise; paced links are held to 100 Mbit/s and 10 ms.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tomli_w

import isthmus
from isthmus.jobs.launch import mpirun, rank_environment

TWO_SITES = Path(__file__).resolve().parent.parent / "two_sites.toml"
RANKS, SIZES = (4, 8), (16_384, 65_536, 262_144, 1_048_576)
EXACT = ("mpi", "ring", "tree", "recursive")
HIERARCHICAL = tuple(
    f"hierarchical, {compressor}"
    for compressor in ("none", "dense:dtype=float16", "int8", "int4", "one_bit", "top_k", "low_rank")
)
PACED = ("ring", "hierarchical, none", "hierarchical, int8", "hierarchical, one_bit")


def setup_cache():
    """Return [ranks, links, way, nbytes] as JSON -> the result that the verb prints."""
    measured = {}
    for ranks in RANKS:
        measured |= measure(ranks, "real", EXACT + HIERARCHICAL, SIZES)
    return measured | measure(4, "paced", PACED, SIZES[-1:])


def measure(ranks, links, ways, sizes):
    """Run one mpirun of `ranks` ranks, half of them at either site."""
    table = isthmus.Cluster.from_toml(TWO_SITES).to_table()
    for site in table["site"]:
        site |= {"ranks": ranks // 2, "samples_per_second": 1000.0}
    algorithms, compressors = (
        dict.fromkeys(names) for names in zip(*((*way.split(", "), "none")[:2] for way in ways))
    )
    options = [f"--algorithm={name}" for name in algorithms]
    options += [f"--compressor={name}" for name in compressors]
    with tempfile.TemporaryDirectory() as folder:
        cluster = Path(folder, "cluster.toml")
        cluster.write_text(tomli_w.dumps(table))
        done = subprocess.run(
            [
                mpirun(),
                "-n",
                str(ranks),
                sys.executable,
                "-m",
                "isthmus",
                "bench",
                "collectives",
                str(cluster),
                "--links",
                links,
                *options,
                "--smallest",
                str(sizes[0]),
                "--largest",
                str(sizes[-1]),
                "--seconds",
                "0.2",
                "--output",
                folder,
                "--json",
            ],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            env=rank_environment(),
        )
    results = json.loads(done.stdout)["results"]
    return {key(ranks, links, way_of(result), result["nbytes"]): result for result in results}


def way_of(result):
    """Return the algorithm, and for `hierarchical` its compressor."""
    hierarchical = result["algorithm"] == "hierarchical"
    return f"hierarchical, {result['compressor']}" if hierarchical else result["algorithm"]


def key(*what):
    """Return what names a result."""
    return json.dumps(what)


class SharedMemory:
    params = (RANKS, EXACT + HIERARCHICAL, SIZES)
    param_names = ("ranks", "way", "nbytes")
    unit = "seconds"

    def track_seconds(self, measured, ranks, way, nbytes):
        return {"samples": measured[key(ranks, "real", way, nbytes)]["seconds"], "number": 1}


class Paced:
    """Four ranks and 1 MB over the narrow link."""

    params = PACED
    param_names = ("way",)
    unit = "seconds"

    def track_seconds(self, measured, way):
        return {"samples": measured[key(4, "paced", way, SIZES[-1])]["seconds"], "number": 1}


class Link:
    """Bytes that crossed the cut for one entry of 1 MB, counted at the send calls, the busier way."""

    params = (RANKS, EXACT[1:] + HIERARCHICAL)  # MPI does not tell to whom it sends
    param_names = ("ranks", "way")
    unit = "bytes an entry"

    def track_bytes(self, measured, ranks, way):
        result = measured[key(ranks, "real", way, SIZES[-1])]
        return max(each["counted_nbytes"] for each in result["cut"]) / (result["nbytes"] / 4)
