"""Runs whose sites are jobs of their own: same bits as one job, and an end in words when one goes."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_rebalancing import lab
from test_sealed import Alone, sealed_lab

from isthmus.jobs.launch import rank_command, rank_environment

pytest.importorskip("crc32c")
YIELDING = {"OMPI_MCA_mpi_yield_when_idle": "1"}
"""Each job believes that it has the machine for itself."""
STILL = {"cluster": {"compute": "real"}, "plan": {"replan": False}}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(ranks, *arguments):
    """Start `isthmus train` in so many ranks: under an mpirun of its own, or as it is."""
    isthmus = ["-m", "isthmus", "train", *map(str, arguments)]
    command = [sys.executable, *isthmus]
    if ranks > 1:
        command = [part for part in rank_command(ranks, *isthmus) if part != "mpi4py"]
        command.remove("-m")
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=rank_environment(**YIELDING),
    )


def end(job, seconds=100):
    """Return the code, and what was said on standard output and on standard error."""
    try:
        out, err = job.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        job.kill()
        pytest.fail(f"no end: {job.communicate()}")
    assert "Traceback" not in err
    return job.returncode, out, err


def start_sites(path, *ranks, more=()):
    """Start each site as a job, the last first; the first listens. more: for that alone."""
    where = f"127.0.0.1:{free_port()}"
    jobs = [
        start(count, path, "--site", f"site{number}", "--join", where)
        for number, count in reversed([*enumerate(ranks)][1:])
    ]
    return [start(ranks[0], path, "--site", "site0", "--listen", where, *more), *reversed(jobs)]


def summary_of(out):
    """Return the summary of the run whose report standard output names."""
    return json.loads(Path(re.search(r"report: (.*)", out)[1]).with_name("summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("link", ["clear", "sealed"])
def test_two_sites_as_jobs_of_their_own_end_with_the_bits_and_bytes_of_one_job(tmp_path, link):
    path = (
        sealed_lab(tmp_path, (2, 2), **STILL)
        if link == "sealed"
        else lab(Alone(), tmp_path, (2, 2), **STILL)
    )
    sites = start_sites(path, 2, 2)
    (code, out, said), (other, short, words) = map(end, sites)
    assert (code, other) == (0, 0), said + words
    one_code, one_out, one_said = end(start(4, path))
    assert one_code == 0, one_said
    apart, alone = summary_of(out), summary_of(one_out)
    assert apart["parameter_hash"] == alone["parameter_hash"]
    assert short.splitlines() == out.splitlines()[:1]  # the folder is elsewhere
    assert "site site1: joined from 127.0.0.1" in said
    assert "joined site site0 at 127.0.0.1" in words
