"""What made a result: the version, the commit, the command, the machine."""

import os
import platform
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import isthmus

PACKAGES = ("isthmus", "mpi4py", "numpy", "numba", "scipy", "h5py")


def process_provenance():
    """Return what made this process's results, but for its settings and its MPI library."""
    return {
        "version": isthmus.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "processor": f"{_processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}",
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _processor():
    """Return what Linux calls the first processor; None where it does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None
            )
    except OSError:
        return None


def _commit():
    """Return the commit of the source that runs, "-dirty" if it was changed; None where it is installed.

    A repository that an installed package happens to lie in, in its virtual environment, is not asked.
    """
    package = Path(isthmus.__file__).resolve().parent
    root = package.parent.parent
    try:
        own = (
            package == root / "src" / "isthmus"
            and (root / ".git").exists()
            and tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
            == "isthmus"
        )
        if not own:
            return None
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
