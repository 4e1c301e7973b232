"""Cascades: what the edge keeps costs no more accuracy than it may, and the link carries the rest."""

import dataclasses

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.errors import PlanError
from isthmus.planning.cascades import MEASURES


def cluster(**link):
    return isthmus.Cluster(cluster_of(1, 1, **{"latency_seconds": 0.01, "bytes_per_second": 1e6} | link))


def drawn(seed, count, edge=2.2, cloud=3.0, classes=4):
    """Return scores of two models that see the same, with less and more noise, and what is true."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, count)
    seen = random.normal(size=(count, classes))
    true = np.eye(classes)[targets]
    both = [
        3 * (strength * true + 0.7 * seen + random.normal(size=seen.shape)) for strength in (edge, cloud)
    ]
    return *both, targets


def planned(scores, places=None, **options):
    options = {"requests_per_second": 100, "nbytes": 1000, "accuracy_loss": 0.01} | options
    return isthmus.plan_cascade(places or cluster(), *scores, **options)


@pytest.mark.slow
@pytest.mark.parametrize("measure", [None, "margin"])
def test_what_is_kept_costs_no_more_than_it_may_on_samples_never_seen(measure):
    edge, cloud, targets = drawn(0, 50_000)
    wrong, shares = 0, []
    for seed in range(40):
        made = planned(drawn(seed + 1, 2000), measure=measure)
        kept = made.keeps(edge)
        right = np.where(kept, edge.argmax(1), cloud.argmax(1)) == targets
        wrong += right.mean() - (cloud.argmax(1) == targets).mean() < -0.01
        shares.append(kept.mean())
        assert abs(kept.mean() - made.share) < 0.05
    assert wrong <= 6  # 2 are expected at most; more than 6 of 40 come once in a hundred
    assert np.mean(shares) > 0.3


def test_numbers_are_those_of_the_samples():
    scores = edge, cloud, targets = drawn(1, 5000)
    made = planned(scores, edge_model="e1", cloud_model="c1")
    kept = made.keeps(edge)
    assert made.share == kept.mean()
    assert made.accuracy == pytest.approx(
        (np.where(kept, edge.argmax(1), cloud.argmax(1)) == targets).mean()
    )
    assert made.edge_accuracy == (edge.argmax(1) == targets).mean()
    assert made.change == pytest.approx(made.accuracy - made.cloud_accuracy)
    assert -0.01 <= made.change_lower_bound < made.change
    assert made.link_use == pytest.approx((1 - made.share) * 100 * 1000 / 1e6)
    assert made.link == "site1>site0"
    assert (made.edge_model, made.cloud_model) == ("e1", "c1")
    assert [made.steps[0][0], made.steps[-1][0]] == [0, 1]
    shares = [
        dataclasses.replace(made, threshold=made.threshold_at(share)).keeps(edge).mean()
        for share in (0.0, 0.2, 0.7, 1.0)
    ]
    assert shares == pytest.approx([0, 0.2, 0.7, 1], abs=0.011)
    softmax = np.exp(edge - edge.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    assert planned((softmax, cloud, targets)).share == pytest.approx(made.share, abs=1e-3)


def test_three_measures_are_held_to_a_stricter_confidence_each():
    scores = drawn(1, 5000)
    of_three = planned(scores)
    alone = planned(scores, measure=of_three.measure)
    assert of_three.steps[-1][2] == alone.steps[-1][2]
    assert of_three.steps[-1][3] < alone.steps[-1][3] < alone.steps[-1][2]


def test_more_may_be_kept_where_more_may_be_lost():
    scores = drawn(2, 5000)
    shares = [planned(scores, accuracy_loss=loss).share for loss in (0.002, 0.01, 0.05, 1.0)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    nothing = planned(scores, accuracy_loss=0.0)
    assert nothing.share == 0
    assert not nothing.keeps(scores[0]).any()
    assert "no share kept is sure to lose at most 0.00%: all is sent" in nothing.sentences[0]


def test_the_better_edge_model_keeps_all():
    made = planned(drawn(3, 1000, edge=3.0, cloud=2.0), requests_per_second=1e6)
    assert made.share == 1
    assert made.link_use == 0
    assert made.keeps([[0.25] * 4]).all()  # less sure than any sample was
    assert made.sentences[0].startswith("the edge model is the better one, ")


def test_probabilities_of_zero_have_an_entropy():
    sure = np.tile([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.6, 0.4]], (250, 1))
    targets = np.tile([0, 1, 1, 1], 250)
    cloud = np.eye(2)[targets]
    with np.errstate(all="raise"):
        for measure in MEASURES:
            made = planned((sure, cloud, targets), measure=measure)
            assert made.share == 0.5
            assert made.keeps(sure[:4]).tolist() == [True, True, False, False]
        with np.errstate(divide="ignore", under="ignore"):
            logs = np.log(sure)
        assert planned((logs, cloud, targets), measure="entropy").share == 0.5  # -inf of zero


def test_what_must_be_sent_fits_on_the_link():
    scores = drawn(4, 5000)
    share = planned(scores).share
    rate = 0.79e6 / 1000 / (1 - share)
    assert planned(scores, requests_per_second=rate).link_use == pytest.approx(0.79)
    with pytest.raises(PlanError, match=r"of link site1>site0 and may be 80%; send .* accuracy_loss ="):
        planned(scores, requests_per_second=1.1 * rate)
    places = cluster_of(1, 1, 1, bytes_per_second=1e6)
    for link in places["link"]:
        link["shared"] = "mast"
    made = planned(scores, isthmus.Cluster(places), requests_per_second={"site1": 50, "site2": 50})
    assert made.link_use == pytest.approx((1 - share) * 0.1)
    assert made.link == "mast:up"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"edge": [[0.5, np.nan]]}, "edge_scores: row 0 has a NaN"),
        ({"edge": [[-np.inf, -np.inf]]}, "row 0 has a NaN, an infinity, or -inf alone"),
        ({"edge": [0.5]}, "edge_scores must be scores"),
        (
            {"cloud": [[0.1, 0.2, 0.3]]},
            r"edge_scores are of shape \(1, 2\) and cloud_scores of \(1, 3\)",
        ),
        ({"targets": [2]}, "targets must be classes 0 to 1, not 2 to 2"),
        ({"targets": [0, 1]}, "a whole number for each of the 1 samples"),
        ({"targets": [0.5]}, "not float64"),
        ({"measure": "hope"}, "measure must be one of max_probability, margin, entropy"),
        ({"accuracy_loss": -0.1}, "accuracy_loss must not be negative"),
        ({"accuracy_loss": 30}, "accuracy_loss must be at most 1"),
        ({"confidence": 95}, "confidence must be from 0.5 to below 1"),
        ({"requests_per_second": {"moon": 1}}, "no edge site is called 'moon'; known: site1"),
        ({"requests_per_second": float("inf")}, "must be finite"),
        ({"nbytes": -1}, "nbytes must not be negative"),
    ],
)
def test_what_makes_no_sense_is_one_line(changes, words):
    given = {"edge": [[0.5, 0.2]], "cloud": [[0.1, 0.9]], "targets": [0]} | changes
    scores = [given.pop(name) for name in ("edge", "cloud", "targets")]
    with pytest.raises(ValueError, match=words):
        planned(scores, **given)
