"""What each rank runs for `strategies.py`: train under a strategy, and look at it now and then.

A task is a JSON file: the cluster file, how samples are split over its sites, and `cases`. Of each case
the home rank prints a line of JSON with its looks: [step, seconds since the start, bytes that all ranks
have sent over links, accuracy on the validation and on the test set, digest of the anchor]. What is
learnt is the same on every link; where `links` is "free" computing is not held either.
"""

import hashlib
import itertools
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def site_of_sample(targets, split, sites, seed=0):
    """Return int64[samples], the site of each sample.

    split: "iid", whatever their classes; "by_class", each class at one site alone; or a number, the
    concentration of the Dirichlet distribution that says how each class is shared out (Hsu et al. 2019,
    arXiv:1909.06335).
    """
    draw = np.random.default_rng(seed)
    if split == "by_class":
        kinds = int(targets.max()) + 1
        return targets.astype(np.int64) * sites // kinds
    if split == "iid":
        return draw.permutation(np.arange(len(targets)) % sites)
    site = np.empty(len(targets), np.int64)
    for kind in np.unique(targets):
        rows = draw.permutation(np.flatnonzero(targets == kind))
        bounds = np.round(len(rows) * np.cumsum(draw.dirichlet([split] * sites))).astype(int)
        site[rows] = np.searchsorted(bounds[:-1], np.arange(len(rows)), side="right")
    return site


def samples_of_ranks(targets, split, cluster):
    """Return the rows of each rank: those of its site, dealt to the site's ranks in turn."""
    site = site_of_sample(targets, split, len(cluster.sites))
    return [
        np.flatnonzero(site == number)[place :: each.ranks]
        for number, each in enumerate(cluster.sites)
        for place in range(each.ranks)
    ]


def arguments_of(strategy, turn):
    """Return the arguments of a strategy; where clients have a `turn`, all of them take part."""
    return ({} if turn is None else {"participants": 1.0}) | strategy


if __name__ == "__main__":
    from mpi4py import MPI
    from threadpoolctl import threadpool_limits

    import isthmus
    from isthmus.benchmarking.options import named_compressor
    from isthmus.links.tiers import tiers_of_file
    from isthmus.links.world import all_gather, barrier, broadcast
    from isthmus.models import Perceptron
    from isthmus.models.scoring import scores_of
    from isthmus.shards.batches import LocalSamples
    from isthmus.training.clients import Clients
    from isthmus.training.loop import State, Training
    from isthmus.training.optimisers.sgd import SGD
    from isthmus.training.playing import ClientTraining, Turn
    from isthmus.training.recipe import Recipe
    from isthmus.training.strategies import STRATEGIES
    from isthmus.training.strategies.sums import Sums

    def read(folder, shards):
        """Return features and targets of these shards of a packed set."""
        opened = isthmus.ShardSet.open(folder)
        parts = [opened.read(number) for number in shards or range(len(opened.samples))]
        return [np.concatenate([part[name] for part in parts]) for name in ("features", "targets")]

    def clients_of(tiers, samples, seed):
        """Return the Clients of a job in which each rank is one, and a site's only one."""
        weights = np.concatenate(all_gather(tiers.world, np.array([float(samples)])))
        mine = np.array([tiers.world.rank])
        return Clients(weights, mine, mine, seed)

    @contextmanager
    def training_of(tiers, task, case, data):
        """Give a training of a case; what is still on its way at the end is taken in."""
        features, targets = data["train"]
        rows = samples_of_ranks(targets, task["split"], tiers.cluster)[tiers.world.rank]
        local = LocalSamples({"features": features[rows], "targets": targets[rows]})
        model = Perceptron(hidden=tuple(task["hidden"]))
        recipe = Recipe(
            case["epochs"],
            case["steps"],
            case["learning_rate"],
            optimiser=SGD(momentum=case.get("momentum", task["momentum"])),
            seed=case["seed"],
            on_non_finite="skip",
        )
        arguments = arguments_of(case["strategy"], case.get("turn"))
        strategy = STRATEGIES[arguments.pop("kind")](**arguments)
        rank, plays = tiers.world.rank, "turn" in case
        sums = Sums(
            tiers,
            model.size,
            float(local.samples),
            clients_of(tiers, local.samples, case["seed"]) if plays else None,
            algorithm="hierarchical",
            compressor=named_compressor(case["compressor"]),
        )
        site, pace = tiers.cluster.sites[tiers.site_index], tiers.cluster.rates[rank]
        member = strategy.join(sums, recipe.total_steps)
        member.meet(set(case["looks"]).__contains__)
        training = (ClientTraining if plays else Training)(
            tiers,
            model,
            local,
            member,
            recipe,
            State.initial(model, recipe),
            None if task["links"] == "free" else lambda samples: site.fixed_seconds + samples / pace,
            **{"rows": {rank: slice(0, local.samples)}, "turn": Turn(**case["turn"])} if plays else {},
        )
        yield training
        training.member.state()
        counted, formula = training.member.sent_to_sites, training.member.predicted_to_sites()
        assert np.array_equal(counted, formula), f"bytes: {counted} were counted, not {formula}"

    def run(tiers, task, case, data):
        """Return the looks of a case at the steps `looks`, of which the last is the end.

        stop_at: the validation accuracy, as the mean of three looks, that ends it before.
        """
        at_home, stop_at = tiers.world.rank == tiers.home, case.get("stop_at")
        own, kept, found = [], [], []
        with training_of(tiers, task, case, data) as training:
            barrier(tiers.world)
            start = time.perf_counter()
            for _ in itertools.chain([None], training.steps()):
                step = training.state.step
                if step not in case["looks"] or not training.member.together:
                    continue
                own.append([step, time.perf_counter() - start, training.member.sent_nbytes["link"]])
                if at_home:
                    kept.append(training.anchor.copy())
                if stop_at is not None:
                    found += [judge(training.model, kept[-1], "validation") if at_home else 0.0]
                    reached = np.array([len(found) > 2 and np.mean(found[-3:]) >= stop_at - 1e-9])
                    broadcast(tiers.world, reached, tiers.home)
                    if reached[0]:
                        break
                if step == case["looks"][-1]:
                    break
        everyone = np.array(all_gather(tiers.world, np.array(own)))
        if at_home:
            sets = () if not case["judged"] else ("validation", "test")[: 1 if stop_at else 2]
            return [
                [int(step), round(float(seconds), 6), int(sent)]
                + [judge(training.model, anchor, name) for name in sets]
                + [digest(anchor)]
                for step, seconds, sent, anchor in zip(
                    everyone[0, :, 0], everyone[:, :, 1].max(axis=0), everyone[:, :, 2].sum(axis=0), kept
                )
            ]

    judged = {}

    def judge(model, anchor, name):
        """Return a vector's accuracy on the validation or the test set; each is looked at once."""
        key = name, digest(anchor)
        if key not in judged:
            features, targets = data[name]
            judged[key] = float((scores_of(model, anchor, features).argmax(1) == targets).mean())
        return judged[key]

    def digest(anchor):
        return hashlib.sha256(anchor.tobytes()).hexdigest()[:12]

    task = json.loads(Path(sys.argv[1]).read_text())
    data = {name: read(task["data"][name], task["shards"][name]) for name in task["shards"]}
    with (
        threadpool_limits(1),
        tiers_of_file(MPI.COMM_WORLD, task["cluster"], paced=task["links"] == "paced") as tiers,
    ):
        for case in task["cases"]:
            looks = run(tiers, task, case, data)
            if tiers.world.rank == tiers.home:
                print(json.dumps({"looks": looks}), flush=True)
