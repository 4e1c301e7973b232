"""What an allreduce spends: bytes at the send call, seconds by stage."""

import time
from contextlib import contextmanager

from isthmus.registry import ALLREDUCE_STAGES


class CountedComm:
    """A communicator that adds the bytes of each send to `sent[site of the peer]`."""

    def __init__(self, comm, sent, site_of_peer):
        self.comm, self.sent, self.site_of_peer = comm, sent, site_of_peer
        self.rank, self.size = comm.rank, comm.size

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        self.sent[self.site_of_peer[dest]] += buffer.nbytes
        return self.comm.Isend(buffer, dest, tag)

    def Irecv(self, buffer, source, tag=0):  # noqa: N802
        return self.comm.Irecv(buffer, source, tag)

    def Recv(self, buffer, source):  # noqa: N802
        self.comm.Recv(buffer, source)


class StageClock:
    """Seconds by stage: `lap` gives the time since the last lap to one of them.

    recorder: notes each lap, where a run is traced.
    """

    def __init__(self, recorder=None):
        self.recorder = recorder
        self.seconds = dict.fromkeys(ALLREDUCE_STAGES, 0.0)
        self.last = 0.0

    def start(self):
        self.seconds = dict.fromkeys(ALLREDUCE_STAGES, 0.0)
        self.resume()

    def resume(self):
        """Leave out the time since the last lap."""
        self.last = time.perf_counter()

    def lap(self, stage):
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        if self.recorder is not None:
            self.recorder.span(stage, self.last, now)
        self.last = now

    @contextmanager
    def inside(self, stage):
        """Give the time of a `with` block to `stage`, not to the lap that it is in."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.seconds[stage] += seconds
        if self.recorder is not None:
            self.recorder.span(stage, start, start + seconds)
        self.last += seconds
