"""Routes through a city whose quarters keep their traffic, and learn travel times together.

    mpirun -n 5 python -m mpi4py experiments/path_planning.py [SETTINGS.toml]          half a minute

Four edge sites each see how long the roads of their own quarter take, in situations of traffic and rain;
the cloud sees none. A perceptron learns how many times longer than when it is empty a road takes. The
truth is the formula of the Bureau of Public Roads, 1 + a (flow / capacity)^4, with an a, and a delay by
rain, for each class of roads; no site knows them, and quarters have other roads and other traffic. The
cloud serves trips through the whole city in situations that nobody has seen: the shortest path by learnt
times (Dijkstra's, by scipy). How much longer its routes truly take than those of an oracle, which knows
all times, is printed for the times of empty roads, for what each quarter learns alone, and for what they
learn together: in every step, and in rounds of local steps.
"""

import sys
from pathlib import Path

import numpy as np
from city import FEATURES, City, Settings, observations, regret_of
from mpi4py import MPI

import isthmus
from isthmus.links.world import all_gather
from isthmus.models import Perceptron
from isthmus.training.strategies.sums import Sums


def learn(tiers, strategy, settings, model, seen):
    """Return the parameters that all of `tiers` have learnt, and the bytes that this rank has sent."""
    features, ratios = seen
    sums = Sums(tiers, model.size, float(len(ratios)), compressor=isthmus.Int8())
    member = strategy.join(sums, settings.steps)
    parameters, gradient = model.initial(settings.seed), np.zeros(model.size, np.float32)
    draw = np.random.default_rng([settings.seed, tiers.world.rank])
    member.begin(parameters)
    for step in range(settings.steps):
        if len(ratios):
            rows = draw.integers(0, len(ratios), settings.batch_size)
            model.gradient(parameters, features[rows], ratios[rows], gradient)
        rate = settings.learning_rate * (1 - step / settings.steps)
        parameters -= np.float32(rate) * member.gradients(gradient / np.float32(settings.batch_size))
        member.after_step(parameters)
    return member.anchor(parameters), member.sent_nbytes["link"]


def serve(comm, settings, cluster):
    """Return name -> (mean regret, bytes over all links), the same on every rank. Collective."""
    city = City.drawn(settings.side, np.random.default_rng(settings.seed))
    model = Perceptron(FEATURES, settings.hidden, loss="mse")
    with isthmus.split_tiers(comm, cluster) as tiers:
        here = tiers.site_index - 1  # the cloud is the first site, and has no quarter
        draw = np.random.default_rng([settings.seed, 2, tiers.site_index])
        seen = observations(city, settings, here, draw)
        alone, _ = learn(tiers.within_site(), isthmus.Synchronous(), settings, model, seen)
        found = np.array([regret_of(city, settings, model, alone if here >= 0 else None)])
        regrets = [float(each[0]) for each in all_gather(tiers.world, found)]
        told = {"empty roads": (regrets[0], 0)}
        told |= {f"{name} alone": (each, 0) for name, each in zip(cluster.names[1:], regrets[1:])}
        for name, strategy in (
            ("together, every step", isthmus.Synchronous()),
            (f"together, every {settings.every} steps", isthmus.LocalSteps(settings.every)),
        ):
            parameters, sent = learn(tiers, strategy, settings, model, seen)
            nbytes = sum(int(each[0]) for each in all_gather(tiers.world, np.array([sent])))
            told[name] = regret_of(city, settings, model, parameters), nbytes
    return told


def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".toml")
    settings = Settings.from_toml(path)
    cluster = isthmus.Cluster.from_toml(path.parent / settings.cluster)
    told = serve(MPI.COMM_WORLD, settings, cluster)
    if MPI.COMM_WORLD.rank == 0:
        for name, (regret, nbytes) in told.items():
            print(f"{name:28} {100 * regret:6.2f} % longer than the oracle's {nbytes:12,} bytes")


if __name__ == "__main__":
    main()
