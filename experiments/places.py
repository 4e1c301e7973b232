"""Where programs of the studies run: on the testbed, or on this machine alone. Imports no MPI."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from isthmus import testbed
from isthmus.jobs.launch import mpirun, rank_environment


class Localhost:
    """All ranks on this machine, over shared memory: no link is narrow unless the program paces it."""

    def __init__(self, cluster_path, ranks, name):
        self.ranks = ranks

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def command(self, *program):
        return [mpirun(), "-n", str(self.ranks), *program]

    def environment(self):
        return rank_environment()

    def counters(self):
        return {}

    def facts(self):
        return {}


class Testbed:
    """A network namespace a site, with links between them as slow as the cluster file says.

    name: of the testbed, so that it is beside one that somebody else may have up.
    """

    def __init__(self, cluster_path, ranks, name):
        self.cluster_path, self.name = str(cluster_path), name

    def __enter__(self):
        failed = subprocess.run(self._verb("up", self.cluster_path)).returncode
        if failed:  # it has said why
            sys.exit(failed)
        return self

    def __exit__(self, *_):
        subprocess.run(self._verb("down"))

    def command(self, *program):
        return [*self._verb("run", self.cluster_path), "--", *program]

    def environment(self):
        """Each site's daemon sees as many cores as ranks and would let them poll; but sites share them.

        Without this, a waiting rank keeps its core from a working one, in isthmus and Open MPI alike.
        """
        return {**os.environ, "OMPI_MCA_mpi_yield_when_idle": "1"}

    def counters(self):
        return testbed.counters(self.name)

    def facts(self):
        """Return what a result should tell of the testbed."""
        told = testbed.describe(self.name)
        return {key: told[key] for key in ("latency", "congestion_control")}

    def _verb(self, verb, *arguments):
        return isthmus_command("testbed", verb, *arguments, "--name", self.name)


PLACES = {"testbed": Testbed, "localhost": Localhost, "paced": Localhost}


def run_with_auto(links="real", largest_error=1e-4):
    """Return the settings of a run that leaves the allreduce to the planner, with a cluster file beside
    them: calibration then measures what that decides by."""
    data = Path(__file__).resolve().parent.parent / "data/fashion_mnist"
    return {
        "cluster": {"file": "cluster.toml", "links": links},
        "data": {"train": str(data / "train"), "test": str(data / "test")},
        "model": {"kind": "perceptron"},
        "allreduce": {"algorithm": "auto", "largest_error": largest_error},
    }


def isthmus_command(*arguments):
    return [sys.executable, "-m", "isthmus", *map(str, arguments)]


def output_of(command, environment, limit_seconds):
    """Run `command`; return what it prints, and what went wrong or None."""
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            output, errors = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
        return output, f"no end after {limit_seconds} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        raise
    return output, cause(errors) if process.returncode else None


def objects_in(output):
    """Return the objects that a program has printed, one a line."""
    return [json.loads(line) for line in output.splitlines() if line.startswith('{"')]


def cause(errors):
    """Return the first line of a job's error output that names an error: isthmus' own if there is one,
    else that of an exception, else any; or else its first line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for telling in (r"isthmus: ", r"[\w.]*(Error|Exception)\b", r".*[Ee]rror"):
        if found := [line for line in lines if re.match(telling, line)]:
            return found[0][:300]
    return (lines or ["it failed without a word"])[0][:300]
