"""What a step's time went into, from what every rank measured of it."""

import numpy as np

from isthmus.collectives.counting import StageClock

TERMS = ("compute", *StageClock.STAGES, "update")


def critical_terms(of_rank, leaders):
    """Return the seconds of one step's terms, waiting for the slowest rank left out.

    of_rank: what each rank measured, name -> float64[ranks]. Computing lasts as long as the slowest
    rank's. The allreduce is charged from the moment the last rank arrives. Two leaders that exchange
    their wires wait for each other: what one waits too long the other waits too little, and the
    mean is the crossing. Elsewhere the rank that arrives last waits for none, so the least time is
    the allreduce's. What the stages leave of it is the broadcast to the ranks behind the leaders.
    """
    charged = np.mean if leaders is not None and len(leaders) == 2 else np.min
    speakers = slice(None) if leaders is None else leaders
    terms = {"compute": of_rank["compute"].max()}
    allreduce = charged(of_rank["allreduce"][speakers])
    for stage in StageClock.STAGES[:-1]:
        terms[stage] = charged(of_rank[stage][speakers])
    terms["broadcast"] = max(0.0, allreduce - sum(terms[stage] for stage in StageClock.STAGES[:-1]))
    terms["update"] = of_rank["update"].max()
    return {name: float(seconds) for name, seconds in terms.items()}
