"""`isthmus infer`: a stream of requests answered over the link, predicted beside measured.

Edge ranks have the requests, cloud ranks a larger model. Rank 0 plans on a validation set; what every
part takes is measured before the first request; a sample of answers is computed again at the end.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from isthmus.cluster.cluster import Cluster
from isthmus.errors import SettingsError, ShardError
from isthmus.files import check_folder, replacing, write_text
from isthmus.inference.forward import digest_of, joined, parts_of
from isthmus.inference.halves import halves_of
from isthmus.inference.inference import Inference
from isthmus.inference.measuring import measure_layers, seconds_of
from isthmus.inference.onnx_runtime import onnx_function
from isthmus.jobs.answer_plans import AnswerPlans, arrivals_of
from isthmus.jobs.answer_tables import answers_table, prediction_of
from isthmus.jobs.infer_settings import InferSettings
from isthmus.jobs.serving import serve_requests
from isthmus.jobs.using import features_of, shared_model
from isthmus.json_text import dumps
from isthmus.links.agreement import broadcast_json, from_root, gather_json, together
from isthmus.links.tiers import tiers_of_rank_0
from isthmus.links.world import gather_rows
from isthmus.pages.answers import SUMMARY
from isthmus.planning.cascades import Cascade
from isthmus.planning.splits import ChainSplits, Split
from isthmus.shards.shard_file import ShardSet
from isthmus.timing.requests import TERMS

CHECKED = 64
"""Answers of each edge rank that are computed again at the end."""


def run_inference(comm, path, tell=lambda line: None, door=None):
    """Answer the requests that the file `path` names; return the table that tells of it. Collective.

    door: (host, port, seconds) where requests come from outside: see `serve_requests`.
    """
    own, told = together(comm, lambda: _read(path, door) if comm.rank == 0 else (None, None))
    told = broadcast_json(comm, told)
    cluster = Cluster(told["sites"], source=told["source"])
    with tiers_of_rank_0(comm, cluster, told["paced"], told["keys"]) as tiers:
        table = broadcast_json(tiers.world, own and own.model_dump(mode="json"), tiers.home)
        job = _Job(tiers, InferSettings.model_validate(table), tell)
        return job.run() if door is None else job.serve(door)


def _read(path, door):
    """Return the settings, and what other ranks are told of them before links are sealed."""
    settings = InferSettings.from_toml(path, serves=door is not None)
    check_folder(settings.output, "name another output")
    file, keys = settings.cluster.file, settings.security.keys_of_links
    return settings, {
        "sites": Cluster.from_toml(file).to_table(),
        "source": str(file) if keys is None else file.name,
        "paced": settings.cluster.links == "paced",
        "keys": keys and str(keys),
    }


def function_of(trained, runtime):
    """Return the function of features that gives a model's scores, by that runtime."""
    return onnx_function(trained) if runtime == "onnx" else joined(parts_of(trained))


