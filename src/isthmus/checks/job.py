"""The ranks that are checked together: those of a communicator, or this process alone."""

import os
import socket

from isthmus.links.agreement import from_root, gather_json


class Checked:
    """What checks of several ranks need; `comm` is None where MPI cannot be started.

    started: whether a launcher has started this process as one of the job's ranks.
    """

    def __init__(self, comm):
        self.comm = comm
        self.rank, self.size = (comm.rank, comm.size) if comm else (0, 1)
        self.started = ranks_told() is not None
        self.hosts = self.from_all(_host(comm))

    @property
    def speaks(self):
        """Whether what this process finds is told: also where each rank has a world of its own."""
        return self.rank == 0 and rank_told() == 0

    def from_all(self, value):
        """Return the JSON `value` of every rank, on every rank."""
        return gather_json(self.comm, value) if self.comm else [value]

    def from_root(self, make, root=0):
        """Return the JSON that `make()` gives on rank `root`, or raise its error, on every rank."""
        return from_root(self.comm, make, root) if self.comm else make()

    def ranks_of_host(self):
        """Return host -> its ranks."""
        return {
            host: [rank for rank, its in enumerate(self.hosts) if its == host]
            for host in dict.fromkeys(self.hosts)
        }


def ranks_told():
    """Return how many ranks the launcher says that it has started; None if there is no launcher."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return None


def rank_told():
    """Return this process's rank as the launcher tells it; 0 if there is no launcher."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _host(comm):
    if comm is None:
        return socket.gethostname()
    from mpi4py import MPI

    return MPI.Get_processor_name()
