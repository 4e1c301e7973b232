"""Steps of a cluster that may not exist: stragglers, buckets, local steps, links that are shared.

A site sends when its own slowest rank is ready, flows share pipes max-min fairly, and its next step
begins when it has the sum, whether or not the others have it. Where all ranks always take the same
time, a step takes what the time model says.
"""

import math
from dataclasses import dataclass

import numpy as np

from isthmus.compression.dense import Dense
from isthmus.timing.flows import FlowNetwork
from isthmus.timing.stages import shared_lines
from isthmus.timing.step import ready_shares
from isthmus.timing.time_model import (
    compute_seconds,
    hierarchical_stages,
    link_routes,
    predict_allreduce,
    waiting_seconds,
)
from isthmus.timing.update import update_terms


@dataclass(frozen=True)
class Stragglers:
    """How much a rank's computing of a step varies, drawn for every rank and step on its own."""

    variation: float = 0.0  # standard deviation over mean, of a log-normal with mean 1
    measured: tuple[float, ...] = ()  # factors to draw from instead: measured times over their median

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
        return generator.lognormal(-(spread**2) / 2, spread, count)


@dataclass(frozen=True)
class Simulation:
    """What was simulated, in seconds."""

    ranks: int
    steps: int
    seconds: float  # of all steps
    step_seconds: float
    compute_seconds: float  # a rank's mean
    wait_seconds: float  # a rank's mean of what the slowest computes longer
    exchange_seconds: float  # what synchronisations take beyond that
    update_seconds: float  # of the parameters, and Python's
    samples_per_second: float
    utilisation: dict  # pipe of links -> share of its bytes per second that was used, from 0 to 1
    # From when the last site has one synchronisation's sum until it has the next one's.
    sync_seconds: tuple[float, ...]


