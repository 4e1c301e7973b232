"""What tests do on a machine that is slow, or stands still now and then."""

import math
import subprocess
import time

SECONDS = 300
"""For one program: many times what it takes, and yet an end."""
NOT_STARTED = "The PMIx server's listener thread failed to start"
"""What mpirun says on a busy machine where it has not started itself, nor any rank."""


def launched(command, **options):
    """Return what a command has ended with, its words as text; mpirun may fail to start, twice."""
    usual = {"text": True, "capture_output": True, "stdin": subprocess.DEVNULL, "timeout": SECONDS}
    for _ in range(3):
        done = subprocess.run(list(map(str, command)), **(usual | options))
        if NOT_STARTED not in f"{done.stdout}{done.stderr}":
            break
    return done


def until(holds, what="it", seconds=SECONDS, pause=0.01):
    """Wait until `holds()`; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: not after {seconds} s"
        time.sleep(pause)


def quickest(comm, call, most, tries=5):
    """Return the seconds of `call()` on its slowest rank, the least of some tries.

    There is no other one after less than `most` seconds. Collective.
    """
    least = math.inf
    for _ in range(tries):
        comm.Barrier()
        start = time.perf_counter()
        call()
        least = min(least, max(comm.allgather(time.perf_counter() - start)))
        if least < most:
            break
    return least
