"""How a program is started in several ranks: on this machine, and on the hosts of a cluster file.

Imports no MPI: a process that has initialised MPI must not start mpirun.
"""

import os
import shlex
import sys
from collections import Counter

from isthmus.mpirun import MORE_RANKS_THAN_CORES, mca_arguments, mpirun
from isthmus.topology.transport import tcp_settings

TOGETHER_ON_ONE_MACHINE = {
    **MORE_RANKS_THAN_CORES,
    "OMPI_MCA_btl": "self,sm",                                  # shared memory; no network needed
    "OMPI_MCA_pml": "ob1",
}


def rank_command(ranks, *arguments, python=sys.executable):
    """Return the command that runs `python -m mpi4py ARGUMENTS` in `ranks` ranks.

    `-m mpi4py` makes one rank's exception end all of them.
    """
    return [mpirun(), "-n", str(ranks), python, "-m", "mpi4py", *map(str, arguments)]


def rank_environment(**more):
    """Return the environment for `rank_command` on one machine."""
    return {**os.environ, **TOGETHER_ON_ONE_MACHINE, **more}


def launch_advice(cluster, *arguments):
    """Return what starts `isthmus ARGUMENTS` on the cluster itself, and what its links want of hosts.

    A dict: "command", words; "kernel", sysctl -> value; "route", words for `ip route`;
    "without_root", words to add to the command where the kernel's settings stay as they are.
    """
    tcp = tcp_settings(cluster)
    hosts = Counter(site.hosts[number % len(site.hosts)] for site in cluster.sites if site.hosts
                    for number in range(site.ranks))
    placed = ["--host", ",".join(f"{host}:{ranks}" for host, ranks in hosts.items())]
    return {"command": ["mpirun", "-n", str(cluster.size), *(placed if hosts else []),
                        *mca_arguments(tcp.mca), "isthmus", *map(str, arguments)],
            "without_root": mca_arguments(tcp.mca_without_root),
            "kernel": tcp.kernel, "route": tcp.route_words}


def launch_lines(advice):
    """Return the lines that say `launch_advice`."""
    lines = [shlex.join(advice["command"]), "# before, as root on each host:",
             *(f"sysctl -w '{key}={value}'" for key, value in advice["kernel"].items()),
             f"# ip route change ... {advice['route']}   on the routes to other sites"]
    if advice["without_root"]:
        lines.append(f"# or, where nobody is root, add to mpirun: {shlex.join(advice['without_root'])}")
    return lines
