"""How long schedules of random task graphs take on a shared link, over the best that is found.

    python experiments/task_graphs.py

Takes some minutes, and prints the table of docs/tasks.md: median and worst of each method, and of what
HEFT takes over what it promises. The best of 9 tasks is proved; of 30, it is what `best` finds.
"""

import statistics
from pathlib import Path

import numpy as np

import isthmus
from isthmus.planning.tasks.schedule import METHODS

CLUSTER = isthmus.Cluster.from_toml(Path(__file__).with_name("two_sites.toml"))


def crossing(random):
    """Return units, edges and pins of four tasks at the edge, four that read two of them, and a last."""
    pairs = [(first, 4 + int(then)) for first in range(4) for then in random.choice(4, 2, replace=False)]
    edges = {pair: random.exponential(2e6) for pair in pairs} | {(then, 8): 1e5 for then in range(4, 8)}
    return random.exponential(150, 9) + 15, edges, {0: 2, 1: 3, 2: 2, 3: 3}


def layered(random):
    """Return units, edges and pins of 30 tasks that read one or two before them, two of them pinned."""
    edges = {}
    for task in range(1, 30):
        before = random.choice(task, min(task, random.integers(1, 3)), replace=False)
        edges |= {(int(each), task): random.exponential(2e6) for each in before}
    return random.exponential(600, 30) + 60, edges, {0: 2, 1: 3}


def main():
    """Print a line a method, for both kinds of graphs."""
    for graphs, count in ((crossing, 40), (layered, 20)):
        over = {name: [] for name in (*METHODS, "HEFT over its promise")}
        proved = 0
        for seed in range(count):
            work, edges, pins = graphs(np.random.default_rng(seed))
            best = isthmus.schedule_tasks(CLUSTER, work, edges, pins)
            made = {name: isthmus.schedule_tasks(CLUSTER, work, edges, pins, name) for name in METHODS}
            seconds = min(best.seconds, *(plan.seconds for plan in made.values()))
            proved += best.proved
            for name, plan in made.items():
                over[name].append(plan.seconds / seconds)
            over["HEFT over its promise"].append(made["heft"].seconds / made["heft"].promised_seconds)
        print(f"{graphs.__name__}: {count} graphs, the best of {proved} proved; median, worst")
        for name, ratios in over.items():
            print(f"  {name:21}  {statistics.median(ratios):.3f}  {max(ratios):.3f}")


if __name__ == "__main__":
    main()
