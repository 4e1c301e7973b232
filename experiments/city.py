"""The roads of a city in four quarters, the traffic on them, and what routes by learnt times lose.

For experiments/path_planning.py, which tells what it is about. Imports no MPI.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from isthmus.errors import SettingsError
from isthmus.toml_files import FrozenModel, check_table, read_toml

KINDS = 3  # of roads: residential, main, motorway
SPEED = np.array([8.0, 14.0, 25.0])  # of each kind, in metres a second
SLOWED = np.array([0.3, 0.6, 1.2])  # a, of each kind
BY_RAIN = np.array([0.1, 0.2, 0.5])
FEATURES = KINDS + 3


class Settings(FrozenModel):
    """path_planning.toml."""

    cluster: Path
    side: int
    situations: int
    noise: float
    hidden: tuple[int, ...]
    batch_size: int
    steps: int
    learning_rate: float
    every: int
    trips: int
    judged_situations: int
    seed: int

    @classmethod
    def from_toml(cls, path):
        """Return the settings in the file; SettingsError where they are wrong."""
        return check_table(cls, read_toml(path, SettingsError), path, SettingsError)


@dataclass(frozen=True)
class City:
    """Roads both ways between neighbours on a grid of `side` x `side` crossings, in four quarters."""

    side: int
    starts: np.ndarray
    ends: np.ndarray
    kinds: np.ndarray
    metres: np.ndarray
    quarters: np.ndarray

    @classmethod
    def drawn(cls, side, draw):
        """Each quarter has its own mix of roads."""
        nodes = np.arange(side * side).reshape(side, side)
        pairs = [(nodes[:, :-1], nodes[:, 1:]), (nodes[:-1], nodes[1:])]
        one, other = (np.concatenate([pair[end].ravel() for pair in pairs]) for end in (0, 1))
        starts, ends = np.concatenate([one, other]), np.concatenate([other, one])
        row, column = np.divmod(starts, side)
        quarters = 2 * (row >= side // 2) + (column >= side // 2)
        mix = np.array([[0.8, 0.2, 0.0], [0.3, 0.7, 0.0], [0.0, 0.3, 0.7], [0.6, 0.0, 0.4]])
        kinds = (draw.random(len(starts))[:, None] > mix.cumsum(axis=1)[quarters]).sum(axis=1)
        return cls(side, starts, ends, kinds, draw.uniform(80, 300, len(starts)), quarters)

    @property
    def empty_seconds(self):
        """The seconds of each road when nobody is there."""
        return self.metres / SPEED[self.kinds]

    def situation(self, draw):
        """Return features float32[roads, FEATURES] of a moment, and how many times longer roads take.

        A quarter has its own traffic: the share of the roads' capacity that is used.
        """
        usual = np.array([0.4, 0.8, 1.2, 1.0])[self.quarters] * draw.uniform(0.6, 1.2)
        used, rain = usual * draw.uniform(0.5, 1.3, len(usual)), draw.random() * (draw.random() < 0.5)
        features = np.zeros((len(usual), FEATURES), np.float32)
        features[np.arange(len(usual)), self.kinds] = 1
        features[:, KINDS:] = np.stack([used, used**2, np.full(len(usual), rain)], axis=1)
        return features, (1 + SLOWED[self.kinds] * used**4) * (1 + BY_RAIN[self.kinds] * rain)

    def routes_seconds(self, origins, ends, believed, true):
        """Return the true seconds of the trips' routes, each the shortest by `believed` seconds."""
        shape = (self.side**2, self.side**2)
        graph = csr_array((believed, (self.starts, self.ends)), shape)
        truly = csr_array((true, (self.starts, self.ends)), shape)
        _, before = dijkstra(graph, indices=origins, return_predecessors=True)
        seconds = np.zeros(len(origins))
        for trip, (origin, node) in enumerate(zip(origins, ends)):
            while node != origin:
                previous = before[trip, node]
                seconds[trip] += truly[previous, node]
                node = previous
        return seconds


def observations(city, settings, quarter, draw):
    """Return what one quarter sees of its roads: features, and noisy ratios of times."""
    mine = np.flatnonzero(city.quarters == quarter)
    seen = [city.situation(draw) for _ in range(settings.situations)]
    ratios = np.concatenate([ratio[mine] for _, ratio in seen])
    ratios = ratios * draw.lognormal(0, settings.noise, len(ratios))
    return np.concatenate([features[mine] for features, _ in seen]), ratios.astype(np.float32)


def regret_of(city, settings, model, parameters):
    """Return the mean regret of trips in new situations, as a share of the oracle's time.

    parameters: of what was learnt; None for the times of empty roads.
    """
    draw, more = np.random.default_rng([settings.seed, 1]), []
    for _ in range(settings.judged_situations):
        features, ratio = city.situation(draw)
        origins, ends = draw.integers(0, city.side**2, (2, settings.trips))
        true = city.empty_seconds * ratio
        learnt = 1.0 if parameters is None else model.scores(parameters, features).ravel().astype(float)
        believed = city.empty_seconds * np.maximum(learnt, 0.5)
        best = city.routes_seconds(origins, ends, true, true).sum()
        more.append(city.routes_seconds(origins, ends, believed, true).sum() / best - 1)
    return float(np.mean(more))
