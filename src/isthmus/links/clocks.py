"""How far the clocks of ranks are apart, by ping-pong; those of one machine read one clock."""

from pathlib import Path

import numpy as np

from isthmus.links.agreement import gather_json
from isthmus.links.world import TOGETHER, broadcast

BOOT = Path("/proc/sys/kernel/random/boot_id")
LEAST_ROUNDS, MOST_SECONDS = 5, 0.1  # for each rank; a long link takes few rounds
CLOSE_SECONDS = 5e-6  # as close as messages on one machine come


def clock_offsets(comm, clock, ranks=None):
    """Return float64[ranks of comm, 2] on every rank: seconds ahead of rank 0's clock, and their error.

    clock: gives seconds from any zero. ranks: which to compare, all of them if None; the others'
    numbers stay 0. Of several rounds the quickest counts: how the two ways share its round trip is
    not known, so half of it is the error. Collective.
    """
    offsets = np.zeros((comm.size, 2))
    for rank in range(1, comm.size) if ranks is None else ranks:
        if comm.rank == 0:
            offsets[rank] = _compare(comm, rank, clock)
        elif comm.rank == rank:
            _answer(comm, clock)
    broadcast(comm, offsets)
    return offsets


def ranks_elsewhere(comm, machine=None):
    """Return the ranks whose clock may differ from rank 0's: those on other machines. Collective."""
    machines = gather_json(comm, machine or machine_name())
    return [rank for rank in range(comm.size) if machines[rank] != machines[0]]


def machine_name():
    """Return what is the same for two ranks if they are on one machine: they read one clock then."""
    if BOOT.exists():
        return BOOT.read_text()
    from mpi4py import MPI  # which `isthmus check` looks for first

    return MPI.Get_processor_name()


def _compare(comm, rank, clock):
    """Return how far the clock of `rank` is ahead of this one, and the error."""
    go, stop, theirs = np.ones(1), np.zeros(1), np.empty(1)
    began, rounds, offset, error = clock(), 0, 0.0, np.inf
    while rounds < LEAST_ROUNDS or (error > CLOSE_SECONDS and clock() - began < MOST_SECONDS):
        start = clock()
        comm.Send(go, rank, TOGETHER)
        comm.Recv(theirs, rank, TOGETHER)
        end = clock()
        if end - start < 2 * error:
            offset, error = theirs[0] - (start + end) / 2, (end - start) / 2
        rounds += 1
    comm.Send(stop, rank, TOGETHER)
    return offset, error


def _answer(comm, clock):
    """Tell rank 0 the time as often as it asks."""
    asked = np.empty(1)
    while True:
        comm.Recv(asked, 0, TOGETHER)
        if not asked[0]:
            return
        comm.Send(np.array([clock()]), 0, TOGETHER)
