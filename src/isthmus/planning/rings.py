"""In which order "ring" goes through the sites: the least predicted time, money, or bytes over a link.

Up to EXACT_SITES sites all orders count; beyond, ways round that are short are improved by reversing a
part (2-opt, Croes 1958) or moving up to three sites (Or-opt, Or 1976), and what no order beats is told.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isthmus.planning.prices import price_of
from isthmus.quantities import whole
from isthmus.registry import ALGORITHMS
from isthmus.timing.ring_times import RingTimes

if TYPE_CHECKING:
    from isthmus.cluster.cluster import Cluster, Link

EXACT_SITES = 9
"""Most sites of which all orders count."""

WORTH = 0.01
"""Share of the seconds that another order than the file's must save."""

AT_ONCE = 128
"""Orders whose seconds are asked for together."""


@dataclass(frozen=True)
class PlannedRing:
    """An order of the sites, what one exchange takes in it, and what no order can beat."""

    ring: tuple[int, ...]
    seconds: float
    lower_bound_seconds: float  # of any order; of `least` = "seconds" alone
    usual: tuple[int, ...]  # that of the file
    usual_seconds: float

    @property
    def gap(self) -> float:
        """How much longer than the lower bound it takes, as a share of that."""
        return self.seconds / self.lower_bound_seconds - 1 if self.lower_bound_seconds else 0.0

    def sentence(self, names: tuple[str, ...], exchanges_per_step: float = 1.0) -> str | None:
        """Return what the order saves over the file's, for people; None where it is the file's."""
        if self.ring == self.usual:
            return None
        saved = exchanges_per_step * (self.usual_seconds - self.seconds)
        way = " > ".join(names[site] for site in (*self.ring, self.ring[0]))
        return f"ring {way} saves {saved:.3g} s a step over the order of the file"


def plan_ring(cluster: "Cluster", size: int, *, least: str = "seconds") -> PlannedRing:
    """Return the PlannedRing for float32 vectors of `size` entries in "ring".

    least: "seconds" of an exchange, "money" for what it sends, or the name of a link, what it shares or
    its two sites ("a-b"), for bytes over that; of equals the fastest. An order that the cluster file
    says stays as it is.

    Raises ValueError for a link that does not exist, and where a site may not add up for others.
    """
    ALGORITHMS["ring"].check_relays(cluster.sites)
    usual, size = cluster.ring, whole("size", size, 0)
    adds = min(site.add_bytes_per_second for site in cluster.sites)
    times = RingTimes(cluster, 4 * size, adds)
    costs = _Costs(times, price_of(cluster, least))
    _, before = costs.of(usual)
    if size == 0 or len(usual) < 3 or cluster.told_ring:
        return PlannedRing(usual, before, before, usual, before)
    search = _best_of_all if len(usual) <= EXACT_SITES else _best_of_likely
    ring, bound = search(costs)
    _, after = costs.of(ring)
    if least == "seconds" and before - after <= WORTH * before:
        ring, after = usual, before
    return PlannedRing(ring, after, min(bound, after), usual, before)


class _Costs:
    """Price, if any, and seconds of orders; price: Link -> of a byte over it, None for seconds alone."""

    def __init__(self, times: RingTimes, price: "Callable[[Link], float] | None"):
        self.times, self.price, self.sites = times, price, len(times.cluster.sites)
        self._known: dict[tuple[int, ...], tuple[float, float]] = {}

    def of(self, order):
        """Return (price, seconds) of one order."""
        if order not in self._known:
            ends = zip(order, (*order[1:], order[0]))
            price = sum(self.of_hop(*each) for each in ends) if self.price else 0.0
            self._known[order] = price, float(self.times.seconds(order))
        return self._known[order]

    def of_hop(self, here, there):
        """Return the price of a byte from one site to the next."""
        return sum(map(self.price, self.times.route(here, there))) if self.price else 0.0


def _best_of_all(costs):
    """Return the order of the least cost of all, and its seconds, which none beats. Exact.

    Orders are looked at in the order of what they take at least, as long as that may be better.
    """
    others = itertools.permutations(range(1, costs.sites))
    orders = np.array([(0, *order) for order in others])
    prices = np.zeros(len(orders))
    if costs.price:
        sites = range(costs.sites)
        table = np.array([[costs.of_hop(a, b) for b in sites] for a in sites])
        prices = table[orders, np.roll(orders, -1, axis=1)].sum(axis=1)
        orders = orders[prices <= prices.min() * (1 + 1e-12)]
    least = costs.times.at_least(orders)
    sequence = np.argsort(least, kind="stable")
    best, best_seconds = costs.times.cluster.ring, math.inf
    for first in range(0, len(sequence), AT_ONCE):
        some = sequence[first : first + AT_ONCE]
        if least[some[0]] >= best_seconds * (1 - 1e-9):
            break
        seconds = costs.times.seconds(orders[some])
        if (fastest := seconds.min()) < best_seconds * (1 - 1e-9):
            best = tuple(orders[some[seconds.argmin()]].tolist())
            best_seconds = float(fastest)
    return best, best_seconds


LEVELS = 3
"""How slow hops may be, from as fast as they can be to as slow as they are."""
STARTS = 12
"""Sites from which a way round begins that goes on to the nearest site, again and again."""
STARTS_TIMES_SITES_SQUARED = 2_000_000
"""Of many sites fewer of those ways are improved, the shortest: some tenths of a second."""
LOOKED_UP = 64
"""Most sites of which all routes are looked up; of more, shortest ways stand for them."""


