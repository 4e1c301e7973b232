"""Scaling: the same bits on all ranks and for every placement; what is not learnt is told."""

import numpy as np
import pytest
from clusters import cluster_of
from test_cli import RUN, with_changes, write

import isthmus
from isthmus.cli import main as cli
from isthmus.errors import SettingsError
from isthmus.jobs.resuming import identity_of
from isthmus.jobs.scaling import commonest_share, no_better_than_one_answer, scale_of
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.train import train
from isthmus.links.agreement import from_root
from isthmus.links.world import all_gather
from isthmus.shards.batches import LocalSamples
from isthmus.shards.moving import move_shards
from isthmus.shards.scale import Scale, kept_axis
from isthmus.shards.scaling import gather_moments
from isthmus.training.identity import difference_in_words


class Placed:
    def __init__(self, *shards_of_rank):
        self.shards_of_rank = shards_of_rank


def table(samples=203):
    """Columns far from 0, of very different width, one of them constant."""
    draw = np.random.default_rng(3)
    columns = [1e9 + draw.normal(size=samples), 1e-3 * draw.normal(size=samples), np.full(samples, 7.1)]
    return np.column_stack(columns), draw.integers(0, 3, samples)


@pytest.mark.ranks(3)
def test_the_scale_is_exact_and_has_the_same_bits_for_every_placement(comm, shared_folder):
    features, targets = table()
    arrays = {"features": features, "targets": targets, "images": np.zeros((203, 3, 2, 2), "f4")}
    from_root(comm, lambda: isthmus.pack_shards(arrays, shared_folder / "set", 9) and None)
    shards, found = isthmus.ShardSet.open(shared_folder / "set"), []
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 2))) as tiers:
        everything = Placed((0, 1, 2), (3, 4, 5), (6, 7, 8)), Placed((8, 1), (), (5, 7, 0, 2, 3, 4, 6))
        for plan in everything:
            local = isthmus.scatter_shards(tiers, shards, plan)
            moments = gather_moments(tiers.world, local)
            found.append(moments.mean.tobytes() + moments.std.tobytes())
            share = commonest_share(
                tiers.world, LocalSamples({"f": local.arrays["features"], "t": local.arrays["targets"]})
            )
            assert share == np.bincount(targets).max() / 203
        np.testing.assert_allclose(moments.mean, features.mean(axis=0), rtol=1e-14, atol=1e-18)
        np.testing.assert_allclose(moments.std[:2], features.std(axis=0)[:2], rtol=1e-10)
        local.scale = moments.scale()
        local = move_shards(
            tiers, local, np.array([2, 0, 2, 2, 2, 2, 2, 2, 0]), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
        )
        batch = np.concatenate([features for features, *_ in local.batches(50)])
        assert batch.dtype == np.float32
        assert np.abs(batch[:, :2]).max() < 5
        assert np.abs(batch[:, 2]).max() < 1e-12  # it is constant
    everyone = [each.tobytes() for each in all_gather(comm, np.frombuffer(b"".join(found), "u1"))]
    assert len({*everyone, found[0] + found[0], found[1] + found[1]}) == 1


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((), None), ((5,), 0), ((28, 28), None), ((3, 32, 32), 0), ((32, 32, 3), 2), ((9, 32, 32), 0)],
)
def test_columns_and_channels_are_scaled_apart_and_pixels_alike(shape, axis):
    assert kept_axis(shape) == axis
    values = np.random.default_rng(0).normal(3, 2, (50, *shape)).astype("f4")
    columns = 1 if axis is None else shape[axis]
    scale = Scale.of(np.arange(1.0, columns + 1), np.full(columns, 2.0), shape)
    scaled = np.moveaxis(scale.apply(values), -1 if axis is None else axis + 1, -1)
    given = np.moveaxis(values, -1 if axis is None else axis + 1, -1)
    np.testing.assert_array_equal(
        scaled, (given - np.arange(1, columns + 1, dtype="f4")) / np.float32(2)
    ) if axis is not None else np.testing.assert_array_equal(scaled, (given - np.float32(1)) / 2)


@pytest.mark.parametrize("dtype", ["u1", "i8", "f2", "f8"])
def test_scaled_features_are_float32_whatever_they_were(dtype):
    scaled = Scale.of(3, 2, (4,)).apply(np.arange(8).reshape(2, 4).astype(dtype))
    np.testing.assert_array_equal(scaled, ((np.arange(8) - 3) / 2).reshape(2, 4).astype("f4"))
    assert scaled.dtype == np.float32


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [([1, 2], 1, "mean has 2 numbers"), (0, [1, 1, 0], "std must be positive"), (1e60, 1, "finite")],
)
def test_a_scale_that_does_not_fit_is_refused(mean, std, message):
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=message):
        Scale.of(mean, std, (3,))


def settings_with(tmp_path, **data):
    write(tmp_path, run=with_changes(RUN, {f"data.{key}": value for key, value in data.items()}))
    return RunSettings.from_toml(tmp_path / "run.toml")


