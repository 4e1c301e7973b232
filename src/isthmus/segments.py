"""What ranks that were killed have left in /dev/shm: Open MPI's segments, 16 MiB each."""

import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
YOUNG_SECONDS = 60.0
"""A file younger than this may be of a job that is just starting."""


def remove_segments(folder=SHARED_MEMORY):
    """Remove Open MPI's segments in shared memory that are this user's and that no process has open.

    Those of this host's name alone: another container may share the folder and hide its processes.
    Returns the paths that were removed.
    """
    host = socket.gethostname().partition(".")[0]
    name = re.compile(rf"sm_segment\.{re.escape(host)}\.{os.geteuid()}\.[0-9a-f]+\.[0-9]+")
    with suppress(OSError):
        old = [
            Path(entry)
            for entry in os.scandir(folder)
            if name.fullmatch(entry.name)
            and entry.is_file(follow_symlinks=False)
            and _is_ours_and_old(entry)
        ]
        in_use = _open_files(folder) if old else set()
        return [path for path in old if str(path) not in in_use and _removed(path)]
    return []


def _is_ours_and_old(entry):
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:  # somebody else has removed it
        return False
    age = time.time() - max(status.st_mtime, status.st_ctime)
    return status.st_uid == os.geteuid() and age > YOUNG_SECONDS


def _open_files(folder):
    """Return the files in `folder` that some process has open or mapped, as far as this user sees."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found.update(re.findall(rf" ({re.escape(str(folder))}/\S+)", (process / "maps").read_text()))
        with suppress(OSError):
            for descriptor in os.scandir(process / "fd"):
                with suppress(OSError):
                    found.add(os.readlink(descriptor))
    return found


def _removed(path):
    try:
        path.unlink()
    except OSError:
        return False
    return True
