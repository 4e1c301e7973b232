"""What made a result: the version, the commit, the command, the machine."""

import os
import platform
import subprocess
import sys
import time
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
            return next((line.partition(":")[2].strip() for line in lines
                         if line.startswith("model name")), None)
    except OSError:
        return None


def _commit():
    """Return the commit of the source that runs, "-dirty" if it was changed; None outside git."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"],
                              cwd=Path(isthmus.__file__).parent, capture_output=True, text=True,
                              timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
