"""Runs side by side: what differs in how they were made, and in what came of it."""

from collections import Counter
from os.path import normpath
from pathlib import Path

import numpy as np

from isthmus.errors import SettingsError
from isthmus.folders.metrics import metrics_of
from isthmus.folders.reading import read_run
from isthmus.json_text import dumps
from isthmus.pages.comparison_pictures import draw_comparison
from isthmus.pages.comparison_words import best, facts, in_words, link_rows, parameter_words, term_rows
from isthmus.pages.page import write_page
from isthmus.pages.protection import protection_of

LETTERS = "ABCDEFGHIJKL"  # what runs are called on the page; curves of more could not be told apart
NOT_COMPARED = ("run.folder", "run.report_every")  # change nothing that a run comes to
PATHS = ("cluster.file", "data.train", "data.test")


def compare(folders, output=None):
    """Write a page that puts the finished runs in `folders` side by side; return what it tells.

    output: the page; None: comparison.html beside the first run. The table returned is ready for
    JSON. Raises SettingsError in one line for what is no run, has not finished, or made no steps.
    """
    runs = [finished_run(folder) for folder in folders]
    page = Path(output or Path(folders[0]).absolute().parent / "comparison.html")
    told = {
        "page": str(page),
        "runs": [outcome(letter, run) for letter, run in zip(LETTERS, runs)],
        "settings": differences([settings_of(run) for run in runs]),
        "environment": differences([environment_of(run) for run in runs]),
        "parameters": parameters(runs),
    }
    write_page(
        page,
        "compare.html",
        told=told,
        letters=LETTERS,
        best=best(told["runs"]),
        facts=facts(told["runs"]),
        terms=term_rows(told["runs"]),
        links=link_rows(told["runs"]),
        words=parameter_words(told),
        pictures=draw_comparison(LETTERS, runs),
        settings=in_words(told["settings"]),
        environment=in_words(told["environment"]),
    )
    return told


def finished_run(folder):
    """Return the Run in `folder`; SettingsError if it has not finished or made no steps."""
    run = read_run(folder)
    if run.summary is None or (run.steps and run.steps[-1]["step"] > run.summary["steps"]):
        raise SettingsError(
            f"{folder}: holds no summary.json of its last step, so the run is still "
            "going or was stopped; wait for it, or go on with it: isthmus train "
            f"RUN.toml --resume {folder}"
        )
    if not run.steps:
        raise SettingsError(
            f"{run.folder / 'metrics.jsonl'}: tells of no step; name a run that made "
            "some, with the file that it wrote"
        )
    return run


def outcome(letter, run):
    """Return what a run came to, ready for JSON."""
    predicted, measured = run.step_seconds
    lower, upper = np.quantile([step["step_seconds"] for step in run.steps], (0.25, 0.75)).tolist()
    return {
        "letter": letter,
        "name": run.name,
        "folder": str(run.folder),
        "started": run.provenance["started"],
        "steps": run.steps[-1]["step"],
        "seconds": run.steps[-1]["seconds"],
        "accuracy": run.summary["accuracy"],
        "loss": run.summary["loss"],
        "metrics": metrics_of(run.summary),
        "best": run.best
        and {"epoch": run.best["step"] // run.plan["steps"], "metrics": metrics_of(run.best)},
        "stopped_early": run.summary.get("stopped_early"),
        "predicted_step_seconds": predicted,
        "measured_step_seconds": measured,
        "step_seconds_quartiles": [lower, upper],
        "terms": {
            name: {"predicted_seconds": each, "measured_seconds": other}
            for name, each, other in run.terms
        },
        "links": run.summary["links"],
        "protection": protection_of(run),
        "link_nbytes": run.link_nbytes,
        "parameter_hash": run.summary["parameter_hash"],
    }


def settings_of(run):
    """Return the settings of a run and its cluster file as one flat table."""
    table = run.cluster.to_table()
    sites = {site["name"]: site for site in table["site"]}
    links = {
        " → ".join(map(_as_a_key, (link["from"], link["to"]))): link for link in table.get("link", ())
    }
    flat = _flat(
        {**run.settings, "site": {_as_a_key(name): site for name, site in sites.items()}, "link": links}
    )
    return {
        key: normpath(value) if key in PATHS else value
        for key, value in flat.items()
        if key not in NOT_COMPARED
    }


def environment_of(run):
    """Return what made a run, but for its settings, as one flat table."""
    made = run.provenance
    keys = (
        "version",
        "commit",
        "python",
        "versions",
        "mpi_library",
        "processor",
        "emulated",
        "slurm_job",
        "command",
        "data",
    )
    hosts = ", ".join(f"{host} ({ranks})" for host, ranks in Counter(made["hosts"]).items())
    return _flat({key: made.get(key) for key in keys}) | {"hosts": hosts}


def differences(tables):
    """Return key -> the values of all tables, for each key of which they are not all equal.

    A table that lacks a key has None there, as one that says None.
    """
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = {key: [table.get(key) for table in tables] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def parameters(runs):
    """Return which runs ended with the same parameters, and the first step after which they differed.

    groups: letters of runs with equal hashes. first_difference: the first step at which all runs
    compared their replicas and had not all the same hash; None if there is none.
    """
    groups = {}
    for letter, run in zip(LETTERS, runs):
        groups.setdefault(run.summary["parameter_hash"], []).append(letter)
    common = set.intersection(*(set(run.replica_hashes) for run in runs))
    differ = [step for step in common if len({run.replica_hashes[step] for run in runs}) > 1]
    return {
        "equal": len(groups) == 1,
        "groups": list(groups.values()),
        "compared_steps": sorted(common),
        "first_difference": min(differ, default=None),
    }


def _as_a_key(name):
    """Return a site's name as a part of a key: in quotes where it has what joins keys."""
    return dumps(name) if set(name) & set('."→') else name


def _flat(table, before=""):
    flat = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat
