"""Who answers which requests: the plans of `isthmus infer`, and what each is predicted to take."""

import math

import numpy as np

from isthmus.errors import PlanError, SettingsError
from isthmus.inference.dispatch import DISPATCHES
from isthmus.inference.forward import digest_of, parts_of
from isthmus.inference.halves import halves_of
from isthmus.inference.ladder import paired_change
from isthmus.inference.messages import ANSWER_HEAD_ENTRIES, HEAD_ENTRIES
from isthmus.planning.cascades import plan_cascade
from isthmus.planning.splits import Split, plan_split, plan_splits
from isthmus.shards.shard_file import ShardSet
from isthmus.timing.requests import NOTHING, Asker, Seconds, play_requests


def arrivals_of(requests, rank):
    """Return the seconds at which the requests of an edge rank come, from (seed, rank) alone."""
    if requests.per_second is None:
        return np.zeros(requests.count)
    random = np.random.default_rng([requests.seed, rank])
    return np.cumsum(random.exponential(1 / requests.per_second, requests.count))


class AnswerPlans:
    """The plans for a cluster, two models and what their parts take: `costs`, by rank.

    models: (TrainedModel, the function that gives its scores) of the edge and of the cloud. activations:
    of a split that was planned, what they are coded as, and what that does to accuracy. chain: the
    ChainSplits of one that follows the link.
    """

    def __init__(self, cluster, settings, models, costs, request_nbytes):
        self.cluster, self.settings, self.models = cluster, settings, models
        self.costs, self.request_nbytes = costs, request_nbytes
        tiers = [cluster.sites[index].tier for index in cluster.site_of_rank]
        self.activations = self.chain = None
        self.edge_ranks = [rank for rank, tier in enumerate(tiers) if tier == "edge"]
        self.cloud_ranks = [rank for rank, tier in enumerate(tiers) if tier == "cloud"]

    def plans(self):
        """Return {mode: plan} of the modes that may be taken, in order; PlanError where none may."""
        answers = self.settings.answers
        made = {"edge": "edge", "cloud": "cloud"}
        if answers.mode == "split":
            made["split"] = self._split()
        if answers.mode in ("auto", "cascade"):
            made["cascade"] = self._cascade()
        if answers.mode != "auto":
            return {answers.mode: made[answers.mode]}
        cascade = made["cascade"]
        if cascade.share < 1 and cascade.edge_accuracy < cascade.cloud_accuracy:
            del made["edge"]
        return made

    def _cascade(self):
        answers, cluster = self.settings.answers, self.cluster
        features, targets = self._validation()
        rate = self.settings.requests and self.settings.requests.per_second
        sites = {site.name: site.ranks * (rate or 0.0) for site in cluster.sites if site.tier == "edge"}
        return plan_cascade(
            cluster,
            *(run(features) for _, run in self.models),
            targets.astype(np.int64),
            requests_per_second=sites,
            nbytes=features[0].nbytes,
            accuracy_loss=answers.accuracy_loss,
            measure=answers.measure,
            edge_model=digest_of(self.models[0][0]),
            cloud_model=digest_of(self.models[1][0]),
        )

    def _validation(self):
        """Return features and targets of the validation set; SettingsError if a model learnt from it."""
        validation = self.settings.answers.validation
        shards = ShardSet.open(validation, self.settings.security.keys)
        for model, _ in self.models:
            model.check_shards(shards)
            if shards.digest == model.table["data"].get("train", {}).get("sha256"):
                raise SettingsError(f"{validation}: a model has learnt from these samples; name others")
        samples = [list(shards.read(number).values()) for number in range(len(shards.samples))]
        return [np.concatenate([each[place] for each in samples]) for place in (0, 1)]

    def _split(self):
        """Return the Split of the cloud's model between the first edge rank and the hub's first rank."""
        cluster, costs, answers = self.cluster, self.costs, self.settings.answers
        source, target = self.edge_ranks[0], cluster.ranks_of_site(cluster.names[cluster.hub])[0]
        layers = [
            {
                "name": here["name"],
                "source_seconds": here["seconds"],
                "target_seconds": there["seconds"],
                "entries": here["entries"],
                "nbytes": here["nbytes"],
            }
            for here, there in zip(costs[source]["layers"], costs[target]["layers"])
        ]
        if (last := answers.split_after) is not None:
            known = [layer["name"] for layer in layers]
            if last not in known:
                raise SettingsError(
                    f"answers.split_after: the cloud's model has no layer {last!r}; it has "
                    f"{', '.join(known)}"
                )
            for number, layer in enumerate(layers):
                layer["target_seconds" if number <= known.index(last) else "source_seconds"] = math.inf
            layers[0] |= {"source_seconds": 0.0, "target_seconds": 0.0}
        names = [cluster.names[cluster.site_of_rank[rank]] for rank in (source, target)]
        activations = answers.compressor
        ends = {"source": names[0], "target": names[1], "activations": activations}
        plan = plan_split(cluster, layers, **ends)
        if answers.recent_seconds:
            self.chain = plan_splits(cluster, layers, **ends)
        if activations:
            judged = self._judged(plan, activations) if answers.validation else {}
            self.activations = {"kind": answers.activations.kind} | judged
        return plan

    def _judged(self, plan, activations):
        """Return what coded activations do to the accuracy; PlanError where they may lose too much."""
        (features, targets), (model, whole) = self._validation(), self.models[1]
        first, second = halves_of(plan, parts_of(model), activations)
        right = [scores.argmax(1) == targets for scores in (whole(features), second(first(features)))]
        change, low, high = paired_change(*right)
        loss = self.settings.answers.accuracy_loss
        if low < -loss:
            raise PlanError(
                f"activations in {self.settings.answers.activations.kind} change the accuracy by "
                f"{low:+.2%} to {high:+.2%} of {len(targets)} samples, and may lose {loss:.2%}; send "
                "more bits, validate on more samples, or allow more"
            )
        return {
            "samples": len(targets),
            "accuracy": float(right[1].mean()),
            "float32_accuracy": float(right[0].mean()),
            "change": change,
            "low": low,
            "high": high,
        }

    def predicted(self, mode, plan, rule):
        """Return the terms of each edge rank's requests, as they are played with that rule of dispatch.

        Of a split, costs["halves"] has what batches of each half take, once that was measured.
        """
        cluster, costs, requests = self.cluster, self.costs, self.settings.requests
        answers, cloud_ranks = self.settings.answers, self.cloud_ranks
        alone = mode == "edge" or (mode == "split" and not plan.target_layers)
        share = 1.0 if alone else getattr(plan, "share", 0.0)
        servers = [Seconds(*costs[rank]["cloud"]) for rank in cloud_ranks]
        askers = []
        for rank in self.edge_ranks:
            part = NOTHING if mode == "cloud" else Seconds(*costs[rank]["edge"])
            nbytes = self.request_nbytes
            if isinstance(plan, Split):
                nbytes, part = plan.nbytes, Seconds(*costs[rank]["halves"][0])
                servers = [Seconds(*costs[each]["halves"][1]) for each in cloud_ranks]
            count = requests.count
            kept = np.random.default_rng([requests.seed, rank, 1]).random(count) < share
            home, hub = cluster.names[cluster.site_of_rank[rank]], cluster.names[cluster.hub]
            askers.append(
                Asker(
                    arrivals_of(requests, rank),
                    kept,
                    part,
                    _line(cluster.route(home, hub)),
                    _line(cluster.route(hub, home)),
                    nbytes,
                    4.0,
                    (4.0 * HEAD_ENTRIES, 8.0 * ANSWER_HEAD_ENTRIES),
                )
            )
        rates = [cluster.rates[rank] for rank in cloud_ranks]
        return play_requests(
            askers, servers, answers.batch, answers.window, lambda: DISPATCHES[rule](rates)
        )


def _line(links):
    """Return (latency, bytes per second) of a route."""
    return sum(link.latency_seconds for link in links), min(link.bytes_per_second for link in links)
