"""Open MPI's own allreduce: its default, what `tuned` picks, or one of `tuned`'s algorithms."""

import os

import numpy as np
from measuring import read_task, run_task

if __name__ == "__main__":
    task = read_task()
    program = task["program"]
    if program["algorithm"] != "default":
        # `han`, which Open MPI 5 prefers on several hosts, would not ask `tuned`.
        os.environ |= {"OMPI_MCA_coll": "^han"}
    if program["algorithm"] not in ("default", "tuned"):
        os.environ |= {
            "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
            "OMPI_MCA_coll_tuned_allreduce_algorithm": program["algorithm"],
            "OMPI_MCA_coll_tuned_allreduce_algorithm_segmentsize": str(program["segment_nbytes"]),
        }
    from mpi4py import MPI

    class OpenMPI:
        """The peer that `measuring` describes."""

        scale = 1

        def __init__(self, comm):
            self.comm, self.rank, self.size = comm, comm.rank, comm.size

        def gather(self, numbers):
            everyone = np.empty((self.size, max(1, len(numbers))))
            self.comm.Allgather(np.array(numbers or [0.0], np.float64), everyone)
            return everyone.tolist()

        def reducer(self, entries):
            total = np.empty(entries, np.float32)

            def reduce(vector):
                self.comm.Allreduce(vector, total)
                return total

            return reduce

    run_task(OpenMPI(MPI.COMM_WORLD), task)
