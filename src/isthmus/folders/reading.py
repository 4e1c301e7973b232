"""A run's folder, read: what made it, what was planned, what was measured."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from isthmus.cluster.cluster import Cluster
from isthmus.cures import explained
from isthmus.errors import SettingsError
from isthmus.files import open_plain
from isthmus.folders.contents import PlanTable, Provenance, Summary
from isthmus.folders.metric_lines import ANY_LINE, LINES
from isthmus.folders.seals import FormatError, unsealed
from isthmus.folders.terms import typical_terms


@dataclass(frozen=True)
class Run:
    """What the files of a run tell; `summary` is None while the run has not made its last step."""

    folder: Path
    provenance: dict
    plan: dict
    summary: dict | None
    metrics: tuple[dict, ...]
    cluster: Cluster

    @property
    def name(self):
        return self.folder.absolute().name

    @property
    def settings(self):
        return self.provenance["settings"]

    @cached_property
    def steps(self):
        return self._lines("step")

    @cached_property
    def evaluations(self):
        return self._lines("evaluation")

    @cached_property
    def validations(self):
        return self._lines("validation")

    @cached_property
    def best(self):
        """The line of the epoch that the validation set liked best; None where there is no such set."""
        return next((line for line in reversed(self.validations) if line["best"]), None)

    @cached_property
    def replica_hashes(self):
        """Step -> hash of the parameters, which every rank had."""
        return {line["step"]: line["hash"] for line in self._lines("replicas")}

    @cached_property
    def terms(self):
        """(name, predicted seconds, measured seconds) of each term of a step that takes time.

        Measured are the medians of all steps so far; None before the first.
        """
        if self.summary:
            rows = [
                (term["name"], term["predicted_seconds"], term["measured_seconds"])
                for term in self.summary["terms"]
            ]
        else:
            measured = self._typical[0] if self.steps else dict.fromkeys(self.plan["terms"])
            rows = [
                (name, self.plan["terms"].get(name, 0.0), seconds) for name, seconds in measured.items()
            ]
        return [row for row in rows if max(row[1], row[2] or 0.0) > 0]

    @cached_property
    def step_seconds(self):
        """(predicted, measured) seconds of a step: the median of all; None before the first."""
        if self.summary:
            return tuple(self.summary["step"][f"{name}_seconds"] for name in ("predicted", "measured"))
        return self.plan["step_seconds"], self._typical[1] if self.steps else None

    @cached_property
    def _typical(self):
        return typical_terms((line["terms"], line.get("exchanged", True)) for line in self.steps)

    @cached_property
    def link_nbytes(self):
        """Bytes that crossed links between sites, all of them together."""
        if self.summary:
            return sum(link["sent_nbytes"] for link in self.summary["links"])
        return self.steps[-1]["sent_nbytes"]["link"] if self.steps else 0

    def _lines(self, kind):
        return [line for line in self.metrics if line["kind"] == kind]


def read_run(folder):
    """Return the Run in `folder`, finished or not.

    Raises SettingsError in one line if the folder is not a run's or a file in it is damaged.
    """
    folder = Path(folder)
    provenance = read_table(folder / "run.json", Provenance)
    plan = read_table(folder / "plan.json", PlanTable)
    cluster = Cluster.from_toml(folder / "cluster.toml")
    for key in ("shards_of_rank", "samples_of_rank", "seconds_of_rank"):
        if len(plan[key]) != cluster.size:
            raise SettingsError(
                f"{folder / 'plan.json'}: {key} tells of {len(plan[key])} ranks, "
                f"cluster.toml of {cluster.size}; one of them is of another run"
            )
    path, summary = folder / "metrics.jsonl", None
    metrics = read_metrics(path)
    if (folder / "summary.json").exists():
        summary = read_table(folder / "summary.json", Summary)
    last_step = max((line["step"] for line in metrics if line["kind"] == "step"), default=0)
    if not is_finished(summary, plan["steps"], epochs_of(provenance["settings"]), last_step):
        return Run(folder, provenance, plan, None, metrics, cluster)
    told = max((line["step"] for line in metrics), default=0)
    if told < summary["steps"] or not read_bytes(path).endswith(b"\n"):
        raise SettingsError(
            f"{path}: tells of no step after {told}, summary.json of "
            f"{summary['steps']}; its end is missing"
        )
    return Run(folder, provenance, plan, summary, metrics, cluster)


def read_metrics(path):
    """Return the lines of the metrics.jsonl at `path`; SettingsError names the first damaged one."""
    found = []
    for number, _, table, wrong in read_lines(path):
        if wrong:
            raise SettingsError(f"{path}: line {number} {wrong}; the file is damaged: remove that line")
        found.append(table)
    return tuple(found)


def read_table(path, kind):
    """Return the JSON table in `path`, a `kind`; SettingsError in one line if it is not one.

    What another version of isthmus wrote, in a format of its own, is not damaged, and is told apart.
    """
    try:
        return TypeAdapter(kind).validate_python(unsealed(read_bytes(path)))
    except FileNotFoundError:
        raise SettingsError(
            f"{path}: no such file; name the folder of a run, such as runs/NAME-DATE"
        ) from None
    except FormatError as problem:
        raise SettingsError(f"{path}: {problem}") from None
    except ValueError as problem:
        raise SettingsError(
            f"{path}: {in_words(problem)}; the run's folder is damaged, or of another program"
        ) from None


def read_lines(path):
    """Yield (number, bytes, table, what is wrong) of each line of the metrics.jsonl at `path`.

    table: checked, None where something is wrong. A last line that is still being written, or that a
    killed run left so, is left out. A file that is not there has no lines. SettingsError names the first
    line of another format, which is not damaged and not for this program to put aside.
    """
    try:
        lines = read_bytes(path).split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        try:
            table, wrong = check_line(line), None
        except FormatError as problem:
            raise SettingsError(f"{path}: line {number} {problem}") from None
        except ValueError as problem:
            table, wrong = None, in_words(problem)
        if table or number < len(lines):
            yield number, line, table, wrong


def check_line(line):
    """Return the table that a line of metrics.jsonl (bytes) holds; ValueError if it is none."""
    table = ANY_LINE.validate_python(unsealed(line))
    return LINES[table["kind"]].validate_python(table) if table["kind"] in LINES else table


def read_bytes(path):
    """Return what the file `path` holds; FileNotFoundError, or SettingsError if it cannot be read."""
    try:
        with open_plain(path) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as problem:
        raise SettingsError(
            f"{path}: cannot be read: {explained(problem, 'look at the file and its disk')}"
        ) from None


def in_words(problem):
    """Say in a few words what a ValueError of reading and checking found."""
    if not isinstance(problem, ValidationError):
        return f"cannot be read ({problem})"
    first = problem.errors(include_url=False, include_context=False)[0]
    where = " ".join(".".join(map(str, first["loc"])).split())
    if first["type"] == "missing":
        return f"tells no {where!r}"
    given = f"{first['input']!r:.40}"
    if not where:
        return f"holds {given}, which is no table"
    return f"gives {where} = {given}; {first['msg'].replace('Input should', 'it must', 1)}"


def is_finished(summary, steps_an_epoch, epochs, last_step):
    """Whether a run's summary (None: there is none) is of its last step.

    A run that was told to go on, with more epochs, has an old one until it ends again. steps_an_epoch,
    epochs: None where they are not known. One that has stopped early was told where its last step is.
    """
    if summary is not None and summary.get("stopped_early"):
        return summary.get("steps", last_step) == last_step
    return summary is not None and summary.get("steps", last_step) >= max(
        last_step, (steps_an_epoch or 0) * (epochs or 0)
    )


def epochs_of(settings: dict[str, Any]):
    """Return the epochs that a run's settings ask for, None where they do not say."""
    return settings.get("training", {}).get("epochs")
