"""Regression and images of several channels in the main job, from shards to status."""

import re
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of

import isthmus
from isthmus.errors import ShardError
from isthmus.folders.reading import read_run
from isthmus.folders.status import list_runs, status_table
from isthmus.jobs.train import train
from isthmus.links.agreement import from_root
from isthmus.pages.report import write_report


def lab(comm, folder, sets, model, **training):
    """Pack `sets`, name -> (features, targets), and return the path of a run's settings."""

    def make():
        for name, (features, targets) in sets.items():
            isthmus.pack_shards(
                {"features": features, "targets": targets}, folder / "data" / name, shards=4
            )
        settings = {
            "cluster": {"file": "cluster.toml"},
            "data": {"train": "data/train", "test": "data/test"},
            "model": model,
            "training": {"batch_size": 60, "momentum": 0.9, "seed": 1} | training,
            "run": {"folder": "runs"},
        }
        (folder / "cluster.toml").write_text(tomli_w.dumps(cluster_of(1, 1)))
        (folder / "run.toml").write_text(tomli_w.dumps(settings))

    from_root(comm, make)
    return folder / "run.toml"


def diabetes():
    """Return features of variance 1 and targets of 442 patients: Efron's, or like them."""
    try:
        from sklearn.datasets import load_diabetes
    except ImportError:
        draw = np.random.default_rng(0)
        features = draw.normal(size=(442, 10))
        targets = 150 + features @ draw.normal(0, 25, 10) + draw.normal(0, 54, 442)
    else:
        features, targets = load_diabetes(return_X_y=True)
    features = (features / features.std(axis=0)).astype("f4")
    return features, targets


@pytest.mark.ranks(2)
def test_a_perceptron_without_layers_explains_what_least_squares_do(comm, shared_folder):
    features, targets = diabetes()
    parts = {"train": slice(0, 342), "test": slice(342, None)}
    sets = {name: (features[rows], targets[rows]) for name, rows in parts.items()}
    model = {"kind": "perceptron", "inputs": 10, "hidden": [], "loss": "mse"}
    path = lab(comm, shared_folder, sets, model, epochs=30, learning_rate=0.01, schedule="linear")
    lines = []
    summary = train(comm, path, lambda line, passing=False: lines.append(line))

    with_ones = {name: np.column_stack([part, np.ones(len(part))]) for name, (part, _) in sets.items()}
    best = np.linalg.lstsq(with_ones["train"], sets["train"][1], rcond=None)[0]
    of_test = sets["test"][1]
    error = with_ones["test"] @ best - of_test
    expected = 1 - (error**2).sum() / ((of_test - of_test.mean()) ** 2).sum()
    assert list(summary["metrics"]) == ["loss", "mae", "r2"]
    assert summary["metrics"]["r2"] == pytest.approx(expected, abs=0.01)
    assert summary["metrics"]["loss"] == pytest.approx((error**2).mean(), rel=0.02)
    assert summary["metrics"]["mae"] == pytest.approx(np.abs(error).mean(), rel=0.02)
    assert (summary["loss"], summary["accuracy"]) == (summary["metrics"]["loss"], None)

    def read():
        page = write_report(summary["folder"]).read_text()
        assert f"{summary['metrics']['r2']:.4f}" in page
        for title in ("Test r2 by training seconds", "Test mae by training seconds"):
            assert title in page
        assert "accuracy" not in page.split("<h2")[0]
        assert read_run(summary["folder"]).evaluations[-1]["metrics"] == summary["metrics"]
        (told,) = list_runs(shared_folder / "runs")
        assert told["metrics"] == summary["metrics"]
        assert status_table([told], "runs")
        assert re.search(r"test loss \d+\.\d+, mae \d+\.\d+, r2 0\.\d+", " ".join(lines))

    from_root(comm, read)


@pytest.mark.ranks(2)
def test_colours_are_learnt_from_images_with_their_channels_last(comm, shared_folder):
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, 300)
    images = draw.integers(0, 100, (300, 3, 8, 8), "u1")  # the class is the channel that is bright
    images[np.arange(300), targets] += 120
    last = np.moveaxis(images, 1, -1)
    sets = {"train": (last[:240], targets[:240]), "test": (last[240:], targets[240:])}
    model = {"kind": "convolutional", "inputs": [3, 8, 8], "channels": [4], "classes": 3}
    path = lab(comm, shared_folder, sets, model, epochs=4, learning_rate=0.1)
    assert train(comm, path, quiet)["accuracy"] > 0.95


def quiet(line, passing=False):
    pass


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("shape", "targets", "model", "words"),
    [
        ((4,), [0, 1, 2, 3], {}, "targets 'targets' go beyond 0 ... 2: one is 3; set classes"),
        ((4,), [0, 1, 2, -1], {}, "one is -1"),
        ((4,), [0.0, 1.0, 2.0, 1.5], {}, "must be a whole number a sample, not float64"),
        ((4,), [[0, 1]] * 4, {}, r"of shape \[2\]; pack class numbers"),
        ((4,), [[0, 1]] * 4, {"loss": "mse"}, r"must be 1 number a sample, not of shape \[2\]"),
        ((4,), [1, 2, np.inf, 3], {"loss": "mse"}, "hold a NaN or an infinity"),
        ((5,), [0, 1, 2, 0], {}, "have 5 numbers a sample, the model takes 4"),
        (
            (8, 3, 8),
            [0, 1, 2, 0],
            {"kind": "convolutional", "inputs": [3, 8, 8], "channels": [4]},
            r"are \[8, 3, 8\] a sample, the model takes \[3, 8, 8\] \(channels, height, width\) or",
        ),
    ],
)
def test_data_that_does_not_fit_the_model_is_told_before_the_first_step(
    comm, shared_folder, shape, targets, model, words
):
    data = np.ones((4, *shape), "f4"), np.array(targets)
    inputs = {"kind": "perceptron", "inputs": 4} if "kind" not in model else {}
    classes = {"classes": 3} if "loss" not in model else {}
    path = lab(comm, shared_folder, dict.fromkeys(("train", "test"), data), inputs | classes | model)
    with pytest.raises(ShardError, match=words) as caught:
        train(comm, path, quiet)
    assert str(caught.value).startswith(str(Path(path).parent / "data"))
    assert not (shared_folder / "runs").exists() or not list((shared_folder / "runs").glob("*/run.json"))
