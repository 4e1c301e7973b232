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
