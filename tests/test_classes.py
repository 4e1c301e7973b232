"""Sites whose shards hold other classes: how far they are apart, and what rounds become of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import isthmus
from isthmus.jobs.plan import make_plan
from isthmus.jobs.settings import RunSettings
from isthmus.shards.classes import UNLIKE, class_distance

ROOT = Path(__file__).resolve().parents[1]


def packed(folder, targets, shards):
    """Pack images of zeros with these classes, in their order."""
    images = np.zeros((len(targets), 28, 28), np.uint8)
    return isthmus.pack_shards({"features": images, "targets": np.array(targets)}, folder, shards)


@pytest.mark.parametrize(
    ("targets", "sites", "distance"),
    [
        ([0, 1, 0, 1, 0, 1, 0, 1], [0, 0, 1, 1], 0.0),
        ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1], 0.5),
        ([0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 1], 0.0),
        ([0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1], 0.375),  # 0.75 of 0.25, and 0.25 of 0.75
        ([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3], 0.75),
    ],
)
def test_the_distance_of_sites_is_the_share_of_samples_that_had_to_change_their_class(
    tmp_path, targets, sites, distance
):
    manifest = packed(tmp_path / "set", targets, 4).manifest
    assert class_distance(manifest, sites) == pytest.approx(distance, abs=1e-15)
    bare = [shard.model_copy(update={"samples_of_class": None}) for shard in manifest.shards]
    assert class_distance(manifest.model_copy(update={"shards": tuple(bare)}), sites) is None


def test_random_shares_of_a_few_hundred_samples_count_as_alike(tmp_path):
    draw = np.random.default_rng(0)
    manifest = packed(tmp_path / "set", draw.integers(0, 10, 4000), 20).manifest
    assert 0 < class_distance(manifest, range(20)) < UNLIKE


def test_rounds_are_short_where_sites_hold_other_classes_and_the_plan_says_why(tmp_path):
    """The same shards, sorted by class and not, on a link that is slow enough for the longest rounds."""
    text = (ROOT / "experiments/fashion_two_sites.toml").read_text()
    text = text.replace('"two_sites.toml"', '"slow.toml"')
    slow = isthmus.Cluster.from_toml(ROOT / "experiments/two_sites.toml").to_table()
    for link in slow["link"]:
        link["bytes_per_second"] = 1e4
    isthmus.Cluster(slow).to_toml(tmp_path / "slow.toml")
    kinds = np.arange(2000) % 10
    for name, targets in (("mixed", kinds), ("sorted", np.sort(kinds))):
        packed(tmp_path / name, targets, 20)
        path = tmp_path / f"{name}.toml"
        path.write_text(
            'strategy = { kind = "local_steps", every = "auto" }\n'
            + text.replace("../data/fashion_mnist/train", name)
        )
    (_, _, mixed), (plan, cluster, by_class) = (
        make_plan(tmp_path / f"{name}.toml") for name in ("mixed", "sorted")
    )
    assert mixed[0].startswith("strategy: every = 64: ")
    assert "64 steps at most; 0 % of the samples are of other classes" in mixed[0]
    assert by_class[0].startswith("strategy: every = 4: ")
    assert "4 steps at most where sites hold other classes; " in by_class[0]
    every_four = RunSettings.from_toml(tmp_path / "sorted.toml").with_strategy({"every": 4}).workload()
    again = isthmus.plan_shards(cluster, [100] * 20, every_four)
    assert plan.terms == again.terms
    longer = isthmus.plan_shards(cluster, [100] * 20, replace(every_four, exchanges_per_step=1 / 64))
    assert plan.step_seconds > longer.step_seconds
