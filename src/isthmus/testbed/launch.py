"""Start a program under mpirun on the testbed: its ranks at their sites, its messages over the links."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from isthmus.errors import EmulationError
from isthmus.links.tcp import tcp_settings
from isthmus.mpirun import MORE_RANKS_THAN_CORES, mca_arguments, mpirun
from isthmus.testbed.commands import inside
from isthmus.testbed.namespaces import counters, down, up
from isthmus.testbed.wiring import CONTROL_NETWORK, NAME, RANKS_NETWORK, Wiring

TESTBED = "ISTHMUS_TESTBED"  # in the environment of its ranks: the testbed's name
RUN_NOTE = "ISTHMUS_RUN_NOTE"  # in the environment: the file into which a run writes its folder
NOTE_BEGINNING = 'echo >> "$1"; shift; exec "$@"'
PATIENCE_SECONDS = 10.0


def on_testbed():
    """Whether this process is a rank on a testbed: the links that it measures are emulated."""
    return TESTBED in os.environ


def own_counters():
    """Return `counters` of the testbed that this process is a rank on; None off a testbed."""
    return counters(os.environ[TESTBED]) if on_testbed() else None


def run(cluster, command, stdout=None, name=NAME, run_note=None):
    """Run `command` in all ranks of `cluster` on its testbed, which is up meanwhile.

    stdout: where the ranks' standard output goes, a file; this process's own if None. run_note: a file
    into which a run writes its folder.
    Returns mpirun's exit code, and the bytes that each site has sent and received (see `counters`).
    A testbed that was not up before is taken down after. KeyboardInterrupt ends all ranks.
    """
    program = shutil.which(command[0])
    if program is None:
        raise EmulationError(
            f"testbed: no program is called {command[0]!r}; after `--` comes what to "
            "start in each rank, as in: isthmus train RUN.toml"
        )
    wires = Wiring(cluster, name=name).wires
    made = up(cluster, name)
    with TemporaryDirectory(prefix="isthmus-") as folder:
        begun = Path(folder, "begun")  # a line a rank
        line = line_on_testbed(
            cluster, ["sh", "-c", NOTE_BEGINNING, "isthmus", str(begun), program, *command[1:]], name
        )
        try:
            before = counters(name)
            told = {TESTBED: name} | ({RUN_NOTE: str(run_note)} if run_note else {})
            code = _wait_for(inside(wires, wires, *line), told, stdout)
            after = counters(name)
        finally:
            if made:
                down(name)
        ranks = len(begun.read_text().splitlines()) if begun.exists() else 0
    if code == 0 and ranks < cluster.size:
        raise EmulationError(
            f"testbed: {ranks} of {cluster.size} ranks began, and mpirun ended with "
            "code 0: it has lost a launch agent or a daemon; see its words above, and "
            "start it again"
        )
    return code, {
        site: {key: after[site][key] - before[site][key] for key in after[site]} for site in after
    }


def line_on_testbed(cluster, command, name=NAME):
    """Return the mpirun line: daemons through the agent, messages over the links alone."""
    agent = shlex.join([sys.executable, "-m", "isthmus.testbed.ssh_agent", f"testbed={name}"])
    line = [
        mpirun(),
        "--prtemca",
        "plm_ssh_agent",
        agent,
        "--prtemca",
        "plm_ssh_no_tree_spawn",
        "1",
        "--prtemca",
        "prte_if_include",
        CONTROL_NETWORK,
        # Each daemon sees the ranks of its site alone, not that all sites share these cores: told
        # nothing, waiting ranks would poll and keep the others from computing.
        "--mca",
        "mpi_yield_when_idle",
        "1",
        "--mca",
        "pml",
        "ob1",
        "--mca",
        "btl",
        "tcp,self",
        "--mca",
        "btl_tcp_if_include",
        RANKS_NETWORK,
        *mca_arguments(tcp_settings(cluster).mca),
    ]
    for index, (host, ranks) in enumerate(groupby(host_of_rank(cluster))):
        count = str(len(list(ranks)))
        line += [":"] if index else []
        line += ["-n", count, "--host", f"{host}:{count}", *command]
    return line


def host_of_rank(cluster):
    """Return the host of each rank of the job: where the cluster file says that its site's ranks are."""
    wiring = Wiring(cluster)
    hosts = [None] * cluster.size
    placed = {rank: name for site, name in zip(cluster.sites, wiring.names) for rank in site.world_ranks}
    left = []
    for site, name in zip(cluster.sites, wiring.names):
        if not site.world_ranks:
            of_site = site.hosts or (name,)
            left += sorted((of_site[i % len(of_site)] for i in range(site.ranks)), key=of_site.index)
    unplaced = iter(left)
    for rank in range(cluster.size):
        hosts[rank] = placed.get(rank) or next(unplaced, None)
    if None in hosts:
        raise EmulationError(
            f"{cluster.source}: world_ranks name ranks beyond the {cluster.size} that "
            "the sites have; number them from 0"
        )
    return hosts


def _wait_for(line, told, stdout):
    """Run a command and return its exit code; an interrupt is passed on and ends it.

    told: what it finds in its environment beside this process's own.
    """
    job = subprocess.Popen(
        line, env={**os.environ, **MORE_RANKS_THAN_CORES, **told}, stdout=stdout, start_new_session=True
    )
    try:
        return job.wait()
    finally:
        if job.poll() is None:
            job.send_signal(signal.SIGINT)
            try:
                job.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
