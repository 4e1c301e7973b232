"""The command and the environment that start a program in several ranks on this machine.

Imports no MPI: a process that has initialised MPI must not start mpirun.
"""

import os
import sys

from isthmus.mpirun import MORE_RANKS_THAN_CORES, mpirun

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
