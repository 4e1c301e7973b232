"""What every case is made of: claims held against what was found, and the programs that find it.

A case is a script `case_NUMBER_NAME.py` of this folder, and a heading "NUMBER. Name" in docs/cases.md;
what it needs beside it has another name or ending. It is a generator of claims, and ends with `tell`:

    def claims(folder):
        isthmus("pack", folder / "digits", "-a", ...)
        run = isthmus("train", SETTINGS, ranks=4)
        yield Claim("accuracy on held-out digits", run["test"]["accuracy"], at_least=0.95)

    if __name__ == "__main__":
        tell(claims)

Alone it prints a line of JSON a claim; `python experiments/cases` runs all of them. What a case writes
goes to runs/cases/NAME, so that each of its steps can be made again by hand.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from isthmus.extras import how_to_install
from isthmus.jobs.launch import mpirun, rank_environment

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent.parent / "runs/cases"
LIMIT_SECONDS = 900
"""Of each program, on a machine with much else to do."""


@dataclass(frozen=True)
class Claim:
    """A sentence with a number or a word that was found, and what it must be: all that is given."""

    claim: str
    found: float | int | str | bool
    at_least: float | None = None
    at_most: float | None = None
    equal: float | int | str | bool | None = None

    @property
    def holds(self):
        """Whether it is as it must be; a NaN never is."""
        return (
            (self.at_least is None or self.found >= self.at_least)
            and (self.at_most is None or self.found <= self.at_most)
            and (self.equal is None or self.found == self.equal)
        )

    @property
    def wanted(self):
        """What it must be, in words."""
        bounds = ((">=", self.at_least), ("<=", self.at_most), ("=", self.equal))
        return " and ".join(f"{sign} {shown(bound)}" for sign, bound in bounds if bound is not None)

    def to_json(self):
        """Return the line that tells it, as a dict."""
        told = {"claim": self.claim, "wanted": self.wanted, "found": shown(self.found)}
        return told | {"holds": bool(self.holds)}


def shown(value):
    """Return a number as people read it: whole ones in full, others in four digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tell(claims, *packages):
    """Print a line a claim of claims(folder); end with 1 if any does not hold.

    packages: modules of the extra `cases` that it needs.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        sys.exit(f"this case needs {', '.join(missing)}: {how_to_install('cases')}")
    folder = RUNS / Path(sys.argv[0]).stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    holds = True
    for each in claims(folder):
        print(json.dumps(each.to_json()), flush=True)
        holds &= each.holds
    sys.exit(not holds)


def isthmus(verb, *arguments, ranks=None):
    """Run a verb, under mpirun where it is for ranks; return the object that it tells with --json."""
    command = [sys.executable, "-m", "isthmus", verb, *arguments, "--json"]
    return json.loads(output_of([mpirun(), "-n", ranks, *command] if ranks else command))


def program(script, *arguments, ranks):
    """Run a script of this folder in so many ranks; return the object that it prints."""
    command = [mpirun(), "-n", ranks, sys.executable, "-m", "mpi4py", HERE / script, *arguments]
    return json.loads(output_of(command))


def output_of(command):
    """Return what a command prints; where it fails the case ends with what it said."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=rank_environment(), timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"{' '.join(command)}: has not ended after {LIMIT_SECONDS} s")
    if done.returncode:
        sys.exit(f"{' '.join(command)}: ended with {done.returncode}\n{done.stderr}{done.stdout}")
    return done.stdout
