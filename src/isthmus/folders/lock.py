"""Who has a run's folder: one job at a time, and no job for longer than it lives."""

import errno
import fcntl
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from isthmus.errors import OutputError, SettingsError
from isthmus.folders.contents import Table
from isthmus.folders.reading import read_table
from isthmus.json_text import dumps

NAME = "lock"
ALIVE_SECONDS = 10.0
"""How often an owner says that it lives, by touching the file."""
GONE_SECONDS = 60.0
"""After how long without such a sign an owner on another machine is taken for dead."""
LOOK_SECONDS = 0.05
HELD = (errno.EWOULDBLOCK, errno.EACCES)


class Owner(Table):
    """What the file says of who has it; `boot`: one number for each start of each machine."""

    host: str
    process: int
    boot: str
    started: str
    slurm_job: str | None
    slurm_restarts: int


class FolderLock:
    """The file `lock` in a run's folder, held from `take` to the end of a `with` block.

    The machine's own lock on the open file is gone the moment its process is, so what a killed job
    leaves on this machine holds nobody up. File systems of several machines may keep such locks on
    each machine alone, or not at all: there the file counts as held as long as its owner touches it.
    Times are the file server's, so clocks need not agree.
    """

    def __init__(self):
        self.path, self._file, self._done = None, None, threading.Event()

    def take(self, folder):
        """Take the folder, which is made if need be; OutputError says who has it already."""
        self.path = Path(folder, NAME)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file, alone = self._open()
            owner = _owner(self.path)
            if not alone or (owner is not None and self._may_live(owner)):
                raise self._refusal(owner)
            self._file.seek(0)
            self._file.truncate()
            self._file.write(dumps(_me()) + "\n")
            self._file.flush()
        except OSError as problem:
            raise OutputError(
                f"{self.path}: cannot be written: {problem.strerror}; check the folder's "
                "rights and free space"
            ) from None
        threading.Thread(target=self._show_life, daemon=True, name="lock").start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Give the folder free, where it was taken."""
        self._done.set()
        if self._file is not None:
            if _owner(self.path) == _me():
                with suppress(OSError):
                    self.path.unlink()
                    self.path.parent.rmdir()  # which fails unless nothing was written
            self._file.close()
            self._file = None

    def _open(self):
        """Return the open file, and whether no living process of this machine has it."""
        while True:
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
            locked = _locked(file, fcntl.LOCK_EX)
            if locked is False:  # `life` holds it for a moment only
                time.sleep(LOOK_SECONDS)
                locked = _locked(file, fcntl.LOCK_EX)
            if not locked:
                return file, locked is None  # a file system without locks: the owner's word has to do
            try:
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file, True
            except FileNotFoundError:
                pass
            file.close()  # its owner has removed it in between: this one is nobody's

    def _may_live(self, owner):
        """Whether the owner that the file names may still be at work, though its lock is free."""
        if owner["boot"] == _boot():
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
            except OSError:
                return Path(f"/proc/{owner['process']}").exists()
        me = _me()
        if (
            owner["slurm_job"] is not None
            and owner["slurm_job"] == me["slurm_job"]
            and (owner["slurm_restarts"] < me["slurm_restarts"])
        ):
            return False  # the same job came back: it is not in two places
        return self._silent_seconds() < GONE_SECONDS

    def _silent_seconds(self):
        """Return how long ago the owner touched the file, by the clock of the file server."""
        probe = self.path.with_name(f"{NAME}.{os.getpid()}.partial")
        try:
            probe.touch()
            return probe.stat().st_mtime - self.path.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _refusal(self, owner):
        self._file.close()
        self._file = None
        if owner is None:
            return OutputError(
                f"{self.path.parent}: another job has this folder; give another --name, "
                "or wait until it has ended"
            )
        job = f" (Slurm job {owner['slurm_job']})" if owner["slurm_job"] else ""
        return OutputError(
            f"{self.path.parent}: process {owner['process']} on {owner['host']}{job} has this folder "
            f"since {owner['started']}; wait until it has ended, or give another --name (if it is gone, "
            f"this works {GONE_SECONDS:.0f} s after its end)"
        )

    def _show_life(self):
        while not self._done.wait(ALIVE_SECONDS):
            with suppress(OSError):
                os.utime(self.path)


def life(folder):
    """Return what the lock in `folder` tells of a job, and since when (seconds since 1970, or None).

    "running"; "gone": its process has ended and has not given the folder back; "silent": it is on
    another machine, which has shown no life since then; None: nobody has the folder. Writes nothing.
    """
    path = Path(folder, NAME)
    try:
        with open(path, encoding="utf-8") as file:
            since, locked = os.fstat(file.fileno()).st_mtime, _locked(file, fcntl.LOCK_SH)
    except OSError:
        return None, None
    if locked is False:
        return "running", since
    owner = _owner(path)
    if owner is None or (owner["boot"] == _boot() and locked):
        return "gone", since
    if owner["boot"] == _boot():
        return "running" if Path(f"/proc/{owner['process']}").exists() else "gone", since
    if time.time() - since < GONE_SECONDS:
        return "running", since
    return "gone" if owner["host"] == socket.gethostname() else "silent", since


def _locked(file, kind):
    """Whether the machine's lock on the open file was free, and is this process's; None: there is none
    on this file system."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as problem:
        return False if problem.errno in HELD else None
    return True


def _owner(path):
    """Return what the file says of its owner; None where it says nothing that can be read."""
    try:
        return read_table(path, Owner)
    except SettingsError:
        return None


def _me():
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "boot": _boot(),
        "started": _started,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    }


def _boot():
    """Return a text that names this start of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


_started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
