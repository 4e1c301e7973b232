"""What an OSError means and how it is mended: its number decides, wherever it came up."""

import errno
import os
import re

NO_LOCKS = "export HDF5_USE_FILE_LOCKING=FALSE (BEST_EFFORT does not do: HDF5 2 heeds FALSE alone)"
HELD = "another program holds it: wait until that program ends"
SERVER_KNOWS_NOT = 524
"""ENOTSUPP, which the kernel's file servers answer with and the C library has no words for."""

CURES = {
    errno.EACCES: "mend its rights",
    errno.EPERM: "mend its rights",
    errno.EROFS: "mount that file system for writing",
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space within your quota",
    errno.EFBIG: "raise `ulimit -f`, or use a file system that takes files as large",
    errno.EIO: "the disk or its server fails, see `dmesg`: use another disk",
    errno.ESTALE: "its file server has lost it: mount that file system again",
    errno.ETIMEDOUT: "its file server does not answer: wait for it, or mount it again",
    errno.EHOSTDOWN: "its file server does not answer: wait for it, or mount it again",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "close programs: this host has too many files open",
    errno.ENOMEM: "free memory on this host",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "mend its symbolic links, which lead in a circle",
    errno.EAGAIN: HELD,
    errno.EBUSY: HELD,
    errno.ETXTBSY: HELD,
    errno.ENOLCK: NO_LOCKS,
    errno.EOPNOTSUPP: NO_LOCKS,
    SERVER_KNOWS_NOT: NO_LOCKS,
}


def number_of(problem):
    """Return the operating system's number of an error, also where HDF5 tells it in words; else None."""
    told = re.search(r"\berrno = (\d+)", str(problem))
    return getattr(problem, "errno", None) or (int(told[1]) if told else 0) or None


def reason_of(problem):
    """Return in a few words why something failed: the operating system's, or a library's own."""
    number = number_of(problem)
    if number is None:
        return (str(problem).splitlines() or [type(problem).__name__])[0][:120]
    words = "Operation not supported" if number == SERVER_KNOWS_NOT else os.strerror(number)
    return f"it cannot be locked: {words}" if _locking(problem) else words


def cure_of(problem, otherwise="", elsewhere=""):
    """Return how to mend an OSError, or what a library made of one.

    otherwise: the cure of an error that has no number, or whose number says less than its place.
    elsewhere: the same for what may as well lie in another place; told beside the number's cure too.
    """
    number = number_of(problem)
    if _locking(problem):
        known = HELD if number in (errno.EAGAIN, errno.EACCES) else NO_LOCKS
    else:
        known = CURES.get(number)
    if known is None:
        return otherwise or elsewhere
    return f"{known}, or {elsewhere}" if elsewhere else known


def explained(problem, otherwise="", elsewhere=""):
    """Return "why; cure" of an OSError, the end of a message; arguments as of `cure_of`."""
    return f"{reason_of(problem)}; {cure_of(problem, otherwise, elsewhere)}"


def _locking(problem):
    return "unable to lock file" in str(problem)
