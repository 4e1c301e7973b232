"""What a rank does and when, noted for the trace of a run.

A communicator that notes its messages stands where the communicator stood; where nothing is traced
there is none, and nothing is noted.
"""

import math
import struct
import time
from collections import deque

import numpy as np

from isthmus.links.comm import Wrapped, message_nbytes
from isthmus.registry import SPANS

SENT, RECEIVED = len(SPANS), len(SPANS) + 1
"""Kinds of rows: numbers of SPANS, and messages."""

COLUMNS = ("kind", "at", "start", "end", "peer", "nbytes", "tag")
"""Of a row, float64; times are seconds on `time.perf_counter`. at: when a message was handed to MPI, or
a place for it was. start, end: of a span, or of doing nothing but wait until the message was gone, or
was there; NaN where nobody waited. peer: cluster rank, -1 where MPI does not tell."""

_ROW = struct.Struct(f"{len(COLUMNS)}d")
_NUMBER = {name: number for number, name in enumerate(SPANS)}


class Recorder:
    """The last steps of this rank, each whole: at most `rows` rows, but the last step in any case.

    A step is written into memory that is there before it begins. steps: of (number, float64[rows,
    COLUMNS]), oldest first.
    """

    def __init__(self, rows):
        self.rows, self.kept = rows, 0
        self.steps = deque()
        self._memory = bytearray(512 * _ROW.size)
        self._count = 0

    def begin_step(self):
        """Forget what was noted since the last step ended."""
        self._count = 0

    def end_step(self, number):
        """Keep what was noted since `begin_step`, and drop old steps where they are too much."""
        noted = np.frombuffer(self._memory, np.float64, self._count * len(COLUMNS)).copy()
        self.steps.append((number, noted.reshape(-1, len(COLUMNS))))
        self.kept += self._count
        while self.kept > self.rows and len(self.steps) > 1:
            self.kept -= len(self.steps.popleft()[1])

    def span(self, name, start, end):
        """Note that this rank did `name`, one of SPANS, from `start` to `end`."""
        self._write(self._next(), _NUMBER[name], 0.0, start, end, -1, 0, 0)

    def message(self, kind, peer, nbytes, tag=0):
        """Note a message that may go or come from now on; return what `waited` is to be told of it."""
        row = self._next(), kind, time.perf_counter(), peer, nbytes, tag
        self.waited(row, math.nan, math.nan)
        return row

    def waited(self, row, start, end):
        """Note that this rank waited for the message `row` from `start` to `end`."""
        place, kind, at, *message = row
        self._write(place, kind, at, start, end, *message)

    def _next(self):
        place = self._count * _ROW.size
        if place == len(self._memory):  # the largest step so far
            self._memory += bytes(place)
        self._count += 1
        return place

    def _write(self, place, *values):
        _ROW.pack_into(self._memory, place, *values)


class TracedComm(Wrapped):
    """A communicator whose messages `recorder` notes; all else is passed on.

    rank_of_peer: the cluster's rank of each rank of `comm`.
    """

    lets_past = True

    def __init__(self, comm, recorder, rank_of_peer):
        super().__init__(comm)
        self.recorder, self.rank_of_peer = recorder, rank_of_peer

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        nbytes = message_nbytes(self.comm, buffer.nbytes, dest)
        row = self.recorder.message(SENT, self.rank_of_peer[dest], nbytes, tag)
        return _Noted(self.recorder, row, self.comm.Isend(buffer, dest, tag))

    def Irecv(self, buffer, source, tag=0):  # noqa: N802
        nbytes = message_nbytes(self.comm, buffer.nbytes, source)
        row = self.recorder.message(RECEIVED, self.rank_of_peer[source], nbytes, tag)
        return _Noted(self.recorder, row, self.comm.Irecv(buffer, source, tag))

    def Allreduce(self, sent, total, *operation):  # noqa: N802
        """Pass on MPI's own, which does not tell to whom it sends."""
        if self.size > 1:
            self.recorder.message(SENT, -1, total.nbytes)
        self.comm.Allreduce(sent, total, *operation)


class _Noted:
    """A request; the first time that it is found done is noted."""

    def __init__(self, recorder, row, request):
        self.recorder, self.row, self.request = recorder, row, request

    def Wait(self):  # noqa: N802
        start = time.perf_counter()
        self.request.Wait()
        self._note(start)

    def Test(self):  # noqa: N802
        start = time.perf_counter()
        done = self.request.Test()
        if done:
            self._note(start)
        return done

    def _note(self, start):
        if self.row is not None:
            self.recorder.waited(self.row, start, time.perf_counter())
            self.row = None