class _Job:
    """One stream of requests: models, requests, a plan, what is predicted, and what came of it."""

    def __init__(self, tiers, settings, tell):
        self.tiers, self.settings, self.tell = tiers, settings, tell
        self.world, self.asks, self.chain = tiers.world, tiers.tier == "edge", None
        if settings.cluster.links == "paced":
            tell("links are paced: held to the rates of the cluster file")
        models = settings.models
        self.edge, self.cloud = (
            shared_model(self.world, folder, models.best, tiers.sealed)
            for folder in (models.edge, models.cloud)
        )
        for folder, model in ((models.edge, self.edge), (models.cloud, self.cloud)):
            if "r2" in model.loss.metrics:
                raise SettingsError(
                    f"{folder}: is a regression, and answers are classes; ask it with `isthmus predict`"
                )
        self.edge_ranks = [
            rank
            for rank, index in enumerate(tiers.cluster.site_of_rank)
            if tiers.cluster.sites[index].tier == "edge"
        ]
        self.runs = together(
            self.world, lambda: [function_of(each, models.runtime) for each in (self.edge, self.cloud)]
        )
        self.features, self.targets = together(self.world, self._requests)

    def _requests(self):
        """Return what this rank is asked: features [count, ...] and targets, or None where it serves."""
        if not self.asks or self.settings.requests is None:
            return None, None
        wanted = self.settings.requests
        features, targets = features_of(wanted.data, self.settings.security.keys), None
        if Path(wanted.data).is_dir():
            shards = ShardSet.open(wanted.data, self.settings.security.keys)
            if len(shards.arrays) == 2:
                name = list(shards.arrays)[1]
                targets = np.concatenate(
                    [np.concatenate(list(shards.pieces(k, name))) for k in range(len(shards.samples))]
                )
        if not len(features):
            raise ShardError(f"{wanted.data}: holds no samples; pack some")
        for model in (self.edge, self.cloud):
            try:
                model.check_features(features)
            except ValueError as problem:
                raise ShardError(f"{wanted.data}: {problem}") from None
        place, step = self.edge_ranks.index(self.world.rank), len(self.edge_ranks)
        chosen = (place + step * np.arange(wanted.count)) % len(features)
        return features[chosen], None if targets is None else targets[chosen]

    def measured_parts(self):
        """Return what this rank's parts take: {"edge": Seconds, "cloud": Seconds, "layers": [...]}."""
        features, batch = self._sample(), self.settings.answers.batch
        return {
            "edge": seconds_of(self.runs[0], features, batch),
            "cloud": seconds_of(self.runs[1], features, batch),
            "layers": measure_layers(self.cloud, features),
        }

    def _measured_halves(self, plan):
        """Return what the halves of a split model take here, one and then the other: Seconds."""
        first, second = self._halves(plan)
        features, batch = self._sample(), self.settings.answers.batch
        return [seconds_of(first, features, batch), seconds_of(second, first(features), batch)]

    def _halves(self, plan):
        return halves_of(plan, parts_of(self.cloud), self.settings.answers.compressor)

    def _sample(self):
        if self.features is not None:
            return self.features[:1]
        shape, dtype = self.cloud.features
        return np.zeros((1, *shape), dtype)

    def run(self):
        world, answers = self.world, self.settings.answers
        costs = gather_json(world, self.measured_parts())
        chosen = self._chosen(costs)
        told = next(iter(chosen["predicted"].values()))
        self.tell(f"answers: {chosen['mode']}, predicted mean {1e3 * told['mean']:.2f} ms")
        plan = _plan_of(chosen)
        runs = {rule: self._answered(chosen["mode"], plan, rule) for rule in answers.rules}
        return from_root(world, lambda: self._kept(chosen, costs, runs))

    def _chosen(self, costs):
        """Return the mode that is taken, its plan, and what each rule of dispatch is predicted to take.

        The same on every rank; `costs` is completed.
        """
        world, nbytes = self.world, max(gather_json(self.world, int(self._sample()[0].nbytes)))
        models = [(self.edge, self.runs[0]), (self.cloud, self.runs[1])]
        made = AnswerPlans(self.tiers.cluster, self.settings, models, costs, nbytes)

        def planned():
            plans = made.plans()
            split, chain = plans.get("split"), made.chain
            return plans, {
                "split": split and asdict(split),
                "activations": made.activations,
                "chain": chain
                and {
                    "splits": [asdict(each) for each in chain.splits],
                    "fixed_seconds": chain.fixed_seconds.tolist(),
                    "link_nbytes": chain.link_nbytes.tolist(),
                },
            }

        plans, shared = together(world, lambda: planned() if world.rank == 0 else (None, None))
        shared = broadcast_json(world, shared)
        if shared["chain"]:
            self.chain = ChainSplits(
                tuple(map(_split_of, shared["chain"].pop("splits"))),
                **{name: np.array(column) for name, column in shared["chain"].items()},
            )
        if shared["split"]:
            halves = gather_json(world, self._measured_halves(_split_of(shared["split"])))
            for each, took in zip(costs, halves):
                each["halves"] = took

        def choose():
            mode, more = next(iter(plans)), {}
            if self.settings.requests is not None:
                first = self.settings.answers.rules[0]
                means = {
                    each: prediction_of(made.predicted(each, plan, first))["mean"]
                    for each, plan in plans.items()
                }
                mode = min(means, key=means.__getitem__)
                rules = self.settings.answers.rules
                told = {rule: prediction_of(made.predicted(mode, plans[mode], rule)) for rule in rules}
                more = {"predicted": told, "considered": means}
            plan = plans[mode]
            plan = plan if isinstance(plan, str) else asdict(plan)
            return {"mode": mode, "plan": plan, "activations": shared["activations"]} | more

        return from_root(world, choose)

    def _inference(self, mode, plan, rule):
        answers = self.settings.answers
        edge, cloud = (self.cloud, self.cloud) if mode == "split" else self.runs
        return Inference(
            self.tiers,
            edge=edge,
            cloud=cloud,
            plan=self.chain or plan,
            recent_seconds=answers.recent_seconds or 0.0,
            activations=answers.compressor,
            hedge=answers.hedge,
            deadline_seconds=answers.deadline_seconds,
            batch=answers.batch,
            window=answers.window,
            dispatch=rule,
            queue_seconds=answers.queue_seconds,
        )

    def serve(self, door):
        """Answer what is asked from outside; return the table that tells of it."""
        world, answers = self.world, self.settings.answers
        chosen = self._chosen(gather_json(world, self.measured_parts()))
        with self._inference(chosen["mode"], _plan_of(chosen), answers.rules[0]) as inference:
            sample = self._sample()
            counts = serve_requests(inference, world, door, answers.most_waiting, sample, self.tell)
        told = [each for each in gather_json(world, counts) if each]
        whole = {name: sum(each[name] for each in told) for name in told[0]}
        return {"mode": chosen["mode"], "plan": chosen["plan"], "requests": whole}

    def _answered(self, mode, plan, rule):
        """Answer all requests once; return at rank 0 what every edge rank tells, None elsewhere."""
        found, again = None, {}
        with self._inference(mode, plan, rule) as inference:
            if self.asks:
                found = inference.answer(
                    self.features, arrivals_of(self.settings.requests, self.world.rank)
                )
            else:
                inference.serve()
        count = len(found.answers) if found else 0
        columns = np.empty((count, 5 + len(TERMS)))
        if found:
            right = np.full(count, np.nan) if self.targets is None else found.answers == self.targets
            columns.T[:5] = found.answers, found.from_cloud, found.seconds, found.late, right
            columns.T[5:] = [found.terms[name] for name in TERMS]
            again = self._again(mode, plan, found)
        rows = gather_rows(self.world, columns)
        told = gather_json(
            self.world,
            found
            and {
                "sent_nbytes": found.sent_nbytes,
                "predicted_nbytes": found.predicted_nbytes,
                "batches": found.batches,
                "by_split": np.bincount(
                    found.split, minlength=len(self.chain.splits) if self.chain else 1
                ).tolist(),
                "asked": [int((found.server == rank).sum()) for rank in range(self.world.size)],
                **again,
            },
        )
        return rows and (np.concatenate(rows), [each for each in told if each])

    def _again(self, mode, plan, found):
        """Return how many of some answers were computed again here, and how many of them differed.

        changed: of a split, how many are others than those of the model without a split.
        """
        places = np.unique(np.linspace(0, len(found.answers) - 1, CHECKED).astype(int))
        features, given = self.features[places], found.answers[places]
        own, whole = (run(features).argmax(1) for run in self.runs)
        wanted = np.where(found.from_cloud[places], whole, own)
        if mode == "split":
            splits = self.chain.splits if self.chain else [plan]
            for split in np.unique(found.split[places]):
                mine = found.split[places] == split
                first, second = self._halves(splits[split])
                wanted[mine] = second(first(features[mine])).argmax(1)
        return {
            "checked": len(places),
            "differing": int((wanted != given).sum()),
            "changed": int((whole != given).sum()) if mode == "split" else 0,
        }

    def _kept(self, chosen, costs, runs):
        """Write what was found into the output folder; return the table. Rank 0's."""
        output, cluster = self.settings.output, self.tiers.cluster
        predicted = chosen.pop("predicted")
        tables = {rule: answers_table(predicted[rule], *run) for rule, run in runs.items()}
        first = next(iter(runs.values()))[0]
        output.mkdir(parents=True, exist_ok=True)
        with replacing(output / "answers.npz") as partial, open(partial, "wb") as file:
            np.savez(
                file,
                answers=first[:, 0].astype(np.int32),
                from_cloud=first[:, 1] > 0,
                seconds=first[:, 2],
                **{name: first[:, 5 + place] for place, name in enumerate(TERMS)},
            )
        models = {
            name: {"folder": str(folder), "sha256": digest_of(model)}
            for name, folder, model in (
                ("edge", self.settings.models.edge, self.edge),
                ("cloud", self.settings.models.cloud, self.cloud),
            )
        }
        made = chosen | {
            "predicted": next(iter(predicted.values())),
            "links": self.settings.cluster.links,
            "sites": [cluster.names[index] for index in cluster.site_of_rank],
            "models": models,
            "costs": costs,
            "runs": tables,
            "output": str(output),
        }
        write_text(output / SUMMARY, dumps(made, indent=1))
        return made


def _plan_of(chosen):
    """Return the plan that rank 0 has chosen, as each rank rebuilds it."""
    plan = chosen["plan"]
    if isinstance(plan, str):
        return plan
    if chosen["mode"] == "split":
        return _split_of(plan)
    return Cascade(**plan | _tuples(plan) | {"steps": tuple(map(tuple, plan["steps"]))})


def _split_of(table):
    return Split(**table | _tuples(table))


def _tuples(table):
    return {name: tuple(value) for name, value in table.items() if isinstance(value, list)}
