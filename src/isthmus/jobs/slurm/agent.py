"""Run a command on a node of this Slurm job as `ssh HOST COMMAND` would: mpirun starts daemons with it.

    python -m isthmus.jobs.slurm.agent HOST COMMAND ...

As with ssh, the words of COMMAND are joined and read by the shell of that host. A scratch folder of this
job alone is made there before, in the job's own or in ISTHMUS_SCRATCH, and removed after.
"""

import os
import sys

from isthmus.cluster.slurm import read_allocation

IN_SCRATCH = """
[ -n "$TMPDIR" ] && [ -d "$TMPDIR" ] && [ -O "$TMPDIR" ] || TMPDIR=${ISTHMUS_SCRATCH:-/tmp}
TMPDIR=$(mktemp -d "$TMPDIR/isthmus-$SLURM_JOB_ID-XXXXXXXX") || exit 8
export TMPDIR
sh -c "$1"
code=$?
rm -rf "$TMPDIR"
exit $code
"""


def main():
    """Become the command, on the node, in its heterogeneous group."""
    host, *command = sys.argv[1:]
    node = next((node for node in read_allocation() if node.name == host), None)
    if node is None:
        sys.exit(f"isthmus: Slurm: this job has no node {host!r}")
    line = [
        "srun",
        "--overlap",
        "--nodes=1",
        "--ntasks=1",
        f"--nodelist={host}",
        "--cpu-bind=none",
        "--input=none",
        "--kill-on-bad-exit=0",
    ]
    if node.group is not None:
        line.append(f"--het-group={node.group}")
    os.execvp("srun", [*line, "sh", "-c", IN_SCRATCH, "isthmus", " ".join(command)])


if __name__ == "__main__":
    main()
