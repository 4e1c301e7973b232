"""Models: gradients against finite differences, and what holds of every batch."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.models import MODELS, Convolutional, Perceptron

SMALL = [
    Perceptron(12, (), 3),
    Perceptron(12, (7,), 3),
    Perceptron(12, (5, 4), 3),
    Convolutional(8, 9, (2,), 3),
    Convolutional(12, 10, (2, 3), 4),
    Perceptron(12, (5,), loss="mse", outputs=2),
    Convolutional(8, 9, (2,), loss="mse"),
    Convolutional(channels=(2,), classes=3, inputs=(3, 8, 9)),
]
every_model = pytest.mark.parametrize("model", SMALL, ids=repr)


def batch_of(model, size, seed=0):
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(size, *model.inputs_shape))
    if model.classes is None:
        return features, draw.normal(size=(size, model.outputs))
    return features, draw.integers(0, model.classes, size)


@every_model
@given(seed=st.integers(0, 20))
@settings(deadline=None, max_examples=8)
def test_the_gradient_is_the_slope_of_the_loss(model, seed):
    """Central differences along a random direction, in float64."""
    features, targets = batch_of(model, 5, seed)
    draw = np.random.default_rng(seed + 100)
    parameters = model.initial(seed).astype("f8") + 0.1 * draw.normal(size=model.size)
    direction = draw.normal(size=model.size)
    direction /= np.linalg.norm(direction)
    gradient, scratch = np.full((2, model.size), np.nan)
    model.gradient(parameters, features, targets, gradient)
    step = 1e-6
    above = model.gradient(parameters + step * direction, features, targets, scratch)
    below = model.gradient(parameters - step * direction, features, targets, scratch)
    assert (above - below) / (2 * step) == pytest.approx(gradient @ direction, rel=1e-5, abs=1e-6)


@every_model
def test_every_single_entry_of_the_gradient_is_right(model):
    features, targets = batch_of(model, 3)
    parameters = model.initial(1).astype("f8")
    gradient, scratch = np.full((2, model.size), np.nan)
    model.gradient(parameters, features, targets, gradient)
    numeric = np.empty(model.size)
    for entry in range(model.size):
        moved = parameters.copy()
        moved[entry] += 1e-6
        above = model.gradient(moved, features, targets, scratch)
        moved[entry] -= 2e-6
        numeric[entry] = (above - model.gradient(moved, features, targets, scratch)) / 2e-6
    np.testing.assert_allclose(gradient, numeric, atol=1e-7, rtol=1e-6)


@every_model
def test_the_gradient_of_a_batch_is_the_sum_of_its_parts(model):
    features, targets = batch_of(model, 9)
    parameters = model.initial(3).astype("f8")
    whole, part = np.empty((2, model.size))
    loss = model.gradient(parameters, features, targets, whole)
    total, losses = np.zeros(model.size), 0.0
    for piece in (slice(0, 0), slice(0, 4), slice(4, 9)):
        losses += model.gradient(parameters, features[piece], targets[piece], part)
        total += part
    np.testing.assert_allclose(total, whole, rtol=1e-9, atol=1e-12)
    assert losses == pytest.approx(loss)


@every_model
def test_an_empty_batch_gives_zeros(model):
    gradient = np.full(model.size, np.nan, "f4")
    features, targets = batch_of(model, 0)
    assert model.gradient(model.initial(0), features, targets, gradient) == 0.0
    assert not gradient.any()


@every_model
def test_the_flat_vector_is_cut_without_gaps(model):
    vector = np.zeros(model.size, "f4")
    for view in model.views(vector).values():
        view += 1
    np.testing.assert_array_equal(vector, 1)
    assert {name: view.shape for name, view in model.views(vector).items()} == model.shapes
    assert model.initial(5).tobytes() == model.initial(5).tobytes()
    assert model.initial(5).tobytes() != model.initial(6).tobytes()


def test_bytes_are_brought_to_plus_minus_one_half():
    model = Perceptron(2, (), 2)
    images = np.array([[0, 255], [255, 0]], "u1")
    identity = np.array([1, 0, 0, 1, 0, 0], "f4")
    np.testing.assert_allclose(model.scores(identity, images), [[-0.5, 0.5], [0.5, -0.5]], atol=1e-7)


def test_convolutions_of_several_channels_are_those_of_scipy():
    model = Convolutional(channels=(2,), classes=4, inputs=(3, 6, 8))
    draw = np.random.default_rng(1)
    image, parameters = draw.normal(size=(3, 6, 8)), draw.normal(size=model.size)
    weights = model.views(parameters)
    kernel, bias = weights["convolution0.weight"], weights["convolution0.bias"]
    planes = [
        sum(scipy.signal.correlate(image[c], kernel[:, :, c, k], mode="valid") for c in range(3))
        for k in range(2)
    ]
    squares = np.maximum(np.stack(planes, axis=-1) + bias, 0).reshape(2, 2, 3, 2, 2)
    expected = squares.max(axis=(1, 3)).reshape(-1) @ weights["linear.weight"] + weights["linear.bias"]
    np.testing.assert_allclose(model.scores(parameters, image[None])[0], expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_channels_may_stand_first_or_last_and_flat_ones_stand_first(dtype):
    model = Convolutional(inputs=(3, 10, 12), channels=(2,))
    first = np.random.default_rng(0).integers(0, 255, (5, 3, 10, 12)).astype(dtype)
    parameters = model.initial(0)
    expected = model.scores(parameters, first)
    for other in (np.moveaxis(first, 1, -1), first.reshape(5, -1)):
        np.testing.assert_array_equal(model.scores(parameters, other), expected)
    with pytest.raises(ValueError, match=r"are \[10, 3, 12\] a sample, the model takes \[3, 10, 12\]"):
        model.scores(parameters, first.swapaxes(1, 2))
    square = Convolutional(inputs=(6, 6, 6), channels=(2,))
    assert square.complaint((6, 6, 6)) is None
    gray, flat = Convolutional(8, 9, (2,)), np.arange(72.0).reshape(1, 72)
    np.testing.assert_array_equal(
        gray.scores(gray.initial(0), flat), gray.scores(gray.initial(0), flat.reshape(1, 8, 9, 1))
    )


@every_model
def test_scores_of_no_samples_are_none(model):
    assert model.scores(model.initial(0), batch_of(model, 0)[0]).shape == (0, model.outputs)


def test_sides_of_an_image_are_told_once():
    assert Convolutional(inputs=[3, 8, 9], channels=[2]).height == 8
    assert Convolutional(8, 9, (3,)).inputs == (1, 8, 9)
    assert replace(Convolutional(8, 9, (2,)), channels=(3,)) == Convolutional(8, 9, (3,))
    for arguments, words in (
        ({"height": 8, "inputs": (3, 9, 9)}, "height = 8 is not that of inputs"),
        ({"inputs": (9, 9)}, r"inputs must be \[channels, height, width\], not \(9, 9\)"),
        ({"inputs": (0, 9, 9)}, "a channel at least"),
        ({"inputs": 9}, "inputs must be"),
        ({"height": 8.5}, "height must be a whole number"),
        ({"inputs": (3, -8, 9)}, "leave nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            Convolutional(**arguments)


@pytest.mark.parametrize("model", [kind() for kind in MODELS.values()], ids=repr)
def test_a_few_steps_lower_the_loss_on_images(model):
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 10, 40)
    images = (draw.integers(0, 60, (40, 28, 28)) + 15 * targets[:, None, None]).astype("u1")
    parameters, gradient = model.initial(0), np.empty(model.size, "f4")
    losses = []
    for _ in range(15):
        losses.append(model.gradient(parameters, images, targets, gradient))
        parameters -= np.float32(0.002) * gradient
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Perceptron(784, (0,), 10), "at least 1 wide"),
        (lambda: Convolutional(8, 8, (4, 4, 4)), "leave nothing"),
        (lambda: Perceptron(3).views(np.zeros(5, "f4")), "parameters"),
        (
            lambda: Perceptron(2, (), 2).gradient(
                np.zeros(6, "f4"), np.zeros((2, 2)), np.zeros(3, int), np.zeros(6, "f4")
            ),
            "2 features, but 3 targets",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
