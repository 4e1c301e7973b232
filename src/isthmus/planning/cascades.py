"""Which requests a small model at the edge answers by itself, and which it passes on to the cloud.

The edge keeps what it is sure enough of (Teerapittayanon et al. 2017, doi:10.1109/ICDCS.2017.226). How
sure that must be is found on samples that neither model was trained on: shares kept are tried from
small ones up, and the last is taken before the lower confidence bound of the change in accuracy falls
below what may be lost. Tested in a fixed order, they need no correction for how many they are
(Angelopoulos et al. 2021, arXiv:2110.01052). The bound is that of a difference between paired
proportions, of Agresti and Min 2005, doi:10.1002/sim.1781.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from isthmus.cluster.cluster import Cluster
from isthmus.errors import PlanError
from isthmus.quantities import real

LINK_SHARE = 0.8
"""Of a link's rate that requests may take on average: nearer to all of it, queues grow without end."""
SMALLEST_SHARE = 0.01
"""Kept at the edge that is tried first."""


def max_probability(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the largest probability of each row."""
    return probabilities.max(1)


def margin(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return by how much the largest probability of each row is above the next."""
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]


def negative_entropy(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sum of p log p of each row, where 0 log 0 is 0."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return (probabilities * logs).sum(1)


MEASURES = {"max_probability": max_probability, "margin": margin, "entropy": negative_entropy}
"""How sure a model is, by name; more is surer."""


@dataclass(frozen=True)
class Cascade:
    """A threshold, what it keeps at the edge, and what that does to accuracy and the link.

    measure, threshold: the edge answers where its measure (for "entropy" the negative) is at least the
    threshold. share: of requests kept. change: of accuracy, against the cloud's for all; no less than
    change_lower_bound at `confidence`. link, link_use: the pipe that requests fill most, and how much of
    it. edge_model, cloud_model: digests of both models, as the caller gave them, so that a threshold is
    not used with others. steps: (share, threshold, change, lower bound) from small shares to all, for a
    threshold that follows a queue. sentences: what to know, in words.
    """

    measure: str
    threshold: float
    share: float
    accuracy: float
    edge_accuracy: float
    cloud_accuracy: float
    change: float
    change_lower_bound: float
    confidence: float
    link: str
    link_use: float
    edge_model: str | None
    cloud_model: str | None
    steps: tuple[tuple[float, float, float, float], ...]
    sentences: tuple[str, ...]

    def keeps(self, edge_scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return bool[requests]: which the edge answers, by its own scores, float[requests, classes]."""
        return MEASURES[self.measure](probabilities_of("edge_scores", edge_scores)) >= self.threshold

    def threshold_at(self, share: float) -> float:
        """Return the threshold that keeps about `share` of the requests at the edge."""
        shares = np.array([step[0] for step in self.steps])
        return self.steps[int(np.abs(shares - share).argmin())][1]


def plan_cascade(
    cluster: Cluster,
    edge_scores: npt.ArrayLike,
    cloud_scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    requests_per_second: float | Mapping[str, float],
    nbytes: float,
    accuracy_loss: float = 0.0,
    measure: str | None = None,
    confidence: float = 0.95,
    edge_model: str | None = None,
    cloud_model: str | None = None,
) -> Cascade:
    """Return the Cascade that keeps the largest share at the edge without losing more than it may.

    edge_scores, cloud_scores, targets: of a validation set, float[samples, classes] both and whole
        numbers[samples]. Rows that are not negative and sum to 1 are probabilities, others are put
        through softmax; a score may be -inf.
    requests_per_second: of all edge sites together, spread by their ranks, or {edge site: its own}.
    nbytes: of one request that is sent.
    accuracy_loss: a share, as 0.003; the lower bound of the change stays above its negative.
    measure: "max_probability", "margin" or "entropy"; None tries all three, each at a stricter
        confidence for it, and takes the one that keeps most.
    edge_model, cloud_model: digests to keep with the threshold.

    Where the edge model is the better one it keeps all. Raises ValueError for scores and numbers that
    make no sense, and PlanError where what must be sent is more than 0.8 of a link.
    """
    loss = real("accuracy_loss", accuracy_loss, least=0, most=1)
    if not 0.5 <= real("confidence", confidence) < 1:
        raise ValueError(f"confidence must be from 0.5 to below 1, not {confidence}")
    if measure is not None and measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}, not {measure!r}")
    size = real("nbytes", nbytes, least=0)
    edge, cloud = (
        probabilities_of("edge_scores", edge_scores),
        probabilities_of("cloud_scores", cloud_scores),
    )
    truth = _targets(targets, edge, cloud)
    right = edge.argmax(1) == truth, cloud.argmax(1) == truth
    accuracies = float(right[0].mean()), float(right[1].mean())
    names = [measure] if measure else list(MEASURES)
    deviations = NormalDist().inv_cdf(1 - (1 - confidence) / len(names))
    tried = {name: _Steps(MEASURES[name](edge), *right, deviations) for name in names}
    name = max(names, key=lambda each: tried[each].last_above(-loss))
    steps = tried[name]
    best = steps.last_above(-loss)
    said = []
    if accuracies[0] >= accuracies[1]:
        best = len(steps.share) - 1
        said.append(
            f"the edge model is the better one, {accuracies[0]:.2%} right and the cloud's "
            f"{accuracies[1]:.2%}: it answers all, and a cascade has no use"
        )
    elif best == 0:
        said.append(
            f"no share kept is sure to lose at most {loss:.2%}: all is sent; validate on more than "
            f"{len(truth)} samples, or allow more"
        )
    link, load = _busiest(cluster, requests_per_second, size)
    use = (1 - steps.share[best]) * load
    if use > LINK_SHARE:
        fits = int(np.argmax((1 - steps.share) * load <= LINK_SHARE))
        raise PlanError(
            f"{1 - steps.share[best]:.0%} of the requests must be sent to lose at most {loss:.2%}, "
            f"which is {use:.0%} of link {link} and may be {LINK_SHARE:.0%}; send fewer bytes than "
            f"{size:g} each, or allow accuracy_loss = {max(0.0, -steps.lower[fits]):.2g}"
        )
    change, lower = float(steps.change[best]), float(steps.lower[best])
    said.append(
        f"{name} keeps {steps.share[best]:.1%} at the edge: {accuracies[1] + change:.2%} right, "
        f"where the cloud alone is {accuracies[1]:.2%} and the edge {accuracies[0]:.2%}; the change is "
        f"at least {lower:+.2%} at {confidence:.0%}"
    )
    said.append(f"requests take {use:.1%} of link {link}, and {load:.1%} if all were sent")
    return Cascade(
        measure=name,
        threshold=float(steps.threshold[best]),
        share=float(steps.share[best]),
        accuracy=accuracies[1] + change,
        edge_accuracy=accuracies[0],
        cloud_accuracy=accuracies[1],
        change=change,
        change_lower_bound=lower,
        confidence=confidence,
        link=link,
        link_use=float(use),
        edge_model=edge_model,
        cloud_model=cloud_model,
        steps=steps.hundred(),
        sentences=tuple(said),
    )


class _Steps:
    """Shares kept at the edge, from none to all, each with its threshold and what it does to accuracy.

    The first is none; the others are those that a threshold can make, from SMALLEST_SHARE up.
    """

    def __init__(self, sure, edge_right, cloud_right, deviations):
        order, count = np.argsort(-sure, kind="stable"), len(sure)
        sorted_sure = sure[order]
        ends = np.append(np.flatnonzero(sorted_sure[1:] < sorted_sure[:-1]), count - 1)
        ends = ends[(ends + 1 >= SMALLEST_SHARE * count) | (ends == count - 1)]
        won = np.cumsum((edge_right & ~cloud_right)[order])[ends]
        lost = np.cumsum((~edge_right & cloud_right)[order])[ends]
        deviation = np.sqrt(won + lost + 1 - (won - lost) ** 2 / (count + 2))
        lower = (won - lost - deviations * deviation) / (count + 2)
        self.share = np.append(0.0, (ends + 1) / count)
        self.threshold = np.append(math.inf, sorted_sure[ends])
        self.threshold[-1] = -math.inf  # all: also what is less sure than any sample was
        self.change = np.append(0.0, (won - lost) / count)
        self.lower = np.append(0.0, lower)

    def last_above(self, least):
        """Return the number of the last step before the first whose lower bound is below `least`."""
        below = self.lower < least
        return int(np.argmax(below)) - 1 if below.any() else len(below) - 1

    def hundred(self):
        """Return (share, threshold, change, lower bound) of about a hundred steps."""
        wanted = np.searchsorted(self.share, np.linspace(0, 1, 101) - 1e-12)
        columns = (self.share, self.threshold, self.change, self.lower)
        return tuple(zip(*(column[np.unique(wanted)].tolist() for column in columns)))


def probabilities_of(name, scores):
    """Return float64[samples, classes] that sum to 1 a row; ValueError where they cannot."""
    made = np.asarray(scores, np.float64)
    if made.ndim != 2 or not len(made) or made.shape[1] < 2:
        raise ValueError(
            f"{name} must be scores[samples, classes], two classes or more, not {made.shape}"
        )
    highest = made.max(1)  # NaN where a row has one
    if not np.isfinite(highest).all():
        row = int(np.argmin(np.isfinite(highest)))
        raise ValueError(
            f"{name}: row {row} has a NaN, an infinity, or -inf alone; leave that sample out"
        )
    if (made >= 0).all() and np.allclose(made.sum(1), 1, atol=1e-3):
        return made
    made = np.exp(made - highest[:, None])
    return made / made.sum(1, keepdims=True)


def _targets(targets, edge, cloud):
    truth = np.asarray(targets)
    if truth.shape != (len(edge),) or truth.dtype.kind not in "iu":
        raise ValueError(
            f"targets must be a whole number for each of the {len(edge)} samples, not {truth.dtype} of "
            f"shape {truth.shape}"
        )
    if edge.shape != cloud.shape:
        raise ValueError(
            f"edge_scores are of shape {edge.shape} and cloud_scores of {cloud.shape}; both must be of "
            "the same samples and classes"
        )
    if truth.min() < 0 or truth.max() >= edge.shape[1]:
        raise ValueError(
            f"targets must be classes 0 to {edge.shape[1] - 1}, not {truth.min()} to {truth.max()}"
        )
    return truth


def _busiest(cluster, requests_per_second, nbytes):
    """Return (pipe, share of its rate) of the pipe that all requests, sent to the hub, fill most."""
    edges = {site.name: site.ranks for site in cluster.sites if site.tier == "edge"}
    if not edges:
        raise ValueError("the cluster has no edge site; requests come from one")
    if isinstance(requests_per_second, Mapping):
        if unknown := sorted(requests_per_second.keys() - edges.keys()):
            raise ValueError(
                f"requests_per_second: no edge site is called {unknown[0]!r}; known: {', '.join(edges)}"
            )
        rates = {
            name: real(f"requests_per_second of {name}", each, least=0)
            for name, each in requests_per_second.items()
        }
    else:
        whole = real("requests_per_second", requests_per_second, least=0)
        rates = {name: whole * ranks / sum(edges.values()) for name, ranks in edges.items()}
    load = {}
    for name, rate in rates.items():
        for link in cluster.route(name, cluster.names[cluster.hub]):
            taken = rate * (nbytes + cluster.overhead_nbytes) / link.line(nbytes)[1]
            load[link.pipe] = load.get(link.pipe, 0.0) + taken
    busiest = max(load, key=load.__getitem__)
    return busiest, load[busiest]
