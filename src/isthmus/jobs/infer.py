"""`isthmus infer`: a stream of requests answered over the link, predicted beside measured.

Edge ranks have the requests, cloud ranks a larger model. Rank 0 plans on a validation set; what every
part takes is measured before the first request; a sample of answers is computed again at the end.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from isthmus.cluster.cluster import Cluster
from isthmus.errors import ShardError
from isthmus.files import check_folder, replacing, write_text
from isthmus.inference.forward import digest_of, joined, parts_of
from isthmus.inference.inference import Inference
from isthmus.inference.measuring import measure_layers, seconds_of
from isthmus.inference.onnx_runtime import onnx_function
from isthmus.jobs.answer_plans import AnswerPlans, arrivals_of
from isthmus.jobs.infer_settings import InferSettings
from isthmus.jobs.serving import serve_requests
from isthmus.jobs.using import features_of, shared_model
from isthmus.json_text import dumps
from isthmus.links.agreement import broadcast_json, from_root, gather_json, together
from isthmus.links.tiers import tiers_of_rank_0
from isthmus.links.world import gather_rows
from isthmus.planning.cascades import Cascade
from isthmus.planning.splits import Split
from isthmus.shards.shard_file import ShardSet
from isthmus.terminal import table_of
from isthmus.timing.requests import TERMS

CHECKED = 64
"""Answers of each edge rank that are computed again at the end."""


def run_inference(comm, path, tell=lambda line: None, door=None):
    """Answer the requests that the file `path` names; return the table that tells of it. Collective.

    door: (host, port, seconds) where requests come from outside: see `serve_requests`.
    """
    settings, table = together(comm, lambda: _read(path, door) if comm.rank == 0 else (None, None))
    settings = InferSettings.model_validate(
        broadcast_json(comm, settings and settings.model_dump(mode="json"))
    )
    cluster = Cluster(broadcast_json(comm, table), source=settings.cluster.file)
    with tiers_of_rank_0(comm, cluster, settings.cluster.links == "paced") as tiers:
        job = _Job(tiers, settings, tell)
        return job.run() if door is None else job.serve(door)


def _read(path, door):
    settings = InferSettings.from_toml(path, serves=door is not None)
    check_folder(settings.output, "name another output")
    return settings, Cluster.from_toml(settings.cluster.file).to_table()


def function_of(trained, runtime):
    """Return the function of features that gives a model's scores, by that runtime."""
    return onnx_function(trained) if runtime == "onnx" else joined(parts_of(trained))


