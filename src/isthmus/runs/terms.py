"""What a step's time went into, from what every rank measured of it."""

import numpy as np

from isthmus.registry import ALLREDUCE_STAGES


def critical_terms(of_rank, leaders):
    """Return the seconds of one step's terms: they add up to rank 0's step, or to little more.

    of_rank: what each rank measured, name -> float64[ranks]. Computing lasts as long as the slowest
    rank's. The allreduce is charged from the moment the last rank arrives. Two leaders that exchange
    their wires wait for each other: what one waits too long the other waits too little, and the
    mean is the crossing. Elsewhere the rank that arrives last waits for none, so the least time is
    the allreduce's. What the stages leave of it is the broadcast to the ranks behind the leaders. What
    a link takes while another site computes is not what the step takes, so "links" is what is left of
    them; "wait" is what no term explains, such as a rank that was late for once.
    """
    charged = np.mean if leaders is not None and len(leaders) == 2 else np.min
    speakers = slice(None) if leaders is None else leaders
    terms = {"compute": of_rank["compute"].max()}
    allreduce = charged(of_rank["allreduce"][speakers])
    for stage in ALLREDUCE_STAGES[:-1]:
        terms[stage] = charged(of_rank[stage][speakers])
    terms["broadcast"] = max(0.0, allreduce - sum(terms[stage] for stage in ALLREDUCE_STAGES[:-1]))
    terms["update"] = of_rank["update"].max()
    left = of_rank["step"][0] - sum(terms.values())
    terms["links"] = max(0.0, terms["links"] + min(0.0, left))
    terms["wait"] = max(0.0, left)
    return {name: float(seconds) for name, seconds in terms.items()}