def _best_of_likely(costs):
    """Return the best order found for many sites, and the seconds that no order beats."""
    from isthmus.planning.round_trips import shorten  # with Numba, which takes its time

    times, sites = costs.times, costs.sites
    alone, each, price = _pairs(costs)
    bound = _least_seconds(times, alone, each)
    best, best_cost = times.cluster.ring, costs.of(times.cluster.ring)
    between = each[~np.eye(sites, dtype=bool)]
    slowest = np.unique(np.quantile(between, np.linspace(0, 1, LEVELS), method="lower"))
    if costs.price:
        slowest = slowest[-1:]
    all_of_it = 2 * sites * float(alone.max(where=~np.eye(sites, dtype=bool), initial=0.0)) + 1e-12
    for most in slowest.tolist():
        lengths = alone + np.where(each > most, all_of_it, 0.0)
        if costs.price:  # of equals the fastest
            lengths = price / max(price.max(), 1e-300) + 1e-4 * alone / all_of_it
        np.fill_diagonal(lengths, 0.0)
        starts = [np.array(best), *(_nearest(lengths, start) for start in range(min(sites, STARTS)))]
        starts.sort(key=lambda order: lengths[order, np.roll(order, -1)].sum())
        few = max(1, STARTS_TIMES_SITES_SQUARED // sites**2)
        _, ring = min((shorten(start, lengths) for start in starts[:few]), key=lambda found: found[0])
        first = ring.tolist().index(0)
        order = tuple(np.roll(ring, -first).tolist())
        if (cost := costs.of(order)) < best_cost:
            best, best_cost = order, cost
    return best, min(bound, best_cost[1])


def _pairs(costs):
    """Return float64[sites, sites], three times: the least seconds of a part from site to site, the
    least of every other part, and the price of a byte."""
    times, sites = costs.times, costs.sites
    alone, each, price = (np.zeros((sites, sites)) for _ in range(3))
    if sites > LOOKED_UP:
        return _far_pairs(costs)
    for a, b in itertools.permutations(range(sites), 2):
        alone[a, b], each[a, b] = _crossing(times, times.route(a, b))
        price[a, b] = costs.of_hop(a, b)
    return alone, each, price


def _crossing(times, route):
    """Return the seconds of a part over a route that is free, and of every other part at least."""
    latency, rate = times.line(None, route)
    sustained = min(times.sustained(link, 1) for link in route)
    return latency + times.part / rate, times.part / min(rate, sustained)


def _far_pairs(costs):
    """Return `_pairs` of many sites: where no link joins two, what the shortest way takes at least."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra

    times, sites, links = costs.times, costs.sites, costs.times.cluster.links
    index = {name: number for number, name in enumerate(times.cluster.names)}
    ends = np.array([(index[link.source], index[link.target]) for link in links]).T
    latency = np.array([times.line(None, [link])[0] for link in links])
    alone, each = np.array([_crossing(times, [link]) for link in links]).T

    def shortest(lengths):
        graph = coo_matrix((lengths + 1e-12, ends), (sites, sites)).tocsr()
        return np.maximum(0.0, dijkstra(graph) - 1e-12 * sites)

    out, into = np.full(sites, math.inf), np.full(sites, math.inf)
    np.minimum.at(out, ends[0], each)
    np.minimum.at(into, ends[1], each)
    every = np.maximum(out[:, None], into)
    whole = shortest(latency) + np.maximum(*(_least_by(ends, side, alone - latency) for side in (0, 1)))
    whole[*ends], every[*ends] = alone, each
    price = np.zeros((sites, sites))
    if costs.price:
        price = shortest(np.array([costs.price(link) for link in links], float))
    return whole, every, price


def _least_by(ends, side, seconds):
    """Return the least of `seconds` over the links that leave a site (side 0), or reach it (1), as a
    column or a row."""
    least = np.full(ends.max() + 1, math.inf)
    np.minimum.at(least, ends[side], seconds)
    return least[:, None] if side == 0 else least


def _least_seconds(times, alone, each):
    """Return what no order beats, of the seconds of parts from site to site.

    Parts go round but for two hops, twice, and what is left out is at most twice the mean of all hops.
    A way round has two neighbours for each site, one behind it and one ahead.
    """
    from isthmus.planning.round_trips import least_round_trip  # with Numba, which takes its time

    inside = 0.0
    for number, site in enumerate(times.cluster.sites):
        if site.ranks > 1:
            latency, rate = times.line(number, ())
            inside += (site.ranks - 1) * (latency + times.part / rate)
    once = least_round_trip(alone) + inside
    ranks = times.cluster.size
    round_twice = 2 * once * (ranks - 1) / ranks + (ranks - 1) * times.part / times.add
    free = np.array(each)
    np.fill_diagonal(free, math.inf)
    second = np.sort(np.minimum(free, free.T), axis=1)[:, 1].max()
    narrow = max(free.min(axis=0).max(), free.min(axis=1).max(), second)
    return float(max(round_twice, (times.steps - 1) * narrow))


def _nearest(lengths, start):
    """Return the way round that begins at `start` and goes on to the nearest site that is left."""
    left, order = np.ones(len(lengths), bool), [start]
    left[start] = False
    while left.any():
        order.append(int(np.where(left, lengths[order[-1]], math.inf).argmin()))
        left[order[-1]] = False
    return np.array(order)
