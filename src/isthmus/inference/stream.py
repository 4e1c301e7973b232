"""The requests of one stream at an edge rank: which have come, wait, are under way or answered."""

import math
import time
from collections import deque
from itertools import groupby

import numpy as np

from isthmus.inference.answering import REST_SECONDS
from isthmus.inference.answers import Answers
from isthmus.inference.messages import (
    ANSWER_HEAD_TAG,
    ANSWER_TAG,
    BODY_TAG,
    HEAD_TAG,
    answers_of,
    batch_nbytes,
    empty_answer_head,
    head_of,
)
from isthmus.links.comm import Comm
from isthmus.planning.cascades import MEASURES, Cascade, probabilities_of
from isthmus.timing.requests import TERMS

SHARE_OF_QUEUE = 0.25
"""Of the seconds that a request may wait for the link: what one message takes to cross it at most."""
TURNS = 16
"""Of which the longest says how much sooner than its deadline a request is answered by the edge."""
HEDGED_TOGETHER = 8
"""Requests that the edge answers at a time while it waits: few, so that it soon looks at the link."""


class Sent:
    """A batch under way: its requests, when it was sent, and the answer that is awaited."""

    def __init__(self, comm: Comm, peer: int, indices, batch, split, now):
        self.comm, self.peer, self.indices, self.at = comm, peer, indices, now
        self.nbytes = batch.nbytes
        self.kept = head_of(batch, split), batch  # until they have been sent
        self.sending = [comm.Isend(self.kept[0], peer, HEAD_TAG), comm.Isend(batch, peer, BODY_TAG)]
        self.head, self.answers = empty_answer_head(), None
        self.request = comm.Irecv(self.head, peer, ANSWER_HEAD_TAG)

    def arrived(self, as_scores):
        """Return whether the answer is there, in `head` and `answers`."""
        if not self.request.Test():
            return False
        if self.answers is not None:
            return True
        self.answers = np.empty(
            (len(self.indices), int(self.head[2])), np.float32 if as_scores else np.int32
        )
        self.request = self.comm.Irecv(self.answers, self.peer, ANSWER_TAG)
        return self.request.Test()

    def finish(self):
        """Wait until what was sent may be written over."""
        for request in self.sending:
            request.Wait()


