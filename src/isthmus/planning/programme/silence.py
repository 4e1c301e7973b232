"""HiGHS prints a banner and stray lines now and then: they must not spoil a JSON object."""

import ctypes
import os
import sys
from contextlib import contextmanager


@contextmanager
def silent():
    """Have nothing that C writes to standard output in this `with` block be seen."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):  # there is no standard output
        yield
        return
    flush = ctypes.CDLL(None).fflush
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        flush(None)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        yield
    finally:
        flush(None)  # what C holds back would come later
        os.dup2(kept, 1)
        os.close(kept)
