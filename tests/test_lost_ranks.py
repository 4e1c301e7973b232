"""What the ranks that are left say where MPI's fault tolerance tells them of a lost one."""

import subprocess
import sys

import pytest

from isthmus.jobs.launch import rank_environment
from isthmus.mpirun import mpirun

PROGRAM = """
import os, signal, time
from mpi4py import MPI
from isthmus.watching.failures import failures_of_all, told_by_another
world = MPI.COMM_WORLD
world.Barrier()
time.sleep(0.5)
if world.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
before = told_by_another(world)
world_told = failures_of_all(world, {"line": "mine"}, world.rank, 1.5)
print(world.rank, before, world_told, flush=True)
time.sleep(0.2 if world.rank == 0 else 3)
os._exit(3)
"""


@pytest.mark.slow
def test_the_first_rank_that_is_left_speaks_for_the_others():
    done = subprocess.run(
        [mpirun(), "--with-ft", "ulfm", "-n", "3", sys.executable, "-c", PROGRAM],
        env=rank_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert "0 False {0: {'line': 'mine'}, 2: {'line': 'mine'}}" in done.stdout, done
