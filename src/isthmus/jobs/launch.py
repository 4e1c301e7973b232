"""How a program is started in several ranks: on this machine, and on the hosts of a cluster file.

Imports no MPI: a process that has initialised MPI must not start mpirun.
"""

import os
import shlex
import sys
from collections import Counter

from isthmus.links.tcp import tcp_settings
from isthmus.mpirun import MORE_RANKS_THAN_CORES, mca_arguments, mpirun

TOGETHER_ON_ONE_MACHINE = {
    **MORE_RANKS_THAN_CORES,
    "OMPI_MCA_btl": "self,sm",  # shared memory; no network needed
    "OMPI_MCA_pml": "ob1",
}
MOST_ROUTES = 3
"""That are named in one line."""


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

    A dict: "command", words; "kernel", sysctl -> value; "routes", words for `ip route` -> the routes
    that want them, (site, other site); "without_root", words to add to the command where the kernel's
    settings stay as they are.
    """
    tcp = tcp_settings(cluster)
    hosts = Counter(
        site.hosts[number % len(site.hosts)]
        for site in cluster.sites
        if site.hosts
        for number in range(site.ranks)
    )
    placed = [
        "--prtemca",
        "plm_ssh_agent",
        "ssh",  # or it would fall back to rsh
        "--host",
        ",".join(f"{_in_brackets(host)}:{ranks}" for host, ranks in hosts.items()),
    ]
    routes = {}
    for ends, words in tcp.routes.items():
        routes.setdefault(words, []).append(ends)
    return {
        "command": [
            "mpirun",
            "-n",
            str(cluster.size),
            *(placed if hosts else []),
            *mca_arguments(tcp.mca),
            "isthmus",
            *map(str, arguments),
        ],
        "without_root": mca_arguments(tcp.mca_without_root),
        "kernel": tcp.kernel,
        "routes": routes,
    }


def _in_brackets(host):
    """Return a host's name as mpirun's --host takes it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def launch_lines(advice):
    """Return the lines that say `launch_advice`."""
    lines = [
        shlex.join(advice["command"]),
        "# before, as root on each host:",
        *(f"sysctl -w '{key}={value}'" for key, value in advice["kernel"].items()),
        *(
            f"# ip route change ... {words}   on {_routes(ends, len(advice['routes']))}"
            for words, ends in advice["routes"].items()
        ),
    ]
    if advice["without_root"]:
        lines.append(f"# or, where nobody is root, add to mpirun: {shlex.join(advice['without_root'])}")
    return lines


def _routes(ends, kinds):
    """Return which routes are meant: all between sites, or these."""
    named = ", ".join(f"{site} to {other}" for site, other in ends[:MOST_ROUTES])
    more = f" and {len(ends) - MOST_ROUTES} more" if len(ends) > MOST_ROUTES else ""
    return f"the routes of {named}{more}" if kinds > 1 else "the routes to other sites"