@pytest.mark.ranks(1)
def test_what_is_scaled_and_what_is_said(comm, tmp_path):
    features, targets = table()
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1))) as tiers:

        def scaled(values, **data):
            isthmus.pack_shards({"x": values, "y": targets}, tmp_path / "set", 5, overwrite=True)
            local = isthmus.scatter_shards(
                tiers, isthmus.ShardSet.open(tmp_path / "set"), Placed(range(5))
            )
            told = []
            return scale_of(tiers, settings_with(tmp_path, **data), local, told.append), told

        scale, told = scaled(features)
        assert scale is not None
        assert not told
        scale, (line,) = scaled(features, scale="none")
        assert scale is None
        assert "lie 1e+09 from 0" in line
        assert 'scale = "auto", or scale = { mean = 333300000.0' in line
        assert scaled(features[:, 1:2], scale="none") == (None, [])
        _, (line,) = scaled((100 * features[:, 1:] ** 0).astype("i4"))
        assert "these are integers" in line
        assert '"auto"' not in line
        assert scaled(np.full((203, 4), 200, "u1")) == (None, [])
        scale, told = scaled(np.full((203, 4), 200, "u1"), scale={"mean": 100.0, "std": 50.0})
        assert (scale.apply(np.full((1, 4), 200, "u1")) == 2).all()
        assert not told
        holed = features.copy()
        holed[5, 1] = np.nan
        scale, _ = scaled(holed)
        assert np.isfinite(scale.mean).all()
        with pytest.raises(SettingsError, match=r"data.scale: mean has 2 numbers"):
            scaled(features, scale={"mean": [1.0, 2.0], "std": 1.0})


@pytest.mark.parametrize(
    ("value", "words"),
    [("most", "auto"), ({"mean": 1.0}, "std"), ({"mean": 0.0, "std": 0.0}, "std"), (3, "scale")],
)
def test_a_wrong_scale_is_refused_with_the_settings(tmp_path, value, words):
    with pytest.raises(SettingsError, match=words) as caught:
        settings_with(tmp_path, scale=value)
    assert "data.scale" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_scale_is_another_run(tmp_path):
    class Plan:
        hash = "x"

    tables = []
    for scale in ("auto", {"mean": 1.0, "std": 2.0}, {"mean": 1.0, "std": 2.0}):
        settings = settings_with(tmp_path, scale=scale)
        assert RunSettings.from_json(settings.to_json(), "here") == settings
        tables.append(identity_of(settings, isthmus.Cluster(cluster_of(1)), Plan, {}))
    assert difference_in_words(tables[1], tables[2], "runs/a") is None
    told = difference_in_words(tables[0], tables[1], "runs/a")
    assert told.startswith('data.scale = {"mean": 1.0, "std": 2.0}, was "auto"')


@pytest.mark.parametrize(
    ("metrics", "share", "words"),
    [
        ({"loss": 1.0, "accuracy": 0.3}, 0.3, "accuracy 0.3000 is no better than the commonest class"),
        ({"loss": 1.0, "accuracy": 0.31}, 0.3, None),
        ({"loss": 1.0, "accuracy": 0.1}, None, None),
        ({"loss": 1.0, "mae": 1.0, "r2": -0.01}, None, "r2 -0.0100 is no better than the targets' mean"),
        ({"loss": 1.0, "mae": 1.0, "r2": 0.1}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_a_run_that_has_learnt_nothing_is_told_so(metrics, share, words):
    told = no_better_than_one_answer(metrics, share)
    assert (told is None) == (words is None)
    assert words is None or words in told


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_a_table_in_its_own_units_is_learnt_with_the_default_and_not_without_scaling(
    comm, shared_folder
):
    """Columns such as those of scikit-learn's breast_cancer: from 1e-3 to 1e3 wide."""
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 2, 400)
    widths = 10.0 ** np.linspace(-3, 3, 16)
    features = (draw.normal(size=(400, 16)) + targets[:, None] + 3) * widths

    def pack():
        for part, rows in (("train", slice(0, 300)), ("test", slice(300, 400))):
            file = shared_folder / f"{part}.csv"
            np.savetxt(file, np.column_stack([features[rows], targets[rows]]), "%.9g", ",")
            words = ["pack", str(shared_folder / "data" / part), "-a", f"x={file}", "-a", f"y={file}:17"]
            cli.app(words, standalone_mode=False)

    def trained(scale):
        """Train by settings with this scale; return the summary, and what this rank told."""
        changes = {"model.classes": 2, "training.learning_rate": 0.1, "data.scale": scale}
        run = with_changes(RUN, changes)
        from_root(comm, lambda: write(shared_folder, cluster=cluster_of(1, 1), run=run))
        told = []
        path = shared_folder / "run.toml"
        return train(comm, path, lambda line, passing=False: told.append(line)), "\n".join(told)

    from_root(comm, pack)
    summary, told = trained(None)
    assert "nothing was learnt" not in told
    model, _ = isthmus.load_model(summary["folder"])
    right = model.predict(features[300:].astype("f4")) == targets[300:]
    assert right.mean() == summary["accuracy"] > 0.8
    _, told = trained("none")
    assert told.count("nothing was learnt") == told.count("and scaling is off") == (comm.rank == 0)
