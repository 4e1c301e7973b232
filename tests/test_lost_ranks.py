"""What the ranks that are left say where MPI's fault tolerance tells them of a lost one."""

import sys

import pytest
from patience import launched

from isthmus.jobs.launch import rank_environment
from isthmus.mpirun import mpirun

PROGRAM = """
import os, pathlib, signal, sys, time
from mpi4py import MPI
from isthmus.watching.failures import failures_of_all, told_by_another
world = MPI.COMM_WORLD
world.Barrier()
time.sleep(0.5)
if world.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
asked = pathlib.Path(sys.argv[1])
while world.rank == 2 and not asked.exists():
    time.sleep(0.01)
before = told_by_another(world)
asked.touch()
world_told = failures_of_all(world, {"line": "mine"}, world.rank, 5.0)
print(world.rank, before, world_told, flush=True)
time.sleep(0.2 if world.rank == 0 else 5)
os._exit(3)
"""


@pytest.mark.slow
def test_the_first_rank_that_is_left_speaks_for_the_others(tmp_path):
    program = [sys.executable, "-c", PROGRAM, tmp_path / "asked"]
    done = launched([mpirun(), "--with-ft", "ulfm", "-n", "3", *program], env=rank_environment())
    assert "Traceback" not in done.stderr
    assert "0 False {0: {'line': 'mine'}, 2: {'line': 'mine'}}" in done.stdout, done
