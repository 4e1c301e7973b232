"""How long plans take, and how close to their bound they are."""

import numpy as np

import isthmus


class Allocate:
    """Shards of different sizes on ranks of different rates: no two alike."""

    params = ([(60, 4), (1_000, 100), (20_000, 200)],)
    param_names = ("shards, ranks",)
    timeout = 120

    def setup(self, shape):
        shards, ranks = shape
        draw = np.random.default_rng(0)
        self.sizes = draw.integers(100, 1000, shards)
        self.seconds = 1 / draw.uniform(100, 1000, ranks)

    def time_allocate(self, shape):
        isthmus.allocate_shards(self.sizes, self.seconds)

    def track_gap(self, shape):
        return isthmus.allocate_shards(self.sizes, self.seconds).gap

    track_gap.unit = "seconds over the bound, relative"


class SinglePass:
    """Data that is read once, on a star of workers no two of which are alike."""

    params = (["sequential", "simultaneous", "cut-through"], [100, 10_000])
    param_names = ("mode", "workers")

    def setup(self, mode, workers):
        draw = np.random.default_rng(0)
        self.star = (1.0, draw.uniform(1, 9, workers).tolist(), draw.uniform(0.1, 5, workers).tolist())

    def time_plan(self, mode, workers):
        isthmus.plan_single_pass(*self.star, mode=mode)


class Simulate:
    """100 steps of a cloud site and edge sites, stragglers in every step.

    The edge sites share one uplink, or lie behind a gateway on links no two of which are alike.
    """

    params = ([(100, 100), (1_000, 10), (1_000, 100)], ["uplink", "gateway"])
    param_names = ("sites, ranks a site", "links")
    timeout = 120

    def setup(self, shape, links):
        sites, ranks = shape
        network = {"latency_seconds": 2e-5, "bytes_per_second": 1e9}
        table = {"site": [{"name": f"site{number}", "tier": "edge" if number else "cloud",
                           "ranks": ranks, "samples_per_second": 1000.0, "network": network}
                          for number in range(sites)]}
        if links == "uplink":
            table["link"] = [{"between": ["site0", f"site{number}"], "latency_seconds": 0.01,
                              "bytes_per_second": 1e9, "shared": "uplink"}
                             for number in range(1, sites)]
        else:
            rates = np.random.default_rng(0).uniform(1e5, 1e8, sites)
            rates[1] = 1e9
            table["link"] = [{"between": ["site1" if number > 1 else "site0", f"site{number}"],
                              "latency_seconds": 0.01, "bytes_per_second": rates[number]}
                             for number in range(1, sites)]
        self.cluster = isthmus.Cluster(table)
        self.workload = isthmus.Workload(size=100_000, batch_size=32 * sites * ranks,
                                         compressor=isthmus.Int8())

    def time_hundred_steps(self, shape, links):
        from isthmus.planning.simulation import Stragglers, simulate
        simulate(self.cluster, self.workload, steps=100, stragglers=Stragglers(0.2))
