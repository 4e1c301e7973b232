"""What a cloud rank does in inference: it takes batches from edge ranks and sends the answers back."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from isthmus.inference.forward import Run
from isthmus.inference.messages import (
    ANSWER_HEAD_TAG,
    ANSWER_TAG,
    BODY_TAG,
    HEAD_TAG,
    answers_of,
    empty_batch,
    empty_head,
    split_of,
)
from isthmus.links.comm import Comm

REST_SECONDS = 2e-5
"""Slept where nothing was to do: short beside a link's latency, and leaves the core to others."""


class Asker:
    """An edge rank as the cloud rank sees it: which of its messages is awaited."""

    def __init__(self, comm: Comm, rank: int):
        self.comm, self.rank = comm, rank
        self._await_head()

    def _await_head(self):
        self.head, self.batch = empty_head(), None
        self.request = self.comm.Irecv(self.head, self.rank, HEAD_TAG)

    def take(self):
        """Return the next batch and its split if it is there, else None; `left` once nothing comes."""
        if self.request is None or not self.request.Test():
            return None
        if self.batch is None:
            if self.head[0] == 0:
                self.request = None
                return None
            self.batch = empty_batch(self.head)
            self.request = self.comm.Irecv(self.batch, self.rank, BODY_TAG)
            return self.take()
        batch = self.batch, split_of(self.head)
        self._await_head()
        return batch

    @property
    def left(self):
        """Whether it has said that nothing more comes."""
        return self.request is None


def serve(
    comm: Comm, askers: Sequence[int], runs: Sequence[Run], clock: Callable[[], float], as_scores: bool
) -> int:
    """Answer the batches of the ranks `askers` until each has left; return how many requests there were.

    They are served in turn, a batch each. runs: what is computed, by the number of a batch's split.
    """
    waiting = [Asker(comm, rank) for rank in askers]
    under_way: list = []
    requests = 0
    while waiting:
        idle = True
        for asker in waiting:
            if (taken := asker.take()) is None:
                continue
            (batch, split), idle, came = taken, False, clock()
            answers = answers_of(runs[split](batch), as_scores)
            requests += len(batch)
            head = np.array([came, clock(), answers.shape[1], 0.0])
            under_way.append((comm.Isend(head, asker.rank, ANSWER_HEAD_TAG), head))
            under_way.append((comm.Isend(answers, asker.rank, ANSWER_TAG), answers))
        waiting = [asker for asker in waiting if not asker.left]
        under_way = [each for each in under_way if not each[0].Test()]
        if idle and waiting:
            time.sleep(REST_SECONDS)
    for request, _ in under_way:
        request.Wait()
    return requests
