"""Share out data that is read once, where sending overlaps computing: divisible load on a star.

One load, a root that has it, workers on a link each. The whole load would take node i `w_i` seconds
and link i `z_i` seconds. Without latencies the fastest links come first, whatever the workers' speed,
and everybody takes part.

Bharadwaj, Ghose, Mani and Robertazzi 1996, "Scheduling Divisible Loads in Parallel and Distributed
Systems". Beaumont, Casanova, Legrand, Robert and Yang 2005, "Scheduling divisible loads on star and
tree networks: results and open problems".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from isthmus.planning.single_pass.linear_programme import (
    best_order_of_rounds,
    solve_rounds,
    worth_their_messages,
)
from isthmus.planning.single_pass.served_in_turn import best_order, best_subset, in_turn
from isthmus.quantities import whole

MODES = ("sequential", "simultaneous", "cut-through")
Number = float | Fraction
"""Of seconds and of shares: fractions give fractions."""


@dataclass(frozen=True)
class SinglePass:
    """Who computes how much of a load that is read once. The shares are 1 in all."""

    seconds: Number  # when the last is done
    root_share: Number
    worker_shares: tuple[Number, ...]
    order: tuple[int, ...]  # the workers that take part, as the root serves them
    # What no order can beat; `seconds` itself wherever the order is proved best, or was given.
    lower_bound_seconds: Number


def plan_single_pass(
    root_seconds: Number | None,
    worker_seconds: Sequence[Number],
    link_seconds: Sequence[Number],
    *,
    mode: str = "sequential",
    rounds: int = 1,
    latency_seconds: Number | Sequence[Number] = 0.0,
    order: Sequence[int] | None = None,
) -> SinglePass:
    """Return the SinglePass in which root and workers are done soonest.

    root_seconds: for the whole load. The root computes while it sends, or not at all if None.
    worker_seconds, link_seconds: for the whole load on each worker and link.
    mode: "sequential", the root serves one worker after another (one port), and a worker starts when
        it has its part. In "simultaneous" all links work at once. In "cut-through" they do too, and a
        worker computes what has arrived while the rest arrives.
    rounds: messages for each worker that takes part.
    latency_seconds: of a message, one number or one a worker. It occupies the link.
    order: workers in the order to serve. Those that would only cost time are left out of it. None finds
        the best one: for one round without latencies fastest links first, with latencies by dynamic
        programme where kinds of workers are few, for several rounds by integer programme up to eight
        workers. Beyond that fastest links come first, and `lower_bound_seconds` tells what it may cost.

    One round takes whatever computes: Fractions give an exact answer. Raises ValueError for seconds
    that are not positive and finite, and for modes and rounds that do not exist.
    """
    workers, links, latencies = _checked(
        root_seconds, worker_seconds, link_seconds, latency_seconds, order
    )
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    rounds = whole("rounds", rounds, 1)
    if rounds > 1 and mode == "cut-through":
        raise ValueError(
            "mode 'cut-through' has no rounds: what arrives is computed at once; leave rounds at 1"
        )
    _check_order(order, len(workers))
    star = (root_seconds, workers, links, latencies)
    if mode != "sequential":
        chosen = list(range(len(workers))) if order is None else list(order)
        if rounds > 1:
            return _of_rounds(star, chosen, rounds, one_port=False)
        return _at_once(star, chosen, through=mode == "cut-through")
    if rounds > 1:
        return _of_rounds(star, order, rounds, one_port=True)
    bound = None
    if order is not None or not any(latencies):
        chosen = sorted(range(len(workers)), key=links.__getitem__) if order is None else list(order)
        chosen = best_subset(*star, chosen)
    else:
        chosen, bound = best_order(*star)
    seconds, root_share, shares = in_turn(*star, chosen)
    return SinglePass(
        seconds, root_share, shares, tuple(chosen), seconds if bound is None else min(bound, seconds)
    )


def _at_once(star, chosen, through):
    """Return the SinglePass of all links at once: load(T) = T / w_0 + sum of (T - L_i)+ / unit_i."""
    root, workers, links, latencies = star
    unit = {i: max(workers[i], links[i]) if through else workers[i] + links[i] for i in chosen}
    rate, late = (1 / root if root is not None else 0), 0
    part, seconds = [], math.inf if root is None else root
    for worker in sorted(chosen, key=latencies.__getitem__):
        if seconds <= latencies[worker]:
            break
        rate += 1 / unit[worker]
        late += latencies[worker] / unit[worker]
        part.append(worker)
        seconds = (1 + late) / rate
    shares = [0 * seconds] * len(workers)
    taken = set(part)
    for worker in part:
        shares[worker] = (seconds - latencies[worker]) / unit[worker]
    return SinglePass(
        seconds,
        0 if root is None else seconds / root,
        tuple(shares),
        tuple(worker for worker in chosen if worker in taken),
        seconds,
    )


def _of_rounds(star, order, rounds, one_port):
    """Return the SinglePass of several messages a worker, by linear programme."""
    bound = None
    if not one_port:
        order = worth_their_messages(*star, rounds, order)
    elif order is None or any(star[3]):
        order, bound = best_order_of_rounds(*star, rounds, order)
    seconds, root_share, shares = solve_rounds(*star, order, rounds, one_port)
    return SinglePass(
        seconds, root_share, shares, tuple(order), seconds if bound is None else min(bound, seconds)
    )


def _checked(root, workers, links, latency, order):
    """Return workers, links and latencies as lists of one length; raise ValueError in one line."""
    workers, links = list(workers), list(links)
    latencies = list(latency) if hasattr(latency, "__len__") else [latency] * len(workers)
    latencies = [late or 0 for late in latencies]  # 0.0 would turn Fractions into floats
    if not len(workers) == len(links) == len(latencies):
        raise ValueError(
            f"worker_seconds, link_seconds and latency_seconds must be of one length, "
            f"not {len(workers)}, {len(links)} and {len(latencies)}"
        )
    for name, values in (
        ("worker_seconds", workers),
        ("link_seconds", links),
        ("root_seconds", [] if root is None else [root]),
    ):
        for value in values:
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {value}")
    for value in latencies:
        if not 0 <= value < math.inf:
            raise ValueError(f"latency_seconds must be finite and not negative, not {value}")
    if root is None and (not workers or (order is not None and not len(order))):
        raise ValueError("nobody computes: give workers, or a root with root_seconds")
    return workers, links, latencies


def _check_order(order, workers):
    if order is not None and (
        len(set(order)) != len(order) or not all(0 <= worker < workers for worker in order)
    ):
        raise ValueError(
            f"order must name workers 0 to {workers - 1}, each at most once, not {list(order)}"
        )
