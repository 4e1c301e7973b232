"""Steps of a cluster that may not exist: stragglers, buckets, local steps, links that are shared.

Where all sites are ready together and links are alike, a step takes exactly what the time model says;
else every site starts to send when its own slowest rank is ready, and flows share pipes max-min
fairly.
"""

import math
from dataclasses import dataclass
from itertools import chain

import numpy as np

from isthmus.compression.dense import Dense
from isthmus.planning.flows import FlowNetwork
from isthmus.planning.time_model import (
    compute_seconds,
    hierarchical_stages,
    link_routes,
    predict_allreduce,
    waiting_seconds,
)

BACKWARD_SHARE = 2 / 3
"""Of the time of a gradient: the backward pass, in which buckets become ready one after another."""


@dataclass(frozen=True)
class Stragglers:
    """How much a rank's computing of a step varies, drawn for every rank and step on its own.

    variation: standard deviation over mean, of a log-normal with mean 1. measured: factors to draw
    from instead, each a measured time over the median.
    """

    variation: float = 0.0
    measured: tuple[float, ...] = ()

    def __post_init__(self):
        if not 0 <= self.variation < math.inf:
            raise ValueError(f"variation must be finite and not negative, not {self.variation}")
        if not all(0 < factor < math.inf for factor in self.measured):
            raise ValueError("measured factors must be positive and finite")

    def draw(self, generator, count):
        """Return float64[count] of factors."""
        if self.measured:
            return generator.choice(np.array(self.measured), count)
        if self.variation == 0:
            return np.ones(count)
        spread = math.sqrt(math.log1p(self.variation**2))
        return generator.lognormal(-spread**2 / 2, spread, count)


@dataclass(frozen=True)
class Simulation:
    """What was simulated, in seconds.

    sync_seconds: from each synchronisation to the next. seconds: all of them. compute_seconds: a
    rank's mean; wait_seconds: a rank's mean of waiting for the slowest; exchange_seconds: what the
    allreduce adds after the slowest is done. utilisation: pipe of links -> share of its bytes per
    second that was used, from 0 to 1.
    """

    ranks: int
    steps: int
    seconds: float
    step_seconds: float
    compute_seconds: float
    wait_seconds: float
    exchange_seconds: float
    samples_per_second: float
    utilisation: dict
    sync_seconds: tuple[float, ...]


def simulate(cluster, workload, samples_of_rank=None, *, steps=100, local_steps=1, buckets=1,
             stragglers=Stragglers(), seed=0):
    """Return the Simulation of `steps` steps of `workload` on `cluster`.

    samples_of_rank: of a step; None shares the batch out by rate. local_steps: H, between
    synchronisations; buckets: m parts of the gradient, summed one after another while the backward
    pass of the last local step goes on. Equal seeds give equal results. Raises ValueError for counts
    below 1.
    """
    for name, count in (("steps", steps), ("local_steps", local_steps), ("buckets", buckets)):
        if count < 1:
            raise ValueError(f"{name} must be 1 or more, not {count}")
    rates = np.array(cluster.rates)
    samples = workload.batch_size * rates / rates.sum() if samples_of_rank is None else samples_of_rank
    fixed = np.array([site.fixed_seconds for site in cluster.sites])[list(cluster.site_of_rank)]
    usual = compute_seconds(samples, rates, fixed)
    first_rank = np.cumsum([0] + [site.ranks for site in cluster.sites[:-1]])
    exchanges = _exchanges(cluster, workload, buckets)
    ready_shares = 1 - BACKWARD_SHARE * np.arange(len(exchanges) - 1, -1, -1) / max(1, len(exchanges))
    generator = np.random.default_rng(seed)
    sync_seconds, computed, waited, exchanged = [], 0.0, 0.0, 0.0
    for first in range(0, steps, local_steps):
        before = np.zeros(usual.size)
        for _ in range(min(local_steps, steps - first) - 1):
            before += usual * stragglers.draw(generator, usual.size)
        last = usual * stragglers.draw(generator, usual.size)
        own = before + last
        done = 0.0
        for share, exchange in zip(ready_shares, exchanges):
            ready = np.maximum.reduceat(before + share * last, first_rank)
            done = exchange.done_seconds(np.maximum(ready, done))
        slowest = own.max()
        done = max(done, slowest)
        sync_seconds.append(float(done))
        computed += own.mean()
        waited += waiting_seconds(own).mean()
        exchanged += done - slowest
    seconds = sum(sync_seconds)
    return Simulation(
        ranks=cluster.size, steps=steps, seconds=seconds, step_seconds=seconds / steps,
        compute_seconds=float(computed), wait_seconds=float(waited),
        exchange_seconds=float(exchanged),
        samples_per_second=float(np.sum(samples)) * steps / seconds if seconds else math.inf,
        utilisation=_utilisation(exchanges, len(sync_seconds), seconds),
        sync_seconds=tuple(sync_seconds))


