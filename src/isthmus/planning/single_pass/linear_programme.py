"""Divisible load in several rounds, as a linear programme; which order, as an integer programme."""

from bisect import bisect_left

import numpy as np

from isthmus.planning.programme.silence import silent
from isthmus.planning.single_pass.served_in_turn import best_subset

ORDERED_WORKERS = 8
"""Workers up to which the integer programme looks for the best order of several rounds."""


def solve_rounds(root, workers, links, latencies, order, rounds, one_port):
    """Return seconds, root's share and workers' shares: `rounds` messages for each of `order`.

    One port: round after round, in each the workers in `order`; else every link on its own. All of
    `order` get all their messages, empty ones too. Without rounds (1) the closed forms agree.
    """
    from scipy.optimize import linprog

    order = list(order)
    count = len(order) * rounds
    columns = 2 + 2 * count  # T, the root's share, parts by round and worker, ends of messages
    parts, ends = (np.arange(2 * count) + 2).reshape(2, rounds, len(order))
    rows, sent, late = _Rows(columns), _Rows(columns), []
    if root is not None:
        rows.add([(1, float(root)), (0, -1)])
    for turn in range(rounds):
        for place, worker in enumerate(order):
            before = _message_before(ends, turn, place, one_port)
            sent.add(
                [(ends[turn, place], 1), (parts[turn, place], -float(links[worker]))]
                + ([(before, -1)] if before is not None else [])
            )
            late.append(float(latencies[worker]))
            rows.add(
                [(ends[turn, place], 1), (0, -1)]
                + [(part, float(workers[worker])) for part in parts[turn:, place]]
            )
    whole = _Rows(columns)
    whole.add([(part, 1) for part in parts.flat] + ([(1, 1)] if root is not None else []))
    with silent():
        found = linprog(
            np.eye(1, columns)[0],
            A_ub=rows.matrix() if rows.count else None,
            b_ub=np.zeros(rows.count) if rows.count else None,
            A_eq=_stack(sent, whole),
            b_eq=[*late, 1.0],
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
    if found.x is None:
        raise AssertionError(f"a single pass always has a plan, but the solver says: {found.message}")
    shares = np.zeros(len(workers))
    shares[order] = found.x[parts].sum(axis=0)
    root_share = 0.0 if root is None else float(found.x[1])
    return float(found.fun), root_share, tuple(shares.tolist())


def best_order_of_rounds(root, workers, links, latencies, rounds, order=None):
    """Return the best order of one port for several rounds, and None or a lower bound of seconds.

    An order that is given stays as it is, but for workers that only cost time. Exact to the
    solver's tolerance up to ORDERED_WORKERS workers; beyond, those that a single round with all
    latencies would take, and the bound of endless rounds without latency.
    """
    chosen = sorted(range(len(workers)), key=links.__getitem__) if order is None else list(order)
    if len(chosen) <= ORDERED_WORKERS:
        return _by_integers(root, workers, links, latencies, rounds, chosen, order is None), None
    late = [rounds * latency for latency in latencies]
    return (best_subset(root, workers, links, late, chosen), _fluid_bound(root, workers, links, chosen))


def worth_their_messages(root, workers, links, latencies, rounds, chosen):
    """Return the workers worth their messages where links work at once: all that T leaves time for.

    By latency, more workers make T smaller until the next one's latencies alone take as long.
    """
    delayed = sorted(chosen, key=latencies.__getitem__)

    def too_late(count):
        within = (
            solve_rounds(root, workers, links, latencies, delayed[:count], rounds, False)[0]
            if count or root is not None
            else np.inf
        )
        return rounds * latencies[delayed[count]] >= within

    part = set(delayed[: bisect_left(range(len(delayed)), True, key=too_late)])
    return [worker for worker in chosen if worker in part]


def _by_integers(root, workers, links, latencies, rounds, chosen, free):
    """Which worker at which place, with binaries y[place, worker]; a part needs its binary.

    The worker at a place is the same in all rounds, so that every limit is linear without big
    numbers: end of message (round, place) = all latencies and parts so far; that end and what is
    left to compute at the place from that round on is within T.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    size = len(chosen)
    choice = np.arange(size * size).reshape(size, size) + 2
    parts = np.arange(rounds * size * size).reshape(rounds, size, size) + 2 + size * size
    columns = 2 + size * size * (rounds + 1)
    rows, upper, lower = _Rows(columns), [], []

    def limit(terms, low, high):
        rows.add(terms)
        lower.append(low)
        upper.append(high)

    if root is not None:
        limit([(1, float(root)), (0, -1)], -np.inf, 0)
    limit([(part, 1) for part in parts.flat] + ([(1, 1)] if root is not None else []), 1, 1)
    for k in range(size):
        limit([(y, 1) for y in choice[k]], 0, 1)
        limit([(y, 1) for y in choice[:, k]], 0, 1)
        if k + 1 < size and free:  # no empty place before one that is taken
            limit([(y, 1) for y in choice[k]] + [(y, -1) for y in choice[k + 1]], 0, np.inf)
        for i in range(size):
            limit([(part, 1) for part in parts[:, k, i]] + [(choice[k, i], -1)], -np.inf, 0)
            if not free and i != k:
                limit([(choice[k, i], 1)], 0, 0)
    link, own, late = (
        np.array([float(values[i]) for i in chosen]) for values in (links, workers, latencies)
    )
    for turn in range(rounds):
        for k in range(size):
            sent = np.zeros(columns)
            for earlier in range(turn + 1):
                places = slice(0, size if earlier < turn else k + 1)
                sent[parts[earlier, places]] += link
                sent[choice[places]] += late
            sent[parts[turn:, k]] += own
            limit([*((column, sent[column]) for column in np.flatnonzero(sent)), (0, -1)], -np.inf, 0)
    integrality = np.zeros(columns)
    integrality[choice] = 1
    high = np.full(columns, np.inf)
    high[choice] = 1
    with silent():
        found = milp(
            np.eye(1, columns)[0],
            constraints=LinearConstraint(rows.matrix(), lower, upper),
            integrality=integrality,
            bounds=Bounds(0, high),
            options={"mip_rel_gap": 0.0},
        )
    places, taken = np.nonzero(found.x[choice] > 0.5)
    return [chosen[i] for _, i in sorted(zip(places, taken))]


def _fluid_bound(root, workers, links, chosen):
    """Return the seconds of endless rounds without latency: rates up to 1 / w, one port of 1."""
    rate, port = 0.0 if root is None else 1 / float(root), 1.0
    for worker in sorted(chosen, key=links.__getitem__):
        taken = min(1 / float(workers[worker]), port / float(links[worker]))
        port -= taken * float(links[worker])
        rate += taken
    return 1 / rate


def _message_before(ends, turn, place, one_port):
    """Return the column of the end of the message that must be through first, or None."""
    if one_port:
        number = turn * ends.shape[1] + place
        return ends.flat[number - 1] if number else None
    return ends[turn - 1, place] if turn else None


class _Rows:
    """Rows of a sparse matrix, as (column, value) pairs."""

    def __init__(self, columns):
        self.columns, self.count, self.triples = columns, 0, []

    def add(self, terms):
        self.triples += [(self.count, column, value) for column, value in terms]
        self.count += 1

    def matrix(self):
        from scipy.sparse import csr_matrix

        row, column, value = zip(*self.triples)
        return csr_matrix((value, (row, column)), shape=(self.count, self.columns))


def _stack(*rows):
    from scipy.sparse import vstack

    return vstack([block.matrix() for block in rows if block.count])