def simulate(
    cluster,
    workload,
    samples_of_rank=None,
    *,
    steps=100,
    local_steps=1,
    buckets=1,
    stragglers=Stragglers(),
    seed=0,
):
    """Return the Simulation of `steps` steps of `workload` on `cluster`.

    samples_of_rank: of a step. None shares the batch out by rate.
    local_steps: H, between synchronisations; the workload says which share of the vector they are of,
        and how many steps are made while one is under way.
    buckets: m parts of the gradient, summed one after another while the backward pass of the last local
        step goes on.

    Equal seeds give equal results. Raises ValueError for counts below 1.
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
    update = sum(update_terms(cluster, workload).values())  # before the step that follows it
    generator = np.random.default_rng(seed)
    begin = done = np.zeros(len(cluster.sites))  # when each site goes on, and when it has the last sum
    network_free = np.zeros((2, begin.size))  # when its last wire has left, up and down
    sync_seconds, computed, waited, exchanged = [], 0.0, 0.0, 0.0
    for first in range(0, steps, local_steps):
        before, last = np.zeros(usual.size), 0.0
        here = min(local_steps, steps - first)
        for number in range(here):
            before += last + update
            if number == min(int(workload.late_steps), here - 1):  # then what is under way is due
                so_far = np.maximum.reduceat(before - update, first_rank)
                begin = np.maximum(begin + so_far, done) - so_far
            last = usual * stragglers.draw(generator, usual.size)
        own, since, done = before + last, done.max(), begin
        for share, exchange in zip(ready_shares(len(exchanges)), exchanges):
            ready = begin + np.maximum.reduceat(before + share * last, first_rank)
            done = exchange.done_seconds(np.maximum(ready, done), network_free)
        begin = begin + np.maximum.reduceat(own, first_rank)
        done = np.maximum(done, begin)
        sync_seconds.append(float(done.max() - since))
        computed += own.mean() - here * update
        waited += waiting_seconds(own).mean()
        exchanged += max(0.0, sync_seconds[-1] - own.max())
    seconds = sum(sync_seconds)
    return Simulation(
        ranks=cluster.size,
        steps=steps,
        seconds=seconds,
        step_seconds=seconds / steps,
        compute_seconds=float(computed),
        wait_seconds=float(waited),
        exchange_seconds=float(exchanged),
        update_seconds=steps * update,
        samples_per_second=float(np.sum(samples)) * steps / seconds if seconds else math.inf,
        utilisation=_utilisation(exchanges, len(sync_seconds), seconds),
        sync_seconds=tuple(sync_seconds),
    )


class _Exchange:
    """One allreduce of the time model, cut where sites meet: before the links, on them, and after.

    Sites send from when they are ready. Two sites' wires cross; more sites' go up the tree, a site's
    from when the first of its children's are there, and what comes down follows one chunk behind. A
    leader whose own work takes longer than the links caps the rate of its flow.
    """

    def __init__(self, cluster, size, algorithm, compressor, chunk_nbytes):
        self.bytes_of_pipe, self.rate_of_pipe, self.network = {}, {}, None
        if algorithm != "hierarchical" or len(cluster.sites) == 1 or size == 0:
            self.after = predict_allreduce(
                cluster, size, algorithm=algorithm, compressor=compressor
            ).seconds
            return
        stages = hierarchical_stages(
            cluster, size, compressor or Dense(), compressor is not None, chunk_nbytes
        )
        self.tree, self.two = stages.tree, len(cluster.sites) == 2
        up, down = link_routes(cluster, self.tree)
        others = [site for site in range(len(cluster.sites)) if site != self.tree.hub]
        lines = shared_lines(up, stages.wire_nbytes) | shared_lines(down, stages.wire_nbytes)
        routes, senders = up, others
        if self.tree.partner is not None:  # the hub sends to it
            routes = [*up, down[others.index(self.tree.partner)]]
            senders = [*others, self.tree.hub]
        self.senders = np.array(senders)
        self.latencies = np.zeros(len(cluster.sites))
        self.latencies[self.senders] = [sum(lines[link][0] for link in route) for route in routes]
        for route in up + down:
            for link in route:
                self.bytes_of_pipe[link.pipe] = (
                    self.bytes_of_pipe.get(link.pipe, 0.0) + stages.wire_nbytes
                )
                self.rate_of_pipe[link.pipe] = lines[link][1]
        number = {pipe: place for place, pipe in enumerate(self.rate_of_pipe)}
        self.network = FlowNetwork(
            [[number[link.pipe] for link in route] for route in routes], list(self.rate_of_pipe.values())
        )
        self.nbytes, rest = stages.wire_nbytes, stages.rest
        (first_up, ups), (first_down, downs) = stages.ways
        each_up = stages.links[1] if self.two else float(ups.max())
        pace = max(each_up, stages.interval)
        self.cap = (
            stages.wire_nbytes / (each_up + rest * stages.interval)
            if rest and stages.interval > each_up
            else math.inf
        )
        self.before = sum(stages.first[name] for name in ("reduce", "encode", "copy"))
        self.after = stages.first["decode"] + stages.first["broadcast"]
        # Of the edge above each site: its first chunk and any other one on the way up, both down.
        self.first_up, self.each_up, first, each, self.down_busy = (
            np.insert(seconds, self.tree.hub, 0.0)
            for seconds in (first_up, ups, first_down, downs, (1 + rest) * downs)
        )
        self.first_down, self.behind = first, rest * np.maximum(0.0, each - pace)

    def done_seconds(self, ready, free):
        """Return when each site has the sum, from when each has its ranks' vectors; all float64[sites].

        free: float64[2, sites], when each site's last wires, up and down, have left; brought up to date.
        """
        if self.network is None:
            return np.full_like(ready, ready.max() + self.after)
        tree, sent = self.tree, ready + self.before
        upwards = [site for site in reversed(tree.downwards) if tree.parents[site] is not None]
        start = np.maximum(sent, free[0])
        for site in upwards:
            parent = tree.parents[site]
            start[parent] = max(start[parent], start[site] + self.first_up[site])
        left = self.network.finish_seconds(start[self.senders], self.nbytes, self.cap)
        free[0, self.senders] = left
        whole = sent.copy()  # when each site has what those below it sent
        for site in upwards:
            parent = tree.parents[site]
            if tree.children[site]:  # its last chunk follows the last that it got
                free[0, site] = max(free[0, site], whole[site] + self.each_up[site])
            whole[parent] = max(whole[parent], free[0, site] + self.latencies[site])
        tops, done = [tree.hub], whole.copy()
        if tree.partner is not None:  # each one's wire goes to the other
            tops.append(tree.partner)
            for site, other in (tops, tops[::-1]):
                last = free[0, site]
                if tree.children[site]:
                    last = free[0, site] = max(last, whole[site] + self.each_up[tree.partner])
                done[other] = max(done[other], last + self.latencies[site])
        if self.two:
            return done + self.after
        begun, behind = done.copy(), np.zeros(done.size)
        for top in tops:
            begun[top] = max(done[top], free[1, top])
        for site in tree.downwards[len(tops) :]:
            parent = tree.parents[site]
            begun[site] = begun[parent] + self.first_down[site]
            behind[site] = max(behind[parent], self.behind[site])
            free[1, parent] = max(free[1, parent], begun[parent] + self.down_busy[site])
        return begun + behind + self.after


def _exchanges(cluster, workload, buckets):
    """Return one _Exchange a bucket; buckets of one size are one object."""
    size = math.ceil(workload.exchanged_share * workload.size)
    buckets = max(1, min(buckets, size))
    sizes = [size // buckets + (number < size % buckets) for number in range(buckets)]
    wishes = workload.algorithm, workload.compressor, workload.chunk_nbytes
    made = {size: _Exchange(cluster, size, *wishes) for size in set(sizes)}
    return [made[size] for size in sizes]


def _utilisation(exchanges, times, seconds):
    """Return pipe -> bytes sent over bytes that could have been."""
    rates, nbytes = exchanges[0].rate_of_pipe, {}
    for exchange in exchanges:
        for pipe, sent in exchange.bytes_of_pipe.items():
            nbytes[pipe] = nbytes.get(pipe, 0.0) + sent
    return {pipe: times * sent / (rates[pipe] * seconds) for pipe, sent in nbytes.items()}
