"""What an OSError means and how it is mended: its number decides, wherever it came up."""

import errno
import os
import re

NOT_OFFERED = "its file system does not offer that: use another"
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
    errno.EOPNOTSUPP: NOT_OFFERED,
    SERVER_KNOWS_NOT: NOT_OFFERED,
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
    if number == SERVER_KNOWS_NOT:
        return "Operation not supported"
    told = getattr(problem, "strerror", None)
    return told if told and "errno = " not in told else os.strerror(number)


def cure_of(problem, otherwise="", elsewhere=""):
    """Return how to mend an OSError, or what a library made of one.

    otherwise: the cure of an error that has no number, or whose number says less than its place.
    elsewhere: the same for what may as well lie in another place; told beside the number's cure too.
    """
    known = CURES.get(number_of(problem))
    if known is None:
        return otherwise or elsewhere
    return f"{known}, or {elsewhere}" if elsewhere else known


def explained(problem, otherwise="", elsewhere=""):
    """Return "why; cure" of an OSError, the end of a message; arguments as of `cure_of`."""
    return f"{reason_of(problem)}; {cure_of(problem, otherwise, elsewhere)}"
