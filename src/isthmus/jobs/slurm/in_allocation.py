"""Start a command under mpirun in every rank of this Slurm job, heterogeneous groups included.

    python -m isthmus.jobs.slurm.in_allocation COMMAND ...

Ranks are numbered in the order of the groups and their nodes, as many on a node as Slurm gave it tasks.
mpirun's own Slurm support sees one group only; srun starts its daemons here, one a node. This process
becomes mpirun: a signal for it is mpirun's, which passes SIGUSR1 on to all ranks.
"""

import os
import shlex
import sys

from isthmus.cluster.slurm import read_allocation
from isthmus.errors import IsthmusError
from isthmus.mpirun import mpirun
from isthmus.terminal import Terminal


def main():
    """Become mpirun."""
    try:
        line = line_in_allocation(read_allocation(), sys.argv[1:])
    except IsthmusError as problem:
        Terminal().tell(f"isthmus: {problem}")
        sys.exit(problem.exit_code)
    os.execv(line[0], line)


def line_in_allocation(nodes, command):
    """Return the mpirun line that starts `command` on `nodes`."""
    agent = shlex.join([sys.executable, "-m", "isthmus.jobs.slurm.agent"])
    line = [
        mpirun(),
        "--prtemca",
        "ras",
        "^slurm",
        "--prtemca",
        "plm",
        "ssh",
        "--prtemca",
        "plm_ssh_agent",
        agent,
        "--prtemca",
        "plm_ssh_no_tree_spawn",
        "1",
        "--bind-to",
        "none",
    ]
    for number, node in enumerate(nodes):
        line += [":"] if number else []
        line += ["-n", str(node.ranks), "--host", f"{node.name}:{node.ranks}", *command]
    return line


if __name__ == "__main__":
    main()
