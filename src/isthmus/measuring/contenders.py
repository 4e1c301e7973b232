"""How long the allreduces take that `algorithm = "auto"` may choose: each where it may be fastest."""

import numpy as np

from isthmus.jobs.choosing import what_is_tried
from isthmus.links.agreement import from_root
from isthmus.measuring.messages import NBYTES, allreduce_seconds
from isthmus.timing.choice import candidates_on
from isthmus.timing.fits import rounded

LONG_NBYTES = (15360 * 1024, 61440 * 1024)
"""Beyond those of single messages, where the links are fast."""
NEAR = 2.0
"""Times as long as the fastest so far that an allreduce may be predicted to take, to be measured."""
LONGEST_SECONDS = 0.25
"""That one may be predicted to take, to be measured."""
CLOSE = 2.0
"""Times as long as the fastest that one may have taken, to be measured once more."""
SECONDS = 0.1
"""For each size and allreduce, each time."""


def contenders(tiers, settings, repetitions, cluster):
    """Return the tables of a cluster file's [[calibration.contenders]]: measured over predicted seconds.

    Of each size those are measured, one after another, that are predicted to come near the fastest of
    those before that have no larger error; then those once more that were close to it, and the shorter
    time counts: whatever else happens on a machine only makes one longer. cluster: the calibrated one.
    Collective.
    """
    compressors, algorithms, largest_error = what_is_tried(settings, tiers.joined)
    rows = {}
    for nbytes in sorted({*NBYTES, *LONG_NBYTES, 4 * settings.make_model().size} - {0}):

        def allowed(nbytes=nbytes):
            found = candidates_on(cluster, nbytes // 4, compressors, algorithms)
            within = [each for each in found if each.error <= largest_error]
            return [
                [each.name, each.algorithm, compressors.index(each.compressor), each.chunk_nbytes]
                + [each.seconds, each.error]
                for each in sorted(within, key=lambda each: each.seconds)
            ]

        in_turn = from_root(tiers.world, allowed, tiers.home)
        found = {}  # name -> (seconds, error)
        for name, algorithm, number, chunk_nbytes, predicted, error in (*in_turn, *reversed(in_turn)):
            fastest = min((median for median, other in found.values() if other <= error), default=np.inf)
            if name in found:
                if found[name][0] > CLOSE * fastest:
                    continue
            elif predicted > min(NEAR * fastest, LONGEST_SECONDS):
                continue
            _, seconds = allreduce_seconds(
                tiers,
                algorithm,
                [nbytes],
                SECONDS,
                repetitions,
                compressor=compressors[number],
                chunk_nbytes=chunk_nbytes,
            )
            median = min(float(np.median(seconds)), found.get(name, (np.inf,))[0])
            found[name] = median, error
            rows.setdefault(name, {})[nbytes] = rounded(median / max(predicted, 1e-9))
    return [
        {"name": name, "nbytes": list(factors), "factors": list(factors.values())}
        for name, factors in rows.items()
    ]