class _Exchange:
    """One allreduce of the time model, cut where sites meet: before the links, on them, and after.

    Sites send from when they are ready. Two sites' wires cross; more sites' go to the hub, and what
    comes down follows one chunk behind. A leader whose own work takes longer than the links caps the
    rate of its flow.
    """

    def __init__(self, cluster, size, algorithm, compressor):
        self.bytes_of_pipe, self.rate_of_pipe, self.network = {}, {}, None
        self.before, self.latencies, self.senders = 0.0, np.zeros(0), np.zeros(0, int)
        if algorithm != "hierarchical" or len(cluster.sites) == 1 or size == 0:
            self.after = predict_allreduce(cluster, size, algorithm=algorithm,
                                           compressor=compressor).seconds
            return
        stages = hierarchical_stages(cluster, size, compressor or Dense(), compressor is not None)
        up, down = link_routes(cluster)
        hub, two = cluster.hub, len(cluster.sites) == 2
        others = [site for site in range(len(cluster.sites)) if site != hub]
        routes = up + down if two else up
        self.senders = np.array(others + [hub] if two else others)
        lines = {link: link.line(stages.wire_nbytes) for link in chain(*up, *down)}
        self.latencies = np.array([sum(lines[link][0] for link in route) for route in routes])
        for route in up + down:
            for link in route:
                self.bytes_of_pipe[link.pipe] = (self.bytes_of_pipe.get(link.pipe, 0.0)
                                                 + stages.wire_nbytes)
                self.rate_of_pipe[link.pipe] = lines[link][1]
        number = {pipe: place for place, pipe in enumerate(self.rate_of_pipe)}
        self.network = FlowNetwork([[number[link.pipe] for link in route] for route in routes],
                                   list(self.rate_of_pipe.values()))
        self.nbytes, rest = stages.wire_nbytes, stages.rest
        each_up = max(each for _, each in stages.ways) if two else stages.ways[0][1]
        pace = max(each_up, stages.interval)
        self.cap = (stages.wire_nbytes / (each_up + rest * stages.interval)
                    if rest and stages.interval > each_up else math.inf)
        self.before = sum(stages.first[name] for name in ("reduce", "encode", "copy"))
        self.after = stages.first["decode"] + stages.first["broadcast"]
        if not two:
            first_down, each_down = stages.ways[1]
            self.after += first_down + rest * max(0.0, each_down - pace)

    def done_seconds(self, ready):
        """Return when all have the sum, from when each site has its ranks' vectors."""
        sent = ready + self.before
        arrived = sent.max()
        if self.network is not None:
            through = self.network.finish_seconds(sent[self.senders], self.nbytes, self.cap)
            arrived = max(arrived, (through + self.latencies).max())
        return float(arrived + self.after)


def _exchanges(cluster, workload, buckets):
    """Return one _Exchange a bucket; buckets of one size are one object."""
    buckets = max(1, min(buckets, workload.size))
    sizes = [workload.size // buckets + (number < workload.size % buckets)
             for number in range(buckets)]
    made = {size: _Exchange(cluster, size, workload.algorithm, workload.compressor)
            for size in set(sizes)}
    return [made[size] for size in sizes]


def _utilisation(exchanges, times, seconds):
    """Return pipe -> bytes sent over bytes that could have been."""
    rates, nbytes = exchanges[0].rate_of_pipe, {}
    for exchange in exchanges:
        for pipe, sent in exchange.bytes_of_pipe.items():
            nbytes[pipe] = nbytes.get(pipe, 0.0) + sent
    return {pipe: times * sent / (rates[pipe] * seconds) for pipe, sent in nbytes.items()}
