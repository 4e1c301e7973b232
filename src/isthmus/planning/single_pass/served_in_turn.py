"""One port, one message a worker: the best workers and the best order, in closed form.

What can be computed in T seconds by workers that are served in a given order is a line, `v T - c`:
a worker (w, z, L) before workers that do `f(s)` in s seconds takes a = (s - L) / (z + w), so that it
finishes with everybody else, and leaves them s - L - z a seconds; full or not at all is best,
because f is convex. With latencies it may be better to leave a worker out, and f becomes the upper
envelope of such lines. The least T is where load(T) + T / w_0 reaches 1.
"""

import math
from typing import NamedTuple

STATES = 20_000
"""Sets of workers (by kind) up to which the best order is found by dynamic programme."""


class Line(NamedTuple):
    """`gain` T - `loss`: what workers, as a chain (first, (second, ...)), compute in T seconds."""

    gain: float
    loss: float
    workers: tuple | None


NOBODY = Line(0, 0, None)


def in_turn(root, workers, links, latencies, order):
    """Return seconds, root's share and workers' shares of a load of 1 served in `order`."""
    line = NOBODY
    for worker in reversed(order):
        line = _before(line, worker, workers, links, latencies)
    seconds = _seconds(line, root)
    left, shares = seconds, [0 * seconds] * len(workers)
    for worker in order:
        shares[worker] = (left - latencies[worker]) / (links[worker] + workers[worker])
        left -= latencies[worker] + links[worker] * shares[worker]
    return seconds, 0 if root is None else seconds / root, tuple(shares)


def best_subset(root, workers, links, latencies, order):
    """Return those of `order` that are worth their message, served in that order."""
    lines = [NOBODY]
    for worker in reversed(order):
        lines = _envelope(
            lines
            + [
                _before(line, worker, workers, links, latencies)
                for line in lines
                if links[worker] * line.gain < 1
            ]
        )
    return _chain(_fastest(lines, root))


def best_order(root, workers, links, latencies):
    """Return the best order, and None where it is proved best, else a lower bound of the seconds.

    Dynamic programme over sets of workers, where workers of one kind (equal seconds and latency)
    count but have no names. NP-hard in general (Legrand, Yang and Casanova 2005), so with too many
    sets the fastest links come first, and the best of the workers in that order are taken.
    """
    kinds = {}
    for worker, kind in enumerate(zip(workers, links, latencies)):
        kinds.setdefault(kind, []).append(worker)
    members = list(kinds.values())
    if math.prod(len(same) + 1 for same in members) > STATES:
        chosen = best_subset(
            root,
            workers,
            links,
            latencies,
            sorted(range(len(workers)), key=lambda i: (links[i], latencies[i])),
        )
        return chosen, _bound(root, workers, links, latencies, chosen)
    best, found = [NOBODY], {(0,) * len(members): [NOBODY]}
    while found:
        wider = {}
        for counts, lines in found.items():
            for kind, same in enumerate(members):
                if counts[kind] < len(same):
                    more = counts[:kind] + (counts[kind] + 1,) + counts[kind + 1 :]
                    wider.setdefault(more, []).extend(
                        _before(line, same[counts[kind]], workers, links, latencies)
                        for line in lines
                        if links[same[0]] * line.gain < 1
                    )
        found = {counts: _envelope(lines) for counts, lines in wider.items() if lines}
        best = _envelope(best + [line for lines in found.values() for line in lines])
    return _chain(_fastest(best, root)), None


def _before(line, worker, workers, links, latencies):
    """Return the line of `worker` followed by those of `line`."""
    unit = links[worker] + workers[worker]
    gain = line.gain + (1 - links[worker] * line.gain) / unit
    return Line(gain, line.loss + gain * latencies[worker], (worker, line.workers))


def _envelope(lines):
    """Return the lines that are highest somewhere at T >= 0, by rising gain."""
    top = []
    for line in sorted(lines, key=lambda line: (line.gain, -line.loss)):
        while top and top[-1].loss >= line.loss:
            top.pop()
        while len(top) > 1 and _hidden(top[-2], top[-1], line):
            top.pop()
        if not top or line.gain > top[-1].gain:
            top.append(line)
    return top


def _hidden(low, middle, high):
    """Whether `middle` is nowhere above both others."""
    return (high.loss - low.loss) * (middle.gain - low.gain) <= (middle.loss - low.loss) * (
        high.gain - low.gain
    )


def _fastest(lines, root):
    return min(
        (line for line in lines if line.workers or root is not None),
        key=lambda line: _seconds(line, root),
    )


def _seconds(line, root):
    return (1 + line.loss) / (line.gain + (0 if root is None else 1 / root))


def _chain(line):
    """Return the workers of a line as a list."""
    order, rest = [], line.workers
    while rest:
        worker, rest = rest
        order.append(worker)
    return order


def _bound(root, workers, links, latencies, chosen):
    """Return what no order can beat: a worker takes at most u of the load, so L counts as L / u."""
    within = in_turn(root, workers, links, latencies, chosen)[0]
    most = [min(1, within / (link + own)) for link, own in zip(links, workers)]
    wider = [link + late / most for link, late, most in zip(links, latencies, most)]
    order = sorted(range(len(workers)), key=wider.__getitem__)
    return in_turn(root, workers, wider, [0] * len(workers), order)[0]
