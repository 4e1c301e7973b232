"""How good a model is on samples that many ranks hold."""

from functools import reduce

import numpy as np

from isthmus.links.agreement import gather_json
from isthmus.models.scoring import ROWS, scores_of


def evaluate(comm, model, parameters, local):
    """Return name -> mean over all ranks' LocalSamples, the same on every rank. Collective.

    The names are those of the model's loss; all are NaN where no rank has a sample.
    """
    loss = model.loss
    own = [
        loss.sums(scores_of(model, parameters, features), targets)
        for features, targets in local.batches(size=ROWS, seed=0)
    ]
    everyone = gather_json(comm, reduce(loss.add, own).tolist() if own else None)
    told = [np.array(sums) for sums in everyone if sums]
    return loss.metrics_of(reduce(loss.add, told)) if told else dict.fromkeys(loss.metrics, np.nan)
