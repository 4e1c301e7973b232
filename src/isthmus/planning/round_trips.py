"""Ways round all points: made shorter step by step, and what none of them is shorter than."""

import math

import numpy as np

from isthmus.kernels.compiled import compiled

BOUND_STEPS = 400
"""Times that a bound is raised, at most; of many points fewer, so that it takes as long."""
POINTS_SQUARED = 40_000_000
"""Those steps times the square of the points: some tenths of a second."""


def shorten(order, lengths):
    """Return (length, int[points]) of a way round that no step of 2-opt or Or-opt makes shorter.

    order: int[points], where it begins. lengths: float64[points, points], from point to point; those
    back may be others.
    """
    order = np.array(order, np.int64)
    _shorten(order, np.ascontiguousarray(lengths, np.float64))
    return float(lengths[order, np.roll(order, -1)].sum()), order


def least_round_trip(lengths):
    """Return what no way round is shorter than; lengths: float64[points, points], from point to point.

    The tree that spans all points but one, and the two shortest ways of that one: what is added to the
    lengths at points of many ways is taken off again (Held and Karp 1970 and 1971, "The traveling-
    salesman problem and minimum spanning trees"). Of two directions the shorter counts there, so where
    they differ, the shortest set of ways that leave and reach each point once may say more.
    """
    points, lengths = len(lengths), np.array(lengths, np.float64)
    if points < 3:
        return float(lengths[0, 1] + lengths[1, 0]) if points == 2 else 0.0
    np.fill_diagonal(lengths, 2 * lengths.sum())
    steps = max(8, min(BOUND_STEPS, POINTS_SQUARED // points**2))
    bound = float(_raise_bound(np.minimum(lengths, lengths.T), steps))
    if not np.array_equal(lengths, lengths.T):
        from scipy.optimize import linear_sum_assignment

        bound = max(bound, float(lengths[linear_sum_assignment(lengths)].sum()))
    return max(0.0, bound)


@compiled
def _shorten(order, lengths):
    """Improve `order` in place."""
    points = order.size
    there, back = np.zeros(points), np.zeros(points)
    better = True
    while better:
        better = False
        _add_up(order, lengths, there, back)
        for first in range(1, points - 1):
            before = order[first - 1]
            for last in range(first + 1, points):
                after = order[(last + 1) % points]
                saved = lengths[before, order[first]] + lengths[order[last], after]
                saved -= lengths[before, order[last]] + lengths[order[first], after]
                saved += there[last] - there[first] - back[last] + back[first]
                if saved > 1e-9 * (there[points - 1] + 1e-30):
                    order[first : last + 1] = order[first : last + 1][::-1].copy()
                    _add_up(order, lengths, there, back)
                    better = True
        if _move(order, lengths):
            better = True


@compiled
def _add_up(order, lengths, there, back):
    """Fill in the lengths of the way from the first point to each, there and back."""
    for place in range(1, order.size):
        here, before = order[place], order[place - 1]
        there[place] = there[place - 1] + lengths[before, here]
        back[place] = back[place - 1] + lengths[here, before]


@compiled
def _move(order, lengths):
    """Put up to three points that follow one another elsewhere; return whether any were put."""
    points, moved = order.size, False
    for count in range(1, min(4, points - 2)):
        for first in range(1, points - count):
            last = first + count - 1
            before, after = order[first - 1], order[(last + 1) % points]
            one, other = order[first], order[last]
            gained = lengths[before, one] + lengths[other, after] - lengths[before, after]
            best, best_place = 1e-9 * (gained + 1e-30), -1
            for place in range(points):  # between this one and the next
                if first - 1 <= place <= last:
                    continue
                here, there = order[place], order[(place + 1) % points]
                saved = gained - lengths[here, one] - lengths[other, there] + lengths[here, there]
                if saved > best:
                    best, best_place = saved, place
            if best_place >= 0:
                part = order[first : last + 1].copy()
                if best_place < first:
                    order[best_place + 1 + count : last + 1] = order[best_place + 1 : first].copy()
                    order[best_place + 1 : best_place + 1 + count] = part
                else:
                    order[first : best_place + 1 - count] = order[last + 1 : best_place + 1].copy()
                    order[best_place + 1 - count : best_place + 1] = part
                moved = True
    return moved


@compiled
def _raise_bound(lengths, steps):
    """Return the best bound of so many steps up the slope."""
    points = len(lengths)
    extra, ways = -_half_lengths(lengths), np.zeros(points, np.int64)
    before = np.zeros(points, np.int64)
    best, size = -math.inf, 0.0
    for step in range(steps):
        bound = _one_tree(lengths, extra, ways) - 2 * extra.sum()
        best = max(best, bound)
        off = 0
        for point in range(points):
            off += (ways[point] - 2) ** 2
        if off == 0:
            break
        if step == 0:
            size = abs(bound) / (2 * points) + 1e-300
        for point in range(points):
            extra[point] += size * (0.7 * (ways[point] - 2) + 0.3 * before[point])
            before[point] = ways[point] - 2
        size *= 1 - 4.0 / steps if steps > 8 else 0.7
    return best


@compiled
def _half_lengths(lengths):
    """Return a length for each point, of which those of two points are no more than the way between."""
    points = len(lengths)
    half = np.full(points, math.inf)
    for one in range(points):
        for other in range(points):
            if one != other:
                half[one] = min(half[one], lengths[one, other] / 2)
    for one in range(points):
        longer = math.inf
        for other in range(points):
            if one != other:
                longer = min(longer, lengths[one, other] - half[other])
        half[one] = longer
    return half


@compiled
def _one_tree(lengths, extra, ways):
    """Return the length of the shortest tree of all points but the first (Prim 1957), and of the two
    shortest ways of that one; fill in how many ways each point has."""
    points, total = len(lengths), 0.0
    nearest, parent = np.full(points, math.inf), np.full(points, -1)
    left = np.ones(points, np.bool_)
    ways[:] = 0
    left[0] = False
    here = 1
    for _ in range(points - 1):
        left[here] = False
        if parent[here] >= 0:
            total += nearest[here]
            ways[here] += 1
            ways[parent[here]] += 1
        following = -1
        for point in range(1, points):
            if left[point]:
                length = lengths[here, point] + extra[here] + extra[point]
                if length < nearest[point]:
                    nearest[point], parent[point] = length, here
                if following < 0 or nearest[point] < nearest[following]:
                    following = point
        here = following
    one, other = -1, -1
    for point in range(1, points):
        length = lengths[0, point] + extra[0] + extra[point]
        if one < 0 or length < lengths[0, one] + extra[0] + extra[one]:
            one, other = point, one
        elif other < 0 or length < lengths[0, other] + extra[0] + extra[other]:
            other = point
    for point in (one, other):
        total += lengths[0, point] + extra[0] + extra[point]
        ways[point] += 1
    ways[0] = 2
    return total
