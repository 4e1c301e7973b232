"""Who answers which requests: the plans of `isthmus infer`, and what each is predicted to take."""

import numpy as np

from isthmus.errors import SettingsError
from isthmus.inference.forward import digest_of
from isthmus.inference.messages import ANSWER_HEAD_ENTRIES, HEAD_ENTRIES
from isthmus.planning.cascades import plan_cascade
from isthmus.planning.splits import Split, plan_split
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

    models: (TrainedModel, the function that gives its scores) of the edge and of the cloud.
    """

    def __init__(self, cluster, settings, models, costs, request_nbytes):
        self.cluster, self.settings, self.models = cluster, settings, models
        self.costs, self.request_nbytes = costs, request_nbytes
        tiers = [cluster.sites[index].tier for index in cluster.site_of_rank]
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
        shards = ShardSet.open(answers.validation)
        for model, _ in self.models:
            model.check_shards(shards)
            if shards.digest == model.table["data"].get("train", {}).get("sha256"):
                raise SettingsError(
                    f"{answers.validation}: a model has learnt from these samples; name others"
                )
        samples = [shards.read(number) for number in range(len(shards.samples))]
        features, targets = (
            np.concatenate([list(each.values())[place] for each in samples]) for place in (0, 1)
        )
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

    def _split(self):
        """Return the Split of the cloud's model between the first edge rank and the hub's first rank."""
        cluster, costs = self.cluster, self.costs
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
        names = [cluster.names[cluster.site_of_rank[rank]] for rank in (source, target)]
        return plan_split(cluster, layers, source=names[0], target=names[1])

    def predicted(self, mode, plan):
        """Return the terms of each edge rank's requests, as they are played."""
        cluster, costs, requests = self.cluster, self.costs, self.settings.requests
        answers, cloud_ranks = self.settings.answers, self.cloud_ranks
        share = {"edge": 1.0, "cascade": getattr(plan, "share", 0.0)}.get(mode, 0.0)
        servers = [Seconds(*costs[rank]["cloud"]) for rank in cloud_ranks]
        askers = []
        for rank in self.edge_ranks:
            part = NOTHING if mode == "cloud" else Seconds(*costs[rank]["edge"])
            nbytes = self.request_nbytes
            if isinstance(plan, Split):
                nbytes = plan.nbytes
                part, servers = (
                    Seconds(0.0, plan.terms["source"]),
                    [Seconds(0.0, plan.terms["target"]) for _ in cloud_ranks],
                )
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
        return play_requests(askers, servers, answers.batch, answers.window)


def _line(links):
    """Return (latency, bytes per second) of a route."""
    return sum(link.latency_seconds for link in links), min(link.bytes_per_second for link in links)
