"""What a rank finds where it runs: shared memory, folders, the CPU, Numba."""

import errno
import os
import platform
import shutil
import tempfile
from pathlib import Path

from isthmus.checks.findings import failed, passed, warned
from isthmus.cures import cure_of, reason_of
from isthmus.errors import OutputError, PlanError

SHARED_NBYTES_A_RANK = 4 << 20
"""Below this Open MPI's shared memory ends ranks with a bus error; below four times it is scarce."""
FREE_NBYTES = 100 << 20
KERNELS_NBYTES = 16 << 20
"""That all compiled kernels take at most, with room for a second version."""
LONGEST_TEMPORARY_FOLDER = 60
"""Characters: MPI puts sockets there, whose whole path must not exceed 107."""


def shared_memory(folder="/dev/shm", ranks=1):
    """Return whether `ranks` ranks of a host find room for their messages in `folder`."""
    try:
        found = os.statvfs(folder)
    except OSError as problem:
        return warned(
            "shared memory",
            f"{folder}: {reason_of(problem)}",
            "mount it (tmpfs); without it messages inside a host go through files",
        )
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    cure = "remove what is left there, or enlarge it (docker run --shm-size=1g)"
    if not os.access(folder, os.W_OK | os.X_OK):
        return warned("shared memory", f"{folder} may not be written", f"chmod 1777 {folder}")
    if free < 4 * SHARED_NBYTES_A_RANK * ranks:
        what = f"{folder} has {free / 2**20:.0f} MiB free for {ranks} rank{'s' if ranks > 1 else ''}"
        enough = free >= SHARED_NBYTES_A_RANK * ranks
        return warned("shared memory", what, cure) if enough else failed("shared memory", what, cure)
    return passed("shared memory", f"{folder}, {total / 2**30:.1f} GiB")


def temporary_folder():
    """Return whether TMPDIR can be used, by MPI too."""
    folder = os.environ.get("TMPDIR") or "/tmp"
    problem = why_not_writable(folder)
    if problem:
        elsewhere = "set TMPDIR to a folder of this host that you may write in"
        return failed(
            "temporary folder",
            f"{folder}: cannot be written: {reason_of(problem)}",
            cure_of(problem, elsewhere=elsewhere),
            OutputError,
        )
    if len(folder) > LONGEST_TEMPORARY_FOLDER:
        return warned(
            "temporary folder",
            f"{folder} is long: the sockets in it may not fit 107 characters",
            "export TMPDIR=/tmp",
        )
    return passed("temporary folder", folder)


def output_folder(folder):
    """Return whether a run may write into `folder`, which need not be there yet."""
    existing = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    problem = why_not_writable(existing)
    if problem:
        elsewhere = "set run.folder to a folder that you may write in"
        return failed(
            "output folder",
            f"{folder}: {existing} cannot be written: {reason_of(problem)}",
            cure_of(problem, elsewhere=elsewhere),
            OutputError,
        )
    if shutil.disk_usage(existing).free < FREE_NBYTES:
        return warned(
            "output folder",
            f"{folder}: less than {FREE_NBYTES >> 20} MiB are free there",
            "free some, or set run.folder to another disk",
        )
    return passed("output folder", str(folder))


def why_not_writable(folder):
    """Return the OSError with which no file can be made in the existing `folder`, or None."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as problem:
        return problem
    return None


def cpu(machine=None, flags=None):
    """Return what the kernels are compiled for."""
    machine, flags = machine or platform.machine(), _cpu_flags() if flags is None else flags
    if machine != "x86_64" or not flags:
        return passed("CPU", machine)
    if "avx2" not in flags:
        return warned(
            "CPU",
            f"{machine} without AVX2: kernels take a few numbers at a time",
            "run on a newer CPU, or let a virtual machine see the host's (QEMU: -cpu host)",
        )
    return passed("CPU", f"{machine}, {'AVX-512' if 'avx512f' in flags else 'AVX2'}")


def numba_kernels():
    """Yield whether Numba compiles, keeps what it has compiled, and with how many threads."""
    try:
        import numba
    except Exception as problem:  # Numba refuses a NumPy that is too new with more than ImportError
        yield failed(
            "Numba",
            f"cannot be imported: {str(problem).splitlines()[0]}",
            "pip install --upgrade --force-reinstall numba numpy",
        )
        return
    cores, threads = len(os.sched_getaffinity(0)), numba.config.NUMBA_NUM_THREADS
    if numba.config.DISABLE_JIT:
        yield warned(
            "Numba",
            "NUMBA_DISABLE_JIT is set: kernels are some 100 times slower",
            "unset NUMBA_DISABLE_JIT",
        )
    elif threads > cores:
        yield warned(
            "Numba",
            f"{threads} threads on {cores} cores",
            f"unset NUMBA_NUM_THREADS, or set it to {cores} at most",
        )
    else:
        yield passed("Numba", f"{numba.__version__}, at most {threads} threads")
    yield _cache_folder(numba.config.CACHE_DIR)


def memory(nbytes_of_rank, host_of_rank, free_nbytes_of_host):
    """Return a finding if the samples of a host's ranks exceed its free memory, else None."""
    needed = dict.fromkeys(host_of_rank, 0)
    for nbytes, host in zip(nbytes_of_rank, host_of_rank):
        needed[host] += nbytes
    for host, nbytes in needed.items():
        free = free_nbytes_of_host[host]
        if free is not None and nbytes > free:
            return failed(
                "plan",
                f"it gives {host} {nbytes / 2**30:.3g} GiB of samples, and "
                f"{free / 2**30:.3g} GiB of memory are free",
                "set storage_nbytes in the cluster file, or use more hosts",
                PlanError,
            )
    return None


def memory_nbytes(path="/proc/meminfo"):
    """Return the bytes of memory that are free for programs, or None where it is not told."""
    try:
        with open(path, encoding="utf-8") as lines:
            return next(
                (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None
            )
    except OSError:
        return None


def _cache_folder(chosen):
    """Return whether compiled kernels can be kept, in the first folder that Numba may write in."""
    import isthmus.kernels
    from isthmus.kernels.compiled import ANOTHER_FOLDER, UNKEPT

    beside = Path(isthmus.kernels.__file__).parent
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    problems = {}
    for place in [*([Path(chosen)] if chosen else []), beside, home]:
        existing = next(path for path in (place, *place.absolute().parents) if path.exists())
        problem = why_not_writable(existing)
        if problem is None and shutil.disk_usage(existing).free < KERNELS_NBYTES:
            problem = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if problem is None and chosen and problems:
            return warned(
                "kernel cache",
                f"{_refusals(problems)}: they are kept in {place}",
                cure_of(problems[Path(chosen)], elsewhere=ANOTHER_FOLDER),
            )
        if problem is None:
            return passed("kernel cache", str(place))
        problems[place] = problem
        if problem.errno == errno.ENOSPC:  # Numba stays with the first folder that takes an empty file
            break
    return warned(
        "kernel cache", f"{_refusals(problems)}: {UNKEPT}", cure_of(problem, elsewhere=ANOTHER_FOLDER)
    )


def _refusals(problems):
    """Write {folder: OSError} as "FOLDER cannot be written (why) and ..."."""
    return " and ".join(
        f"{place} cannot be written ({reason_of(problem)})" for place, problem in problems.items()
    )


def _cpu_flags():
    """Return the set of features that Linux tells of the first CPU; empty where it tells none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                (set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")),
                set(),
            )
    except OSError:
        return set()
