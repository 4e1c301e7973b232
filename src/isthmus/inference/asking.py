"""What an edge rank does in inference: it answers requests, or asks the cloud and goes on."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.inference.answers import Answers
from isthmus.inference.dispatch import DISPATCHES
from isthmus.inference.feed import Feed
from isthmus.inference.following import Following
from isthmus.inference.forward import Run
from isthmus.inference.messages import HEAD_TAG, empty_head
from isthmus.inference.stream import Stream
from isthmus.links.comm import Comm
from isthmus.planning.cascades import Cascade

SLOTS = 4096
"""Requests of a feed after which the link is let run empty once, and memory is used again."""


class Asking:
    """An edge rank's side: the arguments of `Inference`, and the cloud ranks `servers` with their rates.

    edge: what the edge computes of a request first, None for nothing. sends_made: whether that is sent,
    in the place of the request. rest: scores of what `edge` made, by the edge itself, None where it
    cannot. seconds_per_byte: of the slowest link to a server. ahead: float64[ranks], of clocks.
    following: of a split that follows the link, in the place of `edge` and `rest`.
    """

    def __init__(
        self,
        comm: Comm,
        servers: Sequence[int],
        rates: Sequence[float],
        seconds_per_byte: float,
        plan: Cascade | str,
        edge: Run | None,
        rest: Run | None,
        sends_made: bool,
        *,
        batch: int,
        window: int,
        hedge: bool,
        deadline_seconds: float | None,
        queue_seconds: float,
        dispatch: str,
        scores: bool,
        clock: Callable[[], float],
        ahead: npt.NDArray[np.float64],
        following: Following | None = None,
    ):
        self.comm, self.servers, self.plan, self.edge, self.rest = comm, servers, plan, edge, rest
        self.sends_made, self.seconds_per_byte = sends_made, seconds_per_byte
        self.batch, self.window, self.as_scores = batch, window, scores
        self.deadline = math.inf if deadline_seconds is None else deadline_seconds
        self.following = following
        self.hedges = hedge and (rest is not None or following is not None)
        self.queue_seconds, self.clock, self.ahead = queue_seconds, clock, ahead
        self.rule = DISPATCHES[dispatch](rates) if servers else None

    def leave(self) -> None:
        """Tell every cloud rank that nothing more comes."""
        end = empty_head()
        for request in [self.comm.Isend(end, peer, HEAD_TAG) for peer in self.servers]:
            request.Wait()

    def run(self, features: npt.NDArray[Any], arrivals: npt.NDArray[np.float64]) -> Answers:
        """Do as `Inference.answer` says."""
        stream = Stream(self, features, arrivals)
        before = self.comm.sent.sum()
        while stream.unanswered:
            stream.go_on()
        stream.finish()
        return stream.told(int(self.comm.sent.sum() - before))

    def run_feed(self, feed: Feed) -> int:
        """Answer what comes through the feed until it is closed; return how many requests that were."""
        answered = 0
        while not feed.closed or feed.waiting:
            rows = np.empty((SLOTS, *feed.shape), feed.dtype)
            stream = Stream(self, rows, np.full(SLOTS, np.inf))
            stream.unanswered = 0
            while stream.fill(feed) or stream.unanswered or not (stream.full or feed.closed):
                stream.go_on()
            stream.finish()
            answered += len(stream.tickets)
        return answered