class Stream:
    """Requests with their arrivals, float64[n], as an `Asking` answers them; of a feed, as they come."""

    def __init__(self, asking, features, arrivals):
        self.asking, self.features, self.arrivals = asking, features, arrivals
        count = len(features)
        self.start, self.come, self.unanswered = asking.clock(), 0, count
        self.own = [None] * count  # the edge's scores, or what it computed of a split
        self.answers = [None] * count
        self.from_cloud, self.done = np.zeros(count, bool), np.full(count, np.nan)
        self.server, self.split = np.full(count, -1), np.zeros(count, np.int64)
        self.terms = {name: np.full(count, np.nan) for name in TERMS}
        self.queue, self.unsure = deque(), deque()  # to be sent; sent, and not yet answered here either
        self.under_way = [deque() for _ in asking.servers]
        self.tickets = []  # of a feed: (ticket, place in it) of each request that has come
        self.pending = np.zeros(len(asking.servers), int)
        self.batches = self.predicted_nbytes = 0
        self.quickest = math.inf  # from decision to answer, of any batch
        self.turns = deque([0.0], maxlen=TURNS)  # seconds of the last that did something

    def now(self):
        return self.asking.clock() - self.start

    def _answer(self, index, answer, from_cloud, now):
        """Note the first answer to a request; another one is thrown away."""
        if self.answers[index] is not None:
            return
        self.answers[index], self.from_cloud[index], self.done[index] = answer, from_cloud, now
        self.unanswered -= 1
        if self.tickets:
            ticket, place = self.tickets[index]
            ticket.give(place, answer[0] if len(answer) == 1 else answer, from_cloud)

    def go_on(self):
        """Do what there is to do, or rest a little."""
        began = self.now()
        moved = self.take_answers()
        moved |= self.expire()
        moved |= self.take_new()
        moved |= self.send()
        if moved:
            self.turns.append(self.now() - began)
        elif not self.hedge():
            time.sleep(REST_SECONDS)

    @property
    def full(self):
        """Whether a feed's requests have taken all places here."""
        return len(self.tickets) == len(self.features)

    def fill(self, feed):
        """Take what waits in a feed, as far as there are places; return whether there was anything."""
        first = len(self.tickets)
        taken = feed.take(min(len(self.features) - first, self.asking.batch))
        for index, (row, came, ticket, place) in enumerate(taken, first):
            self.features[index], self.arrivals[index] = row, came - self.start
            self.tickets.append((ticket, place))
        self.unanswered += len(taken)
        return bool(taken)

    # What the edge does.

    def take_new(self):
        """Have the edge do its part of requests that have come; return whether there were any."""
        asking = self.asking
        come = int(np.searchsorted(self.arrivals, self.now(), side="right"))
        first, last = self.come, min(come, self.come + asking.batch)
        if first == last:
            return False
        self.come = last
        edge, split, following = asking.edge, 0, asking.following
        if following is not None:
            split = following.choose()
            edge = following.halves[split][0]
        self.split[first:last] = split
        if edge is None:
            self.terms["edge"][first:last] = 0.0
            self.queue.extend(range(first, last))
            return True
        made = edge(self.features[first:last])
        now = self.now()
        self.terms["edge"][first:last] = now - self.arrivals[first:last]
        kept = self._kept(made, following is not None and not following.sends(split))
        if kept.any():
            ready = answers_of(self._rest(split, made[kept]), asking.as_scores)
            for index, answer in zip(first + np.flatnonzero(kept), ready):
                self._answer(index, answer, False, now)
        for offset in np.flatnonzero(~kept):
            self.own[first + offset] = made[offset]
            self.queue.append(first + int(offset))
        return True

    def _rest(self, split, made):
        """Return the scores of what the edge has made of requests."""
        following = self.asking.following
        return self.asking.rest(made) if following is None else following.rest(split, made)

    def _kept(self, made, alone):
        """Return bool[n]: which of the edge's scores it answers by itself; all where it is `alone`."""
        plan = self.asking.plan
        if not isinstance(plan, Cascade):
            return np.full(len(made), alone or plan == "edge")
        finite = np.isfinite(made).all(1)
        sure = np.full(len(made), -np.inf)
        if finite.any():
            sure[finite] = MEASURES[plan.measure](probabilities_of("edge scores", made[finite]))
        return (sure >= self._threshold(plan)) & finite

    def _threshold(self, plan):
        """Return the threshold: what was planned, and less the longer requests wait for the link."""
        pressure = self._waited() / self.asking.queue_seconds if self.asking.queue_seconds else 0.0
        if pressure <= 0:
            return plan.threshold
        share = plan.share + (1 - plan.share) * min(1.0, pressure)
        return -math.inf if share >= 1 else min(plan.threshold, plan.threshold_at(share))

    def _waited(self):
        """Return the seconds that the oldest request has waited beyond what one without a queue does."""
        oldest = [self.queue[0]] if self.queue else []
        oldest += [sent[0].indices[0] for sent in self.under_way if sent]
        if not oldest:
            return 0.0
        decided = min(self.arrivals[i] + self.terms["edge"][i] for i in oldest)
        quickest = self.quickest if math.isfinite(self.quickest) else 0.0
        return self.now() - decided - quickest

    def expire(self):
        """Answer at the edge what the cloud has not answered in time; return whether there was any.

        What falls due within a turn, as long as the longest of the last ones, is answered now; none is
        before half its time is over.
        """
        asking = self.asking
        if not asking.hedges or math.isinf(asking.deadline):
            return False
        due, now = [], self.now() + min(max(self.turns), asking.deadline / 2)
        for waiting in (self.unsure, self.queue):  # each in order of arrival
            while waiting and self.arrivals[waiting[0]] + asking.deadline <= now:
                index = waiting.popleft()
                if self.answers[index] is None:
                    due.append(index)
        self._answer_here(due)
        return bool(due)

    def hedge(self):
        """Answer a few requests here while the cloud is at work on them; return if there were any."""
        asking = self.asking
        if not asking.hedges or math.isfinite(asking.deadline) or isinstance(asking.plan, Cascade):
            return False
        few = []
        while self.unsure and len(few) < HEDGED_TOGETHER:
            index = self.unsure.popleft()
            if self.answers[index] is None:
                few.append(index)
        self._answer_here(few)
        return bool(few)

    def _answer_here(self, indices):
        if not indices:
            return
        for split, some in groupby(indices, self.split.__getitem__):
            several = list(some)
            own = [self.own[index] for index in several]
            made = self.features[several] if own[0] is None else np.stack(own)
            ready = answers_of(self._rest(split, made), self.asking.as_scores)
            now = self.now()
            for index, answer in zip(several, ready):
                self._answer(index, answer, False, now)

    # What goes to the cloud.

    def send(self):
        """Send a batch if one waits and a cloud rank has room; return whether it did."""
        asking = self.asking
        free = np.array([len(sent) < asking.window for sent in self.under_way])
        if not self.queue or not free.any():
            return False
        place = asking.rule.choose(free, self.pending)
        first = self.own[self.queue[0]] if asking.sends_made else self.features[0]
        indices, split = [], self.split[self.queue[0]]
        while (
            self.queue and self.split[self.queue[0]] == split and len(indices) < self._most(first.nbytes)
        ):
            indices.append(self.queue.popleft())
        batch = (
            np.stack([self.own[index] for index in indices])
            if asking.sends_made
            else np.ascontiguousarray(self.features[indices])
        )
        now, peer = self.now(), asking.servers[place]
        self.under_way[place].append(Sent(asking.comm, peer, indices, batch, int(split), now))
        self.predicted_nbytes += batch_nbytes(
            asking.comm.comm, len(batch), batch.nbytes // len(batch), peer
        )
        for index in indices:
            self.terms["wait"][index] = now - self.arrivals[index] - self.terms["edge"][index]
            self.server[index] = peer
        self.unsure.extend(indices)
        self.pending[place] += len(indices)
        self.batches += 1
        return True

    def _most(self, nbytes):
        """Return how many requests of so many bytes go in one message: as many as cross quickly."""
        asking = self.asking
        quickly = SHARE_OF_QUEUE * asking.queue_seconds / max(nbytes * asking.seconds_per_byte, 1e-12)
        return int(min(asking.batch, max(1.0, quickly)))

    def take_answers(self):
        """Take the answers that are there; return whether there were any."""
        asking, found = self.asking, False
        for place, sent in enumerate(self.under_way):
            while sent and sent[0].arrived(asking.as_scores):
                found = True
                batch, now = sent.popleft(), self.now()
                here = asking.ahead[asking.comm.rank] - asking.ahead[batch.peer]
                came, done = batch.head[:2] + here - self.start
                self.pending[place] -= len(batch.indices)
                if asking.following is not None:
                    asking.following.note(batch.peer, batch.at, came, done, batch.nbytes)
                for index, answer in zip(batch.indices, batch.answers):
                    if self.answers[index] is None:
                        self.terms["send"][index] = came - batch.at
                        self.terms["compute"][index] = done - came
                        self.terms["back"][index] = now - done
                    self._answer(index, answer, True, now)
                first = batch.indices[0]
                decided = self.arrivals[first] + self.terms["edge"][first]
                self.quickest = min(self.quickest, now - decided)
                batch.finish()
        return found

    def finish(self):
        """Take what is still under way: its requests have been answered here."""
        while any(self.under_way):
            if not self.take_answers():
                time.sleep(REST_SECONDS)

    def told(self, sent_nbytes):
        """Return the Answers once all are there."""
        rows = np.stack(self.answers) if self.answers else np.empty((0, 1), np.int32)
        seconds = self.done - self.arrivals
        for name, kept in self.terms.items():
            if name != "edge":
                kept[~self.from_cloud] = np.nan
        self.terms["edge"][~self.from_cloud] = seconds[~self.from_cloud]
        return Answers(
            answers=rows if self.asking.as_scores else rows[:, 0],
            from_cloud=self.from_cloud,
            seconds=seconds,
            late=seconds > self.asking.deadline,
            terms=self.terms,
            server=self.server,
            split=self.split,
            sent_nbytes=sent_nbytes,
            predicted_nbytes=self.predicted_nbytes,
            batches=self.batches,
        )
