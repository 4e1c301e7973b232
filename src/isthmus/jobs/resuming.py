"""A run that goes on: what it must share with the one that stopped, and what it takes up from it."""

from dataclasses import dataclass, field
from hashlib import sha256

import isthmus
from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.errors import CheckpointError
from isthmus.folders.metrics import metrics_of
from isthmus.folders.record import DAMAGED
from isthmus.json_text import dumps


def identity_of(settings, cluster, plan, data):
    """Return what `difference_in_words` compares; data: the Manifest of each set by name.

    Where sums are added in which order depends on the sites and their tree, and not on the cluster's
    rates, which may have been measured again.
    """
    tree, sites = cluster.tree, [[site.name, site.tier, site.ranks] for site in cluster.sites]
    table, optimizer = settings.to_json(), settings.training.optimizer.kind
    training = table["training"] | {
        "optimizer": {"kind": optimizer} | settings.training.make_optimiser().arguments
    }
    training.pop("momentum")  # told there
    training.pop("stop_after"), training.pop("on_replica")
    if training["schedule"] == "constant":  # then more epochs change nothing that was
        training = {key: value for key, value in training.items() if key != "epochs"}
    return {
        "ranks": cluster.size,
        "data": {name: manifest.digest for name, manifest in data.items()},
        "data.scale": table["data"]["scale"],
        "model": {key: value for key, value in table["model"].items() if key != "folder"},
        "training": training,
        "strategy": table["strategy"],
        "allreduce": table["allreduce"],
        "sites": [tree.hub, sites]
        + ([] if tree == AggregationTree.star(tree.hub, len(sites)) else [list(tree.parents)])
        + ([] if cluster.ring == tuple(range(len(sites))) else [["ring", *cluster.ring]]),
        "plan": {
            "hash": plan.hash,
            "settings": table["plan"],
            "version": isthmus.__version__,
            "cluster": sha256(dumps(cluster.to_table()).encode()).hexdigest(),
        },
    }


CHANGES = ("members", "lost", "joined", "late")
"""Kinds of lines of metrics.jsonl that tell of other ranks than before."""
SETS = {"evaluation": "test", "validation": "validation"}
"""Kind of a line of metrics.jsonl -> the set whose metrics it tells."""


@dataclass
class Recalled:
    """What the earlier part of a run has left: its clock, its terms, its loss and metrics of each set.

    dropped: clients that were left out of rounds. members: lines that tell who made which steps.
    sent_nbytes: of all ranks until then; None where no line tells it.
    told: what is to be said of lines that were lost; None where there are none.
    """

    seconds: float = 0.0
    loss: float | None = None
    measured: list = field(default_factory=list)
    evaluated: dict = field(default_factory=dict)
    dropped: int = 0
    members: list = field(default_factory=list)
    sent_nbytes: dict | None = None
    told: str | None = None


def until_checkpoint(step, parts):
    """Return whether a line was there as the checkpoint of `step` was written, asked in their order.

    parts: of the ledger then; ranks may have changed after it, and before the next step was made.
    None: of a version that does not tell.
    """
    left = parts

    def keeps(line):
        nonlocal left
        if left is not None and line["kind"] == "members":
            left -= 1
        changed = left is not None and left < 0 and line["kind"] in CHANGES
        return line["step"] <= step and not changed

    return keeps


def recall(folder, step, last, keeps):
    """Return what is Recalled of the lines that the RunFolder's metrics keep; the others are dropped.

    keeps: as `RunFolder.cut_back` has it. step: the last one that is made.

    last: whether no step is left to be made. Raises CheckpointError if so, and the metrics do not tell
    of those that were.
    """
    lines, damaged = folder.cut_back(step, keeps)
    found = Recalled()
    for line in lines:
        if line["kind"] == "step":
            found.seconds, found.loss = line["seconds"], line["loss"]
            found.sent_nbytes = line["sent_nbytes"]
            found.measured.append((line["terms"], line.get("exchanged", True)))
        elif line["kind"] == "replanned":
            found.seconds = line["seconds"]
        elif line["kind"] == "members":
            found.members.append(line)
        elif line["kind"] == "dropped":
            found.dropped += len(line["clients"])
        elif line["kind"] in SETS:
            found.evaluated[SETS[line["kind"]]] = metrics_of(line)
    if last and not (found.measured and found.evaluated.get("test")):
        raise CheckpointError(
            f"{folder.metrics}: does not tell what the steps came to, and none are "
            "left to make; start without --resume, or give more epochs"
        )
    if damaged:
        found.told = (
            f"{folder.metrics}: lines {', '.join(map(str, damaged))} could not be read; they "
            f"are in {folder.path / DAMAGED} now, and the run goes on without them"
        )
    return found
