"""How long plans take, how much memory, and how close to their bound they are.

Targets on one core: 10^6 shards on 10^4 ranks in 200 x 100 classes 1 s, in 500 x 200 classes 3 s, no two
alike 5 s; gaps of 1 % (0.5 % where no two are alike); 1 GB.  `python experiments/benchmarks/planner.py`
prints one line each; seconds are of the process, so that other work on the machine does not count.
Planning again after every rate has drifted by up to 5 %, with highspy: the linear programme in 30 ms at
15,000 pairs of a kind of shards and a rank, in 250 ms at 83,000.
"""

import resource
import time
from types import SimpleNamespace

import numpy as np

import isthmus


def in_classes(shards, ranks, kinds, groups):
    """Kinds of shards with sizes, bytes a sample and places; groups of ranks with rates and storage."""
    draw = np.random.default_rng(0)
    kind, group = draw.integers(0, kinds, shards), draw.integers(0, groups, ranks)
    sizes, density = draw.integers(75, 120, kinds).astype(float), draw.uniform(10, 100, kinds)
    nbytes = (sizes * density)[kind]
    places = draw.random((10, groups)) < 0.5
    places[0] = True
    return {
        "sizes": sizes[kind],
        "seconds_per_unit": 1 / draw.uniform(1, 2, groups)[group],
        "storage_sizes": nbytes,
        "storage": draw.uniform(0.8, 3.2, groups)[group] * nbytes.sum() / ranks,
        "allowed": (draw.integers(0, 10, kinds)[kind], places[:, group]),
    }


def no_two_alike(shards, ranks):
    """Every shard and every rank differs from all others."""
    draw = np.random.default_rng(0)
    sizes = draw.uniform(10, 200, shards)
    return {
        "sizes": sizes,
        "seconds_per_unit": 1 / draw.uniform(1, 2, ranks),
        "storage": np.full(ranks, 3 * sizes.sum() / ranks),
    }


CASES = {
    "60 x 4, no two alike": lambda: no_two_alike(60, 4),
    "1,000 x 100, no two alike": lambda: no_two_alike(1_000, 100),
    "20,000 x 200, no two alike": lambda: no_two_alike(20_000, 200),
    "1e6 x 1e4 in 200 x 100 classes": lambda: in_classes(10**6, 10**4, 200, 100),
    "1e6 x 1e4 in 500 x 200 classes": lambda: in_classes(10**6, 10**4, 500, 200),
    "1e6 x 1e4, no two alike": lambda: no_two_alike(10**6, 10**4),
}


AGAIN = {"150 kinds x 100 ranks": (150, 100), "415 kinds x 200 ranks": (415, 200)}
"""15,000 and 83,000 variables, and those of the links."""


