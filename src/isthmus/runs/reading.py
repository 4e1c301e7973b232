"""A run's folder, read: what made it, what was planned, what was measured."""

import json
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from isthmus.errors import SettingsError
from isthmus.topology.cluster import Cluster

NEEDED = {"run.json": ("settings", "hosts", "started"), "plan.json": ("terms", "step_seconds", "steps"),
          "summary.json": ("terms", "step", "steps", "links", "accuracy", "loss", "parameter_hash")}


@dataclass(frozen=True)
class Run:
    """What the files of a run tell; `summary` is None while the run has not finished."""

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
    def replica_hashes(self):
        """Step -> hash of the parameters, which every rank had."""
        return {line["step"]: line["hash"] for line in self._lines("replicas")}

    @cached_property
    def terms(self):
        """(name, predicted seconds, measured seconds) of each term of a step that takes time.

        Measured are the medians of all steps so far; None before the first.
        """
        if self.summary:
            rows = [(term["name"], term["predicted_seconds"], term["measured_seconds"])
                    for term in self.summary["terms"]]
        else:
            names = self.steps[0]["terms"] if self.steps else self.plan["terms"]
            rows = [(name, self.plan["terms"].get(name, 0.0),
                     statistics.median(line["terms"][name] for line in self.steps)
                     if self.steps else None) for name in names]
        return [row for row in rows if max(row[1], row[2] or 0.0) > 0]

    @cached_property
    def step_seconds(self):
        """(predicted, measured) seconds of a step: the median of all; None before the first."""
        if self.summary:
            return tuple(self.summary["step"][f"{name}_seconds"] for name in ("predicted", "measured"))
        return self.plan["step_seconds"], (statistics.median(
            sum(line["terms"].values()) for line in self.steps) if self.steps else None)

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
    provenance, plan = _table(folder / "run.json"), _table(folder / "plan.json")
    summary = _table(folder / "summary.json") if (folder / "summary.json").exists() else None
    return Run(folder, provenance, plan, summary, _lines(folder / "metrics.jsonl"),
               Cluster.from_toml(folder / "cluster.toml"))


def _table(path):
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SettingsError(f"{path}: no such file; name the folder of a run, such as "
                            "runs/NAME-DATE") from None
    except (OSError, ValueError) as problem:
        raise SettingsError(f"{path}: cannot be read ({problem}); the run's folder is damaged") from None
    for key in NEEDED[path.name]:
        if not isinstance(table, dict) or key not in table:
            raise SettingsError(f"{path}: tells no {key!r}; the run's folder is damaged, or of another "
                                "program")
    return table


def _lines(path):
    """Return the lines of metrics.jsonl; a last line that a killed run left half-written is dropped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return ()
    tables = []
    for number, line in enumerate(lines, 1):
        try:
            tables.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise SettingsError(f"{path}: line {number} is not JSON; the file is damaged: remove "
                                "that line") from None
    return tuple(tables)
