"""Losses: what they make small, and the numbers by which models are judged."""

import itertools
import math
import re
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.models import Convolutional, Perceptron
from isthmus.models.losses import LOSSES

MSE, CROSS_ENTROPY = LOSSES["mse"](), LOSSES["cross_entropy"]()


def batch_of(name, samples, outputs, seed=0, mean=0.0):
    """Return scores, and targets of classes or of numbers about `mean`."""
    draw = np.random.default_rng(seed)
    targets = draw.normal(mean, 1, (samples, outputs))
    scores = (targets + draw.normal(0, 0.3, targets.shape)).astype("f8")
    return scores, (draw.integers(0, outputs, samples) if name == "cross_entropy" else targets)


@pytest.mark.parametrize("name", LOSSES)
@given(cuts=st.lists(st.integers(0, 20), max_size=4), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_the_metrics_of_all_samples_are_those_of_their_parts_together(name, cuts, seed):
    loss, (scores, targets) = LOSSES[name](), batch_of(name, 20, 3, seed, mean=5.0)
    bounds = [0, *sorted(cuts), 20]
    parts = [
        loss.sums(scores[first:last], targets[first:last]) for first, last in itertools.pairwise(bounds)
    ]
    found, whole = loss.metrics_of(reduce(loss.add, parts)), loss.metrics_of(loss.sums(scores, targets))
    assert tuple(found) == loss.metrics
    assert loss.metrics[0] == "loss"
    assert found == pytest.approx(whole, rel=1e-12)
    value, _ = loss.value_and_slope(scores, targets)
    assert found["loss"] == pytest.approx(value / 20, rel=1e-12)


def test_a_squared_error_and_what_it_explains_are_as_they_are_defined():
    scores, targets = batch_of("mse", 50, 2, mean=3.0)
    metrics = MSE.metrics_of(MSE.sums(scores, targets))
    error = scores - targets
    residual = (error**2).sum() / ((targets - targets.mean(axis=0)) ** 2).sum()
    expected = {"loss": (error**2).mean(), "mae": np.abs(error).mean(), "r2": 1 - residual}
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_what_is_explained_is_right_far_from_zero_and_in_parts():
    """Sums of the targets' own squares would lose the variance here: 1 beside 1e16."""
    scores, targets = batch_of("mse", 1000, 1, mean=1e8)
    parts = [MSE.sums(scores[k : k + 7], targets[k : k + 7]) for k in range(0, 1000, 7)]
    metrics = MSE.metrics_of(reduce(MSE.add, parts))
    about = ((targets - targets.mean()) ** 2).sum()
    assert metrics["r2"] == pytest.approx(1 - ((scores - targets) ** 2).sum() / about, rel=1e-6)


def test_targets_that_do_not_vary_leave_nothing_to_explain():
    metrics = MSE.metrics_of(MSE.sums(np.array([[1.0], [3.0]]), np.array([2.0, 2.0])))
    assert (metrics["loss"], metrics["mae"]) == (1.0, 1.0)
    assert math.isnan(metrics["r2"])


@pytest.mark.parametrize("name", LOSSES)
def test_the_slope_is_that_of_the_summed_loss(name):
    loss, (scores, targets) = LOSSES[name](), batch_of(name, 4, 3)
    _, slope = loss.value_and_slope(scores, targets)
    for place in np.ndindex(scores.shape):
        up, down = scores.copy(), scores.copy()
        up[place] += 1e-6
        down[place] -= 1e-6
        numeric = loss.value_and_slope(up, targets)[0] - loss.value_and_slope(down, targets)[0]
        assert slope[place] == pytest.approx(numeric / 2e-6, abs=1e-6)


def test_better_is_more_right_answers_or_less_error_and_never_what_is_not_a_number():
    def right(accuracy, loss):
        return {"loss": loss, "accuracy": accuracy}

    assert CROSS_ENTROPY.better(right(0.9, 0.5), right(0.8, 0.4))
    assert not CROSS_ENTROPY.better(right(0.8, 0.4), right(0.9, 0.5))
    assert CROSS_ENTROPY.better(right(0.9, 0.4), right(0.9, 0.5))
    assert not CROSS_ENTROPY.better(right(0.9, math.nan), right(0.1, 2.0))
    assert CROSS_ENTROPY.better(right(0.1, 2.0), right(0.9, math.nan))
    assert MSE.better({"loss": 1.0}, {"loss": 2.0})
    assert MSE.better({"loss": 1.0}, {"loss": math.nan})
    assert not MSE.better({"loss": math.nan}, {"loss": 1.0})
    assert not MSE.better({"loss": 1.0}, {"loss": 1.0})


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "words"),
    [
        (CROSS_ENTROPY, 3, [0, 2, 1], None),
        (CROSS_ENTROPY, 3, [0, 3], "go beyond 0 ... 2: one is 3; set classes"),
        (CROSS_ENTROPY, 3, [-1, 3], "one is -1"),
        (CROSS_ENTROPY, 3, [0.0, 1.0], "must be a whole number a sample, not float64"),
        (CROSS_ENTROPY, 3, [[0, 1]], r"of shape \[2\]"),
        (MSE, 1, [0.5, 2], None),
        (MSE, 1, [[3], [4]], None),
        (MSE, 2, [[3, 2.5]], None),
        (MSE, 2, [3.0, 4.0], "must be 2 numbers a sample"),
        (MSE, 1, [[3.0, 4.0]], r"must be 1 number a sample, not of shape \[2\]; set outputs"),
        (MSE, 1, [True], "are of dtype bool"),
        (MSE, 1, [1.0, math.nan], "hold a NaN or an infinity"),
    ],
)
def test_targets_that_do_not_fit_are_told_in_words(loss, outputs, targets, words):
    found = loss.complaint(np.array(targets), outputs)
    if words is None:
        assert found is None
    else:
        assert re.search(words, found)


def test_a_model_takes_its_loss_by_name_and_its_outputs_by_what_they_are():
    assert (Perceptron(4).outputs, Perceptron(4).classes) == (10, 10)
    model = Perceptron(4, (), loss="mse")
    assert (model.outputs, model.classes, model.loss) == (1, None, MSE)
    assert Convolutional(8, 8, (2,), loss="mse", outputs=2).shapes["linear.bias"] == (2,)
    assert Perceptron(4, (), 3) == Perceptron(4, (), outputs=3)
    for wrong, words in (
        ({"loss": "huber"}, "loss must be one of cross_entropy, mse, not 'huber'"),
        ({"loss": "mse", "classes": 3}, "how many outputs"),
        ({"classes": 3, "outputs": 2}, "3 classes are as many outputs, not 2"),
        ({"loss": "mse", "outputs": 0}, "at least 1 wide"),
        ({"classes": "3"}, "classes must be a whole number"),
    ):
        with pytest.raises(ValueError, match=words):
            Perceptron(4, (), **wrong)
