"""Graphs of tasks run one after another in one job: a line of JSON, a list of what each took.

    mpirun -n 4 python -m mpi4py experiments/cases/graphs.py GRAPH.toml METHOD [GRAPH.toml METHOD ...]

`isthmus schedule GRAPH.toml --run --method METHOD` runs one of them.
"""

import json
import sys

from mpi4py import MPI

from isthmus.jobs.schedule import run_file


def main(paths, methods):
    comm, tables = MPI.COMM_WORLD.Dup(), []
    for path, method in zip(paths, methods):
        comm.Barrier()
        tables.append(run_file(comm, path, method, tell=lambda line: None))
    if comm.rank == 0:
        print(json.dumps(tables))


if __name__ == "__main__":
    main(sys.argv[1::2], sys.argv[2::2])
