"""What was wanted of strategies, beside what `strategies.py` has found."""

import math

import numpy as np
from study import head, row

SOONER = {12.5e6: 1.4, 1.25e6: 3.0, 0.125e6: 12.0}
"""Bytes a second of links -> times sooner than synchronous int8 that the chosen row is to be."""
MOST_STEPS, MOST_BYTES, MOST_POINTS, LEAST_BUFFERED, MOST_ERROR = 1.4, 1 / 25, 0.5, 2.0, 0.05
IID, CLIENTS = "IID", "20 sites"
BASE, DENSE = "synchronous, int8", "16 local steps, int8"
SPARSE = ("16 local steps, top 2 %, 2 bits", "SparseLoCo, 16 steps, top 2 %, 2 bits")
FEDERATED, BUFFERED = "FedAvg, int8", "Buffered, 10 of 20, 13 steps, int8"


def target_lines(tables, errors):
    """Yield the lines of a table of targets; those that nothing was measured of are left out.

    tables: table -> row -> Found. errors: of predicted seconds, as shares.
    """
    rows = [
        *_sooner(tables.get(IID, {})),
        *_sparse(tables.get(IID, {})),
        *_buffered(tables.get(CLIENTS, {})),
    ]
    if errors:
        median = float(np.median(errors))
        rows.append(
            (
                "median error of predicted seconds",
                f"{100 * median:.1f} %",
                f"<= {100 * MOST_ERROR:.0f} %",
                median <= MOST_ERROR,
            )
        )
    if rows:
        yield from ("## Targets", "", *head("target", ["measured", "wanted", "met"]))
        for name, measured, wanted, met in rows:
            yield row(name, [measured, wanted, "yes" if met else "**no**"])
        yield ""


def _sooner(found):
    for rate, wanted in SOONER.items():
        chosen = min(found.values(), key=lambda each: each.validated_seconds(rate), default=None)
        if chosen is None or math.isinf(chosen.validated_seconds(rate)) or BASE not in found:
            continue
        sooner = _mean(chosen.times_sooner(found[BASE], rate))
        steps = _mean(
            [mine / theirs for mine, theirs in zip(chosen.steps, found[BASE].steps) if mine and theirs]
        )
        yield (
            f"{IID}, {8 * rate / 1e6:g} Mbit/s: times sooner, and times the steps ({chosen.row.name})",
            f"{sooner:.2f}, {steps:.2f}",
            f">= {wanted:g}, <= {MOST_STEPS:g}",
            sooner >= wanted and steps <= MOST_STEPS,
        )


def _sparse(found):
    for name in SPARSE:
        if name in found and DENSE in found:
            share = _sent(found[name]) / _sent(found[DENSE])
            points = 100 * (np.mean(found[DENSE].last_accuracies) - np.mean(found[name].last_accuracies))
            yield f"{name}: bytes, of int8's", f"1/{1 / share:.0f}", "<= 1/25", share <= MOST_BYTES
            yield (
                f"{name}: points below {DENSE} at the end",
                f"{points:.2f}",
                f"<= {MOST_POINTS:g}",
                points <= MOST_POINTS,
            )


def _buffered(found):
    if FEDERATED in found and BUFFERED in found:
        sooner = found[BUFFERED].times_sooner(found[FEDERATED], 1.25e6)
        if sooner:
            times = _mean(sooner)
            yield (
                f"{CLIENTS}, 10 Mbit/s: {BUFFERED} sooner than {FEDERATED}",
                f"{times:.2f}",
                f">= {LEAST_BUFFERED:g}",
                times >= LEAST_BUFFERED,
            )


def _sent(each):
    """Return the bytes of a whole run."""
    return each.runs[0]["looks"][-1][2]


def _mean(ratios):
    return math.exp(np.mean(np.log(ratios))) if ratios else math.nan
