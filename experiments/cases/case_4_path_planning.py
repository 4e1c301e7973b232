"""Case 4, path planning: quarters of a city learn travel times together, and one of them dies.

    python experiments/cases/case_4_path_planning.py          a minute on two cores

The city is that of ../path_planning.py. Vehicles of a quarter learn in rounds of five local steps, the
document's, and a global model is their mean; routes by it are held against those of an oracle. Then the
main job learns the same, and a quarter's site is killed in the middle. The document's weighted objective
is made small by its own closed form and by the planner.
"""

import sys
from pathlib import Path

import numpy as np
from claims import Claim, isthmus, program, tell

from isthmus import allocate_shards, load_model, pack_shards
from isthmus.planning.programme.problem import Pipes

HERE = Path(__file__).resolve().parent
CITY = HERE / "case_4_city.toml"
RATES = np.array(4 * [20_000.0] + 2 * [80_000.0])  # samples a second, of four vehicles and the cloud
SHARDS, SAMPLES, SAMPLE_NBYTES, BYTES_PER_SECOND = 40, 720, 28, 12.5e6  # 100 Mbit/s
ALPHAS = 0.25, 1.0, 4.0, 16.0


def claims(folder):
    told = program("learn_routes.py", CITY, ranks=5)
    rounds, alone = told["together, every 5 steps"], [told[name] for name in told if "alone" in name]
    yield Claim("global model of local steps: routes longer by", rounds[0], at_most=0.03)
    best = min(regret for regret, _ in alone)
    yield Claim("a quarter's own model: longer by, at best", best, at_least=1.5 * rounds[0])
    steps = told["together, every step"][1]
    yield Claim("share of the bytes of an exchange each step", rounds[1] / steps, equal=0.2)
    city = pack_roads(folder)
    killed = isthmus("chaos", HERE / "case_4_survive.toml", "--plan", HERE / "case_4_killed.toml")
    played = killed["runs"][0]
    yield Claim("a quarter's only rank killed at step 340: the run", played["outcome"], equal="went on")
    bits, counted, *_ = played["verified"].split(", ")
    yield Claim("played again by `verify`", bits, equal="bits equal")
    yield Claim("samples of those who are left", counted, equal="each sample once in 6 epochs")
    yield Claim("model of those who went on: routes longer by", city(played["folder"]), at_most=0.03)
    yield from weighted()


def pack_roads(folder):
    """Pack what quarters see of their roads, four shards each; return what judges a run's model."""
    sys.path.append(str(HERE.parent))
    from city import City, Settings, observations, regret_of

    settings = Settings.from_toml(CITY)
    city = City.drawn(settings.side, np.random.default_rng(settings.seed))
    seen = [
        observations(city, settings, quarter, np.random.default_rng([settings.seed, 2, quarter + 1]))
        for quarter in range(4)
    ]
    for name, parts, shards in (("roads", seen, 16), ("test", _unseen(city, settings), 1)):
        features, targets = (np.concatenate(each) for each in zip(*parts))
        arrays = {"features": features, "targets": targets.astype(np.float32)}
        pack_shards(arrays, folder / name, shards)
    return lambda run: regret_of(city, settings, *load_model(run))


def _unseen(city, settings):
    draw = np.random.default_rng([settings.seed, 3])
    return [city.situation(draw) for _ in range(settings.judged_situations)]


def weighted():
    """Hold the closed form of T + alpha C against the planner, and both against every split.

    Some of `SHARDS` shards, which are at the vehicles, are brought to the cloud. T is when the last rank
    is done, C the seconds on the link. The closed form has the cloud compute alpha times as long as the
    vehicles.
    """
    brought = np.arange(SHARDS + 1)
    cloud, vehicles = brought / RATES[4:].sum(), brought[::-1] / RATES[:4].sum()
    ratios, gaps, sent, beaten = [], [], [], 0
    for alpha in ALPHAS:
        values = [_plan(alpha, each).value for each in brought]
        closed = int(abs(cloud - alpha * vehicles).argmin())
        ours = _plan(alpha)
        sent.append(closed)
        ratios.append(values[closed] / ours.value)
        gaps.append(ours.gap)
        beaten += min(values) < ours.lower_bound_seconds * (1 - 1e-9)
    yield Claim("T + alpha C by the ratio alpha, over ours, at least", min(ratios), at_least=1.05)
    yield Claim("shards that it brings over a link ever dearer", str(sent), equal=str(sorted(sent)))
    yield Claim("largest gap of ours to a bound that no plan beats", max(gaps), at_most=0.01)
    yield Claim("splits below that bound, of all", beaten, equal=0)


def _plan(alpha, brought=None):
    """Return the Allocation by "weighted"; brought: so many shards have to go to the cloud."""
    shards = range(SHARDS) if brought is not None else ()
    places = {shard: (4, 5) if shard < brought else (0, 1, 2, 3) for shard in shards}
    return allocate_shards(
        [SAMPLES] * SHARDS,
        1 / RATES,
        allowed=places,
        storage_sizes=[SAMPLES * SAMPLE_NBYTES] * SHARDS,
        pipes=Pipes(("vehicles > cloud",), [BYTES_PER_SECOND], [[False] * 4 + [True] * 2]),
        objective="weighted",
        alpha=alpha,
        then=(),
    )


if __name__ == "__main__":
    tell(claims)