def to_plan_again(kinds, ranks):
    """Return a Replanner for 20 shards of each kind (bytes a sample) on five sites, and a plan."""
    from isthmus.planning.replanning import Replanner

    draw = np.random.default_rng(0)
    network = {"latency_seconds": 1e-5, "bytes_per_second": 1e9}
    samples = draw.integers(50, 150, 20 * kinds)
    nbytes = samples * np.repeat(draw.uniform(500, 1500, kinds), 20)
    table = {
        "site": [
            {
                "name": f"site{number}",
                "tier": "edge" if number else "cloud",
                "ranks": ranks // 5,
                "samples_per_second": draw.uniform(100, 200, ranks // 5).tolist(),
                "storage_nbytes": 2 * nbytes.sum() / ranks,
                "network": network,
            }
            for number in range(5)
        ],
        "link": [
            {"between": ["site0", f"site{number}"], "latency_seconds": 0.01, "bytes_per_second": 1.1e7}
            for number in range(1, 5)
        ],
    }
    shards = SimpleNamespace(samples=samples, nbytes=nbytes)
    workload = isthmus.Workload(size=100_000, batch_size=32 * ranks)
    cluster = isthmus.Cluster(table)
    return Replanner(cluster, shards, workload), isthmus.plan_shards(
        cluster, shards, workload, nodes=1
    ).rank_of_shard


class Replan:
    """After a drift of up to 5 % of every rank: the linear programme alone, and a plan end to end."""

    params = (list(AGAIN),)
    param_names = ("kinds of shards x ranks",)
    timer = time.process_time
    number, repeat, warmup_time = 1, 3, 0  # from solution to solution

    def setup(self, case):
        self.planner, self.place = to_plan_again(*AGAIN[case])
        self.rates = np.array(self.planner.cluster.rates)
        self.draw = np.random.default_rng(1)
        self.planner.plan_again(self.place, self.rates, 10)

    def drifted(self):
        return self.rates * self.draw.uniform(0.95, 1.05, self.rates.size)

    def time_programme(self, case):
        self.planner.programme.solve(self.drifted(), self.place, 10)

    def time_plan_again(self, case):
        self.planner.plan_again(self.place, self.drifted(), 10)


class Allocate:
    """End to end: classes, linear programme, rounding, deal, search, check and gap."""

    params = (list(CASES),)
    param_names = ("shards x ranks",)
    timer = time.process_time
    number, repeat, warmup_time = 1, 3, 0

    def setup(self, case):
        isthmus.allocate_shards([1, 2], [1, 2])  # the solver is loaded
        self.arguments = CASES[case]()

    def time_allocate(self, case):
        isthmus.allocate_shards(**self.arguments)

    def track_gap(self, case):
        return isthmus.allocate_shards(**self.arguments).gap

    track_gap.unit = "seconds over the bound, relative"

    def peakmem_allocate(self, case):
        isthmus.allocate_shards(**self.arguments)


class SinglePass:
    """Data that is read once, on a star of workers no two of which are alike."""

    params = (["sequential", "simultaneous", "cut-through"], [100, 10_000])
    param_names = ("mode", "workers")
    timer = time.process_time

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
    timer = time.process_time
    number, repeat, warmup_time = 1, 3, 0

    def setup(self, shape, links):
        sites, ranks = shape
        network = {"latency_seconds": 2e-5, "bytes_per_second": 1e9}
        table = {
            "site": [
                {
                    "name": f"site{number}",
                    "tier": "edge" if number else "cloud",
                    "ranks": ranks,
                    "samples_per_second": 1000.0,
                    "network": network,
                }
                for number in range(sites)
            ]
        }
        if links == "uplink":
            table["link"] = [
                {
                    "between": ["site0", f"site{number}"],
                    "latency_seconds": 0.01,
                    "bytes_per_second": 1e9,
                    "shared": "uplink",
                }
                for number in range(1, sites)
            ]
        else:
            rates = np.random.default_rng(0).uniform(1e5, 1e8, sites)
            rates[1] = 1e9
            table["link"] = [
                {
                    "between": ["site1" if number > 1 else "site0", f"site{number}"],
                    "latency_seconds": 0.01,
                    "bytes_per_second": rates[number],
                }
                for number in range(1, sites)
            ]
        self.cluster = isthmus.Cluster(table)
        self.workload = isthmus.Workload(
            size=100_000, batch_size=32 * sites * ranks, compressor=isthmus.Int8()
        )

    def time_hundred_steps(self, shape, links):
        from isthmus.timing.simulation import Stragglers, simulate

        simulate(self.cluster, self.workload, steps=100, stragglers=Stragglers(0.2))


def main():
    """Print process seconds, gap, longest shard over makespan and peak memory of each case."""
    isthmus.allocate_shards([1, 2], [1, 2])  # the solver is loaded
    for case, make in CASES.items():
        arguments = make()
        start, wall = time.process_time(), time.perf_counter()
        plan = isthmus.allocate_shards(**arguments)
        seconds, wall = time.process_time() - start, time.perf_counter() - wall
        longest = arguments["sizes"].max() * arguments["seconds_per_unit"].min() / plan.seconds
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{case:32} {seconds:6.2f} s ({wall:.2f} s by the clock)  gap {plan.gap:.3%}  "
            f"longest shard {longest:.2%} of the makespan  peak {peak:.2f} GB"
        )
    for case in AGAIN:
        again = Replan()
        again.setup(case)
        for what in (again.time_programme, again.time_plan_again):
            seconds = []
            for _ in range(15):
                start = time.process_time()
                what(case)
                seconds.append(time.process_time() - start)
            print(
                f"{case:32} {what.__name__[5:]:12} {1e3 * np.median(seconds):6.1f} ms, at most "
                f"{1e3 * max(seconds):.1f} ms"
            )


if __name__ == "__main__":
    main()
