"""Links that are as slow as the cluster file says, on a machine where they are not.

A paced communicator holds each message between two sites until the link's latency and rate would
have let it through. It is an emulation and is labelled so wherever a figure made with it is shown.
"""

import time

import numpy as np

from isthmus.links.comm import Wrapped, message_nbytes
from isthmus.links.world import TOGETHER

TAG = 1024


class PacedComm(Wrapped):
    """A communicator whose messages between sites take their time; all else is passed on.

    The sender stamps each message with the moment at which it would start to leave: the clock is
    CLOCK_MONOTONIC, one for all processes of a machine, so a paced job runs on one machine. A link
    carries one message after another. A pipe that several links share is held by its common end:
    the sender's queue where one site sends to many, the receiver's where many send to one.
    """

    lets_past = True

    def __init__(self, comm, cluster, site_of_peer, site):
        super().__init__(comm)
        self.out = [_hops(cluster, site, other) for other in site_of_peer]
        self.into = [_hops(cluster, other, site) for other in site_of_peer]
        self.busy_until = {}

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        """Send a contiguous array; across a link a stamp goes ahead of it."""
        request = None
        if self.out[dest] and tag != TOGETHER:
            start = max(time.monotonic(), self._free(self.out[dest]))
            self._occupy(self.out[dest], start, message_nbytes(self.comm, buffer.nbytes, dest))
            stamp = np.array([start])
            request = self.comm.Isend(stamp, dest, TAG + tag)
        return _Sent(request, stamp if request else None, self.comm.Isend(buffer, dest, tag))

    def Irecv(self, buffer, source, tag=0):  # noqa: N802
        """Receive into a contiguous array; Wait returns when the link would have delivered it."""
        if not self.into[source] or tag == TOGETHER:
            return self.comm.Irecv(buffer, source, tag)
        stamp = np.empty(1)
        requests = (self.comm.Irecv(stamp, source, TAG + tag), self.comm.Irecv(buffer, source, tag))
        nbytes = message_nbytes(self.comm, buffer.nbytes, source)
        return _Received(self, self.into[source], stamp, nbytes, requests)

    def arrival(self, hops, start, nbytes):
        """Return when a message that starts to leave at `start` has arrived."""
        start = max(start, self._free(hops))
        return self._occupy(hops, start, nbytes) + sum(link.latency_seconds for link in hops)

    def _free(self, hops):
        return max(self.busy_until.get(link.pipe, 0.0) for link in hops)

    def _occupy(self, hops, start, nbytes):
        """Return when the slowest hop has taken `nbytes` in, and keep the hops busy until then."""
        end = start + nbytes / min(link.bytes_per_second for link in hops)
        for link in hops:
            self.busy_until[link.pipe] = end
        return end


class _Sent:
    def __init__(self, stamp_request, stamp, request):
        self.stamp_request, self.stamp, self.request = stamp_request, stamp, request

    def Wait(self):  # noqa: N802
        if self.stamp_request is not None:
            self.stamp_request.Wait()
        self.request.Wait()

    def Test(self):  # noqa: N802
        return (self.stamp_request is None or self.stamp_request.Test()) and self.request.Test()


class _Received:
    def __init__(self, comm, hops, stamp, nbytes, requests):
        self.comm, self.hops, self.stamp, self.nbytes = comm, hops, stamp, nbytes
        self.requests, self.due = requests, None

    def Wait(self):  # noqa: N802
        for request in self.requests:
            request.Wait()
        left = self._due() - time.monotonic()
        if left > 0:
            time.sleep(left)

    def Test(self):  # noqa: N802
        return all(request.Test() for request in self.requests) and self._due() <= time.monotonic()

    def _due(self):
        """Return when the link delivers the message; asked for in the order of the messages."""
        if self.due is None:
            self.due = self.comm.arrival(self.hops, self.stamp[0], self.nbytes)
        return self.due


def _hops(cluster, source, target):
    return cluster.route(cluster.names[source], cluster.names[target])