class _Job:
    """One stream of requests: models, requests, a plan, what is predicted, and what came of it."""

    def __init__(self, tiers, settings, tell):
        self.tiers, self.settings, self.tell = tiers, settings, tell
        self.world, self.asks = tiers.world, tiers.tier == "edge"
        if settings.cluster.links == "paced":
            tell("links are paced: held to the rates of the cluster file")
        models = settings.models
        self.edge = shared_model(self.world, models.edge, models.best)
        self.cloud = shared_model(self.world, models.cloud, models.best)
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
        features, targets = features_of(wanted.data), None
        if Path(wanted.data).is_dir():
            shards = ShardSet.open(wanted.data)
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

    def _sample(self):
        if self.features is not None:
            return self.features[:1]
        shape, dtype = self.cloud.features
        return np.zeros((1, *shape), dtype)

    def run(self):
        world, answers = self.world, self.settings.answers
        costs = gather_json(world, self.measured_parts())
        chosen = self._chosen(costs)
        self.tell(
            f"answers: {chosen['mode']}, predicted mean {1e3 * chosen['predicted']['mean']:.2f} ms"
        )
        plan = _plan_of(chosen)
        runs = {rule: self._answered(chosen["mode"], plan, rule) for rule in answers.rules}
        return from_root(world, lambda: self._kept(chosen, costs, runs))

    def _chosen(self, costs):
        """Return the mode that is taken, its plan, and what it is predicted to take, on every rank."""
        nbytes = max(gather_json(self.world, int(self._sample()[0].nbytes)))

        def choose():
            models = [(self.edge, self.runs[0]), (self.cloud, self.runs[1])]
            made = AnswerPlans(self.tiers.cluster, self.settings, models, costs, nbytes)
            plans, told = made.plans(), {}
            for mode, plan in plans.items():
                if self.settings.requests is None:
                    return {"mode": mode, "plan": plan if isinstance(plan, str) else asdict(plan)}
                played = made.predicted(mode, plan)
                told[mode] = _spread(np.concatenate([_totals(terms) for terms in played])), played
            mode = min(told, key=lambda each: told[each][0]["mean"])
            plan = plans[mode]
            return {
                "mode": mode,
                "plan": plan if isinstance(plan, str) else asdict(plan),
                "predicted": told[mode][0]
                | {name: _mean([terms[name] for terms in told[mode][1]]) for name in TERMS},
                "considered": {each: table[0]["mean"] for each, table in told.items()},
            }

        return from_root(self.world, choose)

    def _inference(self, mode, plan, rule):
        answers = self.settings.answers
        edge, cloud = (self.cloud, self.cloud) if mode == "split" else self.runs
        return Inference(
            self.tiers,
            edge=edge,
            cloud=cloud,
            plan=plan,
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
            again = self._again(mode, found)
        rows = gather_rows(self.world, columns)
        told = gather_json(
            self.world,
            found
            and {
                "sent_nbytes": found.sent_nbytes,
                "predicted_nbytes": found.predicted_nbytes,
                "batches": found.batches,
                "servers": np.unique(found.server[found.server >= 0], return_counts=True)[1].tolist(),
                **again,
            },
        )
        return rows and (np.concatenate(rows), [each for each in told if each])

    def _again(self, mode, found):
        """Return how many of some answers were computed again here, and how many of them differed."""
        places = np.unique(np.linspace(0, len(found.answers) - 1, CHECKED).astype(int))
        cloud = found.from_cloud[places] | (mode == "split")
        both = [run(self.features[places]).argmax(1) for run in self.runs]
        wanted = np.where(cloud, both[1], both[0])
        return {"checked": len(places), "differing": int((wanted != found.answers[places]).sum())}

    def _kept(self, chosen, costs, runs):
        """Write what was found into the output folder; return the table. Rank 0's."""
        output, tables = self.settings.output, {}
        for rule, (rows, told) in runs.items():
            from_cloud, seconds, late, right = rows.T[1:5]
            tables[rule] = {
                "requests": len(rows),
                "from_cloud": int(from_cloud.sum()),
                "late": int(late.sum()),
                "accuracy": None if np.isnan(right).any() else float(right.mean()),
                "measured": _spread(seconds)
                | {name: _mean([rows[:, 5 + place]]) for place, name in enumerate(TERMS)},
                **{
                    name: sum(each[name] for each in told)
                    for name in ("sent_nbytes", "predicted_nbytes", "batches", "checked", "differing")
                },
                "servers": [each["servers"] for each in told],
            }
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
            "links": self.settings.cluster.links,
            "models": models,
            "costs": costs,
            "runs": tables,
            "output": str(output),
        }
        write_text(output / "summary.json", dumps(made, indent=1))
        return made


def _plan_of(chosen):
    """Return the plan that rank 0 has chosen, as each rank rebuilds it."""
    plan = chosen["plan"]
    if isinstance(plan, str):
        return plan
    lists = {name: tuple(value) for name, value in plan.items() if isinstance(value, list)}
    if chosen["mode"] == "split":
        return Split(**plan | lists)
    return Cascade(**plan | lists | {"steps": tuple(map(tuple, plan["steps"]))})


def _totals(terms):
    return np.nansum([terms[name] for name in TERMS], axis=0)


def _spread(seconds):
    """Return mean, median and 99th percentile; the requests are never none."""
    return {
        "mean": float(seconds.mean()),
        "p50": float(np.quantile(seconds, 0.5)),
        "p99": float(np.quantile(seconds, 0.99)),
    }


def _mean(parts):
    """Return the mean of those that are numbers, 0 where there are none."""
    values = np.concatenate(parts)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0


def inference_words(made):
    """Return what people read of the table: predicted beside measured, by term, and what was sent."""
    if "runs" not in made:
        told = ", ".join(f"{count:,} {name}" for name, count in made["requests"].items())
        return [f"{made['mode']}: {told}"]
    rows = []
    for rule, table in made["runs"].items():
        for name in (*TERMS, "mean", "p50", "p99"):
            rows.append(
                (
                    (
                        rule,
                        name,
                        f"{1e3 * made['predicted'][name]:.2f}",
                        f"{1e3 * table['measured'][name]:.2f}",
                    ),
                    "bold" if name == "mean" else "",
                )
            )
    lines = [
        table_of(
            [("dispatch", "left"), ("ms", "left"), ("predicted", "right"), ("measured", "right")], rows
        )
    ]
    for rule, table in made["runs"].items():
        right = "" if table["accuracy"] is None else f", {table['accuracy']:.2%} right"
        lines.append(
            f"{rule}: {table['requests']:,} requests, {table['from_cloud']:,} answered by the cloud, "
            f"{table['late']:,} late{right}; {table['sent_nbytes']:,} bytes sent, by formula "
            f"{table['predicted_nbytes']:,}; {table['differing']} of {table['checked']} answers differ "
            "computed again"
        )
    if not isinstance(made["plan"], str):
        lines += list(made["plan"]["sentences"])
    return [*lines, f"{made['output']}: answers.npz, summary.json"]
