"""What `[recovery] survive` costs a step in which nobody dies: steps with and without, in turns.

    python experiments/survive_cost.py [CASE ...]

Four ranks at two sites, int8, under `mpirun --with-ft ulfm`, train with all of `isthmus train` but the
report's page. Of the same run BLOCK steps are made with what a rank does in order to survive (it keeps
what the step, or the round, changes, and agrees with all others before all have another), the next BLOCK
without, and so on, so that whatever else the machine does falls on both. What it costs is the median
over pairs of such blocks of the ratio of the median step, or of the median round's mean step, less 1.
Leaves a line of JSON for each case in data/measurements/survive_cost.jsonl, in the place of the one
before; imports MPI in ranks alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tomli_w
from study import code

from isthmus.jobs.launch import rank_command, rank_environment
from isthmus.provenance import process_provenance

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "data/measurements/survive_cost.jsonl"
BLOCK, STEPS_OF_EPOCH = 20, 47
CASES = {
    # name: (width of the hidden layer, how links and computing are, blocks, steps of a round)
    "the demo, paced": (128, "paced", 60, 1),
    "the demo's model on one machine": (128, "real", 200, 1),
    "2.4 million parameters on one machine": (3000, "real", 30, 1),
    "the demo's model on one machine, rounds of 10": (128, "real", 100, 10),
    "2.4 million parameters on one machine, rounds of 10": (3000, "real", 30, 10),
}


def main(asked):
    for name, (width, how, blocks, every) in CASES.items():
        if asked and name not in asked:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            run, output = Path(scratch, "run.toml"), Path(scratch, "steps.json")
            run.write_text(tomli_w.dumps(settings(width, how, blocks, every, scratch)))
            command = rank_command(4, __file__, "rank", run, output)
            command[1:1] = ["--with-ft", "ulfm"]
            subprocess.run(command, env=rank_environment(), check=True, timeout=500)
            found = json.loads(output.read_text())
        row = {"case": name, "parameters": found["parameters"], **told(found["seconds"], every)}
        row |= {"block": BLOCK, "load": os.getloadavg()[0], "code": code()}
        print(json.dumps(row), flush=True)
        lines = [line for line in RESULTS.read_text().splitlines() if json.loads(line)["case"] != name]
        lines.append(json.dumps(row | {"process": process_provenance()}))
        RESULTS.write_text("".join(f"{line}\n" for line in lines))


def settings(width, how, blocks, every, folder):
    """Return a run's settings: the demo's, with another layer, and as many epochs as blocks take."""
    data = HERE.parent / "data/fashion_mnist"
    return {
        "cluster": {"file": str(HERE / "two_sites.toml"), "links": how, "compute": how},
        "data": {"train": str(data / "train"), "test": str(data / "test")},
        "model": {"kind": "perceptron", "hidden": [width]},
        "training": {
            "epochs": -(-BLOCK * blocks // STEPS_OF_EPOCH) + 1,
            "batch_size": 256,
            "learning_rate": 0.02,
            "momentum": 0.9,
            "compare_replicas_every": 10_000,
        },
        "allreduce": {"algorithm": "hierarchical", "compressor": {"kind": "int8", "block": 256}},
        "strategy": "synchronous" if every == 1 else {"kind": "local_steps", "every": every},
        "recovery": {"survive": True},
        "run": {"folder": folder},
    }


def told(seconds, every):
    """Return what a list of seconds, a step each, says of blocks with (even) and without (odd).

    every: steps of a round.
    """
    whole = len(seconds) // (2 * BLOCK) * 2 * BLOCK
    rounds = np.reshape(seconds[:whole], (-1, 2, BLOCK // every, every)).mean(axis=3)
    medians = np.median(rounds, axis=2)[1:]  # the first warms up
    ratios = medians[:, 0] / medians[:, 1]
    lower, middle, upper = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "step_ms": 1e3 * float(np.median(medians[:, 1])),
        "more_ms": 1e3 * float(np.median(medians[:, 0] - medians[:, 1])),
        "cost": middle - 1,
        "quartiles": [lower - 1, upper - 1],
        "error": float(1.2533 * ratios.std() / np.sqrt(len(ratios))),  # of a median, standard
        "pairs": len(ratios),
    }


def rank(run, output):
    """Train as one of the ranks; the first writes the seconds of each step."""
    from mpi4py import MPI

    from isthmus.jobs import train
    from isthmus.jobs.job import Job

    seconds, parameters = [], []

    class Alternating(Job):
        """A job that looks after itself in every other block of steps alone."""

        kept = began = None

        def _do(self, duties):
            now = time.perf_counter()
            seconds.append(now - (self.began or now))
            parameters[:] = [self.training.model.size]
            super()._do(duties)
            self.kept = self.kept or (self.agree, self.journal.meet)
            if self.training.state.step % BLOCK == 0:
                survives = self.training.state.step // BLOCK % 2 == 0
                self.agree, self.journal.meet = self.kept if survives else (None, lambda *_: None)
                self.training.agree = self.agree
            self.began = time.perf_counter()

    train.Job = Alternating
    train.train(MPI.COMM_WORLD, run, lambda line, passing=False: None)
    if MPI.COMM_WORLD.rank == 0:
        Path(output).write_text(json.dumps({"seconds": seconds, "parameters": parameters[0]}))
    os._exit(0)  # as all do who survive: MPI's own end may wait


if __name__ == "__main__":
    rank(*sys.argv[2:]) if sys.argv[1:2] == ["rank"] else main(sys.argv[1:])
