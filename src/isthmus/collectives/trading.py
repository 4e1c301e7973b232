"""Vectors that pass each other: each rank sends one and takes one, and no link's queue fills up."""

import math
from dataclasses import dataclass

from isthmus.collectives.messages import PIECE_NBYTES, adding, pieces, receiving, wait_for
from isthmus.compression.chunks import WIRE_NBYTES
from isthmus.timing.window import way_nbytes

MESSAGES_AHEAD = 8
"""At least, of those of a window, unless they would be shorter than WIRE_NBYTES."""


@dataclass(frozen=True)
class Flow:
    """Messages from one rank to another: most bytes of each (None: PIECE_NBYTES), and how many a rank
    sends before as many have come to it (None: all)."""

    nbytes: int | None = None
    ahead: int | None = None

    @classmethod
    def between(cls, cluster, here, there):
        """Return the Flow from one site of a cluster to another, by number.

        As much is under way as the links carry in a round trip; inside a site, all that there is.
        """
        window = math.inf if here == there else way_nbytes(cluster, here, there, WIRE_NBYTES)
        if math.isinf(window):
            return cls()
        nbytes = int(min(PIECE_NBYTES, max(WIRE_NBYTES, window / MESSAGES_AHEAD))) // 4 * 4
        return cls(nbytes, int(max(2, window // nbytes)))


AT_ONCE = Flow()


def trade(comm, given, target, taken, source, sends, takes, inbox=None):
    """Send `given` to `target` while `taken` takes what `source` sends, and return when both are done.

    It is added to `taken` by way of an `inbox`, and overwrites it without one. sends, takes: the Flow to
    the one, and from the other to here.
    """
    if inbox is None:
        arriving = receiving(comm, taken, source, nbytes=takes.nbytes)
        coming = (request.Wait() for request in arriving)
    else:
        coming = adding(comm, taken, source, inbox, takes.nbytes)
    leaving, sent = pieces(given, sends.nbytes), []

    def send(most):
        sent.extend(comm.Isend(given[piece], target) for piece in leaving[len(sent) : most])

    ahead = len(leaving) if sends.ahead is None else sends.ahead
    send(ahead)
    for came, _ in enumerate(coming, 1):
        send(came + ahead)
    send(len(leaving))
    wait_for(sent)
