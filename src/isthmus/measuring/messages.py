"""How long messages take, both ways at once, and allreduces: what calibration fits."""

import numpy as np
from mpi4py import MPI

from isthmus.collectives.allreduce import Allreduce
from isthmus.compression.chunks import WIRE_NBYTES
from isthmus.links.common_clock import CommonClock
from isthmus.links.world import Group, World, all_gather_rows, maximum
from isthmus.vectors import chunk_slices

NBYTES = (4, 1024, 16 * 1024, 60 * 1024, 240 * 1024, 960 * 1024, 3840 * 1024)
LONGEST_SECONDS = 1.5
"""Of one measurement: sizes that would take longer are left out, all but the first three."""
SMALL_ENTRIES = 256
"""Of a rank's part of a vector that is summed for what an allreduce takes whatever its size."""
FEWEST = 3


def way_seconds(comm, first, second, seconds, repetitions, message_nbytes=WIRE_NBYTES, smallest=0):
    """Return (nbytes, seconds there, seconds back), float64 vectors of all samples, on every rank.

    Both ways at once, as allreduces use them: ranks `first` and `second` start together, send each
    other so many bytes in messages of at most `message_nbytes`, and wait for the other's. About
    `seconds` for each size of NBYTES from `smallest` on. Collective over `comm`.
    """
    samples = np.empty((0, 3))
    if comm.rank in (first, second):
        two = Group(comm, (first, second))
        pair = World(two, MPI.COMM_SELF, two, [0, 1])
        other = second if comm.rank == first else first
        clock = CommonClock(pair)
        came = _by_size(
            pair,
            [size for size in NBYTES if size >= smallest],
            seconds,
            repetitions,
            lambda nbytes: _exchange(comm, clock, other, nbytes, message_nbytes),
        )
        theirs = all_gather_rows(pair, came)[1 - pair.rank]
        there, back = (theirs, came) if comm.rank == first else (came, theirs)
        samples = np.column_stack([came[:, 0], there[:, 1], back[:, 1]])
    return all_gather_rows(comm, samples)[first].T


def allreduce_seconds(tiers, algorithm, sizes, seconds, repetitions, **arguments):
    """Return (nbytes, seconds), float64 vectors of samples on every rank: the slowest rank's seconds of
    an allreduce of float32 vectors of `sizes` bytes; arguments: others of `Allreduce`. Collective."""
    clock = CommonClock(tiers.world)

    def timed(nbytes):
        allreduce = Allreduce(tiers, nbytes // 4, algorithm, **arguments)
        vector = np.ones(nbytes // 4, np.float32)

        def once():
            start = clock.start()
            allreduce(vector)
            return _slowest(tiers.world, clock.clock() - start)

        return once

    return _by_size(tiers.world, sizes, seconds, repetitions, timed).T


def _by_size(comm, sizes, seconds, repetitions, timed):
    """Return float64[samples, 2]: bytes and this rank's seconds; timed(nbytes) makes a call to time.

    The same number of samples on every rank of `comm`; the first call of a size warms up.
    """
    rows = []
    for number, nbytes in enumerate(sizes):
        once = timed(nbytes)
        if (first := _slowest(comm, once())) > LONGEST_SECONDS and number >= FEWEST:
            break
        own = [once() for _ in range(int(np.clip(seconds / first, FEWEST, repetitions)))]
        rows += [(nbytes, max(each, 1e-9)) for each in own]
        if 4 * _slowest(comm, np.median(own)) > LONGEST_SECONDS and number + 1 >= FEWEST:
            break
    return np.array(rows, float)


def _exchange(comm, clock, other, nbytes, message_nbytes):
    """Return a call that sends `nbytes` to rank `other` and returns the seconds until its are here."""
    messages = chunk_slices(0, nbytes, message_nbytes)
    out, into = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)

    def once():
        start = clock.start()
        arriving = [comm.Irecv(into[message], other) for message in messages]
        sent = [comm.Isend(out[message], other) for message in messages]
        for request in arriving:
            request.Wait()
        end = clock.clock()
        for request in sent:
            request.Wait()
        return end - start

    return once


def _slowest(comm, seconds):
    return float(maximum(comm, [seconds])[0])
