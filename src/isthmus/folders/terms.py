"""What a step's time went into, from what every rank measured of it."""

from statistics import fmean, median

import numpy as np

from isthmus.registry import ALLREDUCE_STAGES

PHASES = ("compute", "allreduce", "update")
"""Of a rank's step: what it takes beside them is Python's."""


def critical_terms(of_rank, leaders):
    """Return the seconds of one step's terms: they add up to rank 0's step, or to little more.

    of_rank: what each rank measured, name -> float64[ranks]. Computing lasts as long as the slowest
    rank's. The allreduce is charged from the moment the last rank arrives. Two leaders that exchange
    their wires wait for each other: what one waits too long the other waits too little, and the
    mean is the crossing. Elsewhere the rank that arrives last waits for none, so the least time is
    the allreduce's. What the stages leave of it is the broadcast to the ranks behind the leaders. What
    a link takes while another site computes is not what the step takes, so "links" is what is left of
    them; and then "reduce", where a leader waits for a rank of its site that still computes. "python" is
    what rank 0 does between its phases, and "wait" is what no term explains, such as a rank that was
    late for once.
    """
    charged = np.mean if leaders is not None and len(leaders) == 2 else np.min
    speakers = slice(None) if leaders is None else leaders
    terms = {"compute": of_rank["compute"].max()}
    allreduce = charged(of_rank["allreduce"][speakers])
    for stage in ALLREDUCE_STAGES[:-1]:
        terms[stage] = charged(of_rank[stage][speakers])
    terms["broadcast"] = max(0.0, allreduce - sum(terms[stage] for stage in ALLREDUCE_STAGES[:-1]))
    terms["update"] = of_rank["update"].max()
    terms["python"] = max(0.0, of_rank["step"][0] - sum(of_rank[name][0] for name in PHASES))
    left = of_rank["step"][0] - sum(terms.values())
    for stage in ("links", "reduce"):
        waited = min(terms[stage], max(0.0, -left))
        terms[stage], left = terms[stage] - waited, left + waited
    terms["wait"] = max(0.0, left)
    return {name: float(seconds) for name, seconds in terms.items()}


class RoundTerms:
    """The terms of steps that sites make on their own between two exchanges.

    Where sites are not equally fast, one is behind until they meet, and its steps are not what the
    others waited for. So the terms are those of all phases since the last exchange together, and a step
    is told what they have grown by: those of a round add up to it.
    """

    def __init__(self, leaders):
        self.leaders = leaders
        self._begin()

    def of_step(self, of_rank, exchanged):
        """Return term -> seconds of one step; exchanged: whether an exchange ended it."""
        self.sums = {
            name: seconds + self.sums[name] if self.sums else seconds
            for name, seconds in of_rank.items()
        }
        terms = {
            name: max(0.0, seconds - self.told.get(name, 0.0))
            for name, seconds in critical_terms(self.sums, self.leaders).items()
        }
        self.told = {name: self.told.get(name, 0.0) + seconds for name, seconds in terms.items()}
        if exchanged:
            self._begin()
        return terms

    def _begin(self):
        self.sums, self.told = {}, {}


def link_rounds(steps):
    """Return (seconds on links, steps) of each round that an exchange has ended; `steps` as below."""
    rounds, seconds, count = [], 0.0, 0
    for terms, exchanged in steps:
        seconds, count = seconds + terms["links"], count + 1
        if exchanged:
            rounds.append((seconds, count))
            seconds, count = 0.0, 0
    return rounds


def typical_terms(steps):
    """Return term -> seconds a step, and the seconds of a step: medians over rounds.

    steps: (term -> seconds, whether an exchange ended the step) of each, in order. A round is the steps
    from one exchange to the next, and counts with its mean, so that what is done at its end alone has
    its share. A last round without an exchange is left out, unless there is no other.
    """
    rounds, under_way = [], []
    for terms, exchanged in steps:
        under_way.append(terms)
        if exchanged:
            rounds.append(_mean(under_way))
            under_way = []
    rounds = rounds or [_mean(under_way)]
    names = dict.fromkeys(name for terms in rounds for name in terms)
    return (
        {name: median(terms.get(name, 0.0) for terms in rounds) for name in names},
        median(sum(terms.values()) for terms in rounds),
    )


def _mean(round_):
    names = dict.fromkeys(name for terms in round_ for name in terms)
    return {name: fmean(terms.get(name, 0.0) for terms in round_) for name in names}
