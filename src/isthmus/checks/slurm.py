"""Slurm: whether its controller answers, and whether the job is what was allocated."""

import os
import shutil
import subprocess

from isthmus.checks.findings import passed, warned


def slurm(job):
    """Return how the job stands with Slurm; only rank 0 asks the controller."""
    allocated = os.environ.get("SLURM_JOB_ID")
    if allocated:
        tasks = tasks_allocated()
        if job.started and tasks not in (0, job.size):
            return warned(
                "Slurm",
                f"job {allocated} was given {tasks} tasks, {job.size} ranks run",
                f"start it with mpirun -n {tasks}, or ask for --ntasks={job.size}",
            )
        return passed("Slurm", f"job {allocated}")
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        return passed("Slurm", "not here: start runs with mpirun")
    try:
        done = subprocess.run([scontrol, "ping"], capture_output=True, text=True, timeout=1.5)
        answers = done.returncode == 0 and "is UP" in done.stdout
    except (OSError, subprocess.TimeoutExpired):
        answers = False
    if answers:
        return passed("Slurm", "its controller answers; no job runs here")
    return warned(
        "Slurm",
        f"{scontrol} is here, but the controller does not answer",
        "see `scontrol ping` and slurmctld's log, or start runs with mpirun",
    )


def tasks_allocated():
    """Return the tasks of the allocation, all its heterogeneous groups together; 0 if not told."""
    groups = [
        value for name, value in os.environ.items() if name.startswith("SLURM_NTASKS_HET_GROUP_")
    ] or [os.environ.get("SLURM_NTASKS", "")]
    return sum(int(tasks) for tasks in groups if tasks.isdigit())
