"""What all runs together have told of a data set: a file beside its shards, which every run adds to."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from isthmus.cures import explained
from isthmus.errors import OutputError, SettingsError
from isthmus.files import write_text
from isthmus.json_text import dumps, loads
from isthmus.privacy.accounting import CONVERSIONS, Steps, epsilon_of

NAME, FORMAT = "privacy_spent.json", 1
DELTA = 1e-5


def told(parts: list[Steps], delta: float, unit: str = "sample") -> dict[str, Any]:
    """Return what `parts` come to of one `unit`, with all that must be said beside epsilon."""
    return {
        "unit": unit,
        "epsilon": epsilon_of(parts, delta),
        "delta": delta,
        "accountant": "pld",
        "conversion": CONVERSIONS["pld"],
        "epsilon_by_rdp": epsilon_of(parts, delta, "rdp"),
        "adjacency": f"add or remove one {unit}",
        "sampling": "Poisson" if any(part.sampling < 1 for part in parts) else "none: all take part",
    }


def privacy_spent(
    folder: str | PathLike[str], delta: float = DELTA, unit: str = "sample"
) -> dict[str, Any]:
    """Return what all runs have told of one sample of the packed set in `folder`.

    "epsilon" at `delta`, with "accountant", "conversion", "adjacency" and "sampling", "epsilon_by_rdp"
    for comparison, and "runs": of each, the probability of a sample in a step, the noise and the steps.
    unit: "client" and "site": those runs, and what they have told of one of these. Raises SettingsError
    where the folder's account cannot be read.
    """
    runs = [run for run in _read(Path(folder)) if _unit_of(run) == unit]
    return told(_parts(runs), delta, unit) | {"runs": runs}


def charge(
    folder: str | PathLike[str],
    run: str,
    steps: Steps,
    delta: float,
    budget: float | None,
    unit: str = "sample",
) -> float:
    """Add a run to the account of the set in `folder`, before it begins, and return what all come to.

    unit: of which the run tells, and those that it is held together with. A run that goes on is there
    already, and pays for what it has more. SettingsError, and nothing is added, where all together tell
    more than the epsilon `budget`, or a run that goes on has other noise than what it has told with;
    OutputError where the account cannot be written.
    """
    path = Path(folder, NAME)
    with _alone(path):
        runs = _read(Path(folder))
        others = [each for each in runs if each["run"] != run]
        before = [each for each in runs if each["run"] == run]
        own = {"run": run, **steps.to_json(), "unit": unit}
        for each in before:
            told = {"sampling": each["sampling"], "noise": each["noise"], "unit": _unit_of(each)}
            if changed := [name for name, value in told.items() if value != own[name]]:
                name = changed[0]
                raise SettingsError(
                    f"{path}: this run has made its steps with {name} {told[name]}, not {own[name]}; go "
                    "on with the settings that it began with, or start a new run"
                )
            own["steps"] = max(own["steps"], each["steps"])
        parts = _parts([each for each in [*others, own] if _unit_of(each) == unit])
        spent = epsilon_of(parts, delta)
        if budget is not None and spent > budget:
            already = epsilon_of(parts[:-1], delta)
            raise SettingsError(
                f"{path}: other runs have told epsilon {already:.3g} of the budget of {budget:.3g} at "
                f"delta {delta:g}, and with this one it is {spent:.3g}; give it more privacy.noise or "
                "fewer epochs, or leave the set alone"
            )
        text = dumps({"format": FORMAT, "runs": [*others, own]})
        write_text(path, text + "\n")
    return spent


def _parts(runs: list[dict[str, Any]]) -> list[Steps]:
    return [Steps(run["sampling"], run["noise"], run["steps"]) for run in runs]


def _unit_of(run: dict[str, Any]) -> str:
    return run.get("unit", "sample")


def _read(folder: Path) -> list[dict[str, Any]]:
    path = folder / NAME
    try:
        table = loads(path.read_text())
        if table["format"] != FORMAT:
            raise ValueError(f"has format {table['format']}, this version reads {FORMAT}")
        for run in table["runs"]:
            Steps(run["sampling"], run["noise"], run["steps"])
            str.encode(run["run"])
            str.encode(_unit_of(run))
        return table["runs"]
    except FileNotFoundError:
        if not folder.is_dir():
            raise SettingsError(f"{folder}: no such folder; name that of a packed set") from None
        return []
    except OSError as problem:
        raise SettingsError(f"{path}: {explained(problem, elsewhere='look at the folder')}") from None
    except (ValueError, KeyError, TypeError) as problem:
        raise SettingsError(
            f"{path}: is no account of what runs have told ({problem}); bring it back from a copy: "
            "without it nobody knows what is spent"
        ) from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other jobs from the account meanwhile."""
    try:
        file = path.with_suffix(".lock").open("w")
    except OSError as problem:
        cure = "the account of a set lies beside its shards: put them where this job may write"
        raise OutputError(f"{path}: {explained(problem, elsewhere=cure)}") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
