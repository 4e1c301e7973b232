"""What a stream of requests comes to in numbers, predicted and measured."""

import numpy as np

from isthmus.timing.requests import TERMS


def prediction_of(played):
    """Return what the terms of all edge ranks' requests come to."""
    spread = _spread(np.concatenate([_totals(terms) for terms in played]))
    return spread | {name: _mean([terms[name] for terms in played]) for name in TERMS}


def answers_table(predicted, rows, told):
    """Return what one run of the stream came to: `rows` of all requests, what edge ranks told."""
    from_cloud, seconds, late, right = rows.T[1:5]
    sums = ("sent_nbytes", "predicted_nbytes", "batches", "checked", "differing", "changed")
    return {
        "requests": len(rows),
        "from_cloud": int(from_cloud.sum()),
        "late": int(late.sum()),
        "accuracy": None if np.isnan(right).any() else float(right.mean()),
        "predicted": predicted,
        "measured": _spread(seconds)
        | {name: _mean([rows[:, 5 + place]]) for place, name in enumerate(TERMS)},
        "percentiles": np.percentile(seconds, range(101)).tolist(),
        **{name: sum(each[name] for each in told) for name in sums},
        **{
            name: np.sum([each[name] for each in told], axis=0).tolist()
            for name in ("asked", "by_split")
        },
    }


def _totals(terms):
    return np.nansum([terms[name] for name in TERMS], axis=0)


def _spread(seconds):
    """Return mean, median and 99th percentile; the requests are never none."""
    return {
        "mean": float(seconds.mean()),
        "p50": float(np.quantile(seconds, 0.5)),
        "p99": float(np.quantile(seconds, 0.99)),
    }


def _mean(parts):
    """Return the mean of those that are numbers, 0 where there are none."""
    values = np.concatenate(parts)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0
