"""What `isthmus.allocate_shards` spends its time on, on cases of planner.py; seconds of the process.

These are insides: where a commit has others, only these figures are missing.
"""

import time

import isthmus
from isthmus.planning.programme.classes import fluid_items, rank_groups
from isthmus.planning.programme.cuts import makespan_bound
from isthmus.planning.programme.integers import NODES
from isthmus.planning.programme.linear_programme import Model, solve_lp
from isthmus.planning.programme.objectives import makespan
from isthmus.planning.programme.problem import make_problem
from isthmus.planning.programme.relaxation import relax
from isthmus.planning.programme.rounding import place_whole

from .planner import CASES

THEN = ("bytes", "imbalance")
SIZES = [
    "1,000 x 100, no two alike",
    "20,000 x 200, no two alike",
    "1e6 x 1e4 in 500 x 200 classes",
    "1e6 x 1e4, no two alike",
]


class Programme:
    """The linear programme alone: the relaxation's first."""

    params = (SIZES,)
    param_names = ("shards x ranks",)
    timer = time.process_time
    number, repeat, warmup_time = 1, 3, 0

    def setup(self, case):
        isthmus.allocate_shards([1, 2], [1, 2])
        self.problem = make_problem(**CASES[case]())
        self.model = self.time_build(case)
        self.rows = self.model.rows()

    def time_build(self, case):
        items = fluid_items(self.problem)
        return Model(self.problem, items, rank_groups(self.problem, items, makespan()))

    def time_solve(self, case):
        return solve_lp(self.model, makespan(), *self.rows)

    def track_iterations(self, case):
        return self.time_solve(case).nit

    track_iterations.unit = "iterations of the linear programme"


class Round:
    """Whole shards from divisible ones."""

    params = (SIZES,)
    param_names = ("shards x ranks",)
    timer = time.process_time
    number, repeat, warmup_time = 1, 3, 0

    def setup(self, case):
        self.problem = make_problem(**CASES[case]())
        self.relaxation = relax(self.problem, makespan(), THEN)
        self.bound = makespan_bound(self.problem, self.relaxation.value)

    def time_round(self, case):
        place_whole(self.problem, makespan(), self.relaxation, self.bound, THEN, NODES)
