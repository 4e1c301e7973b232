"""What is done to vectors beside sums: measured, and added where nothing hides it."""

from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.cluster.cluster_file import Site
from isthmus.compression.fixed_point import FixedPoint
from isthmus.measuring.passes import pass_table
from isthmus.robust import HOW, RobustMean
from isthmus.timing.passes import passes_of, private_seconds
from isthmus.timing.step import predict_step, together_terms


def test_the_time_model_knows_what_a_robust_mean_takes_beside_its_wires():
    table = cluster_of(1, 1, 1, 1, 1, latency_seconds=0.01, bytes_per_second=1e6)
    size, chunk = 1_000_000, 60 * 1024
    plain = isthmus.Workload(size=size, batch_size=1)
    seconds = {}
    for how in (None, *HOW):
        table["site"][0]["passes"] = [
            {"name": f"{each} of 5", "nbytes": [4, 4 * size], "seconds": [1e-6, 0.5]} for each in HOW
        ]
        cluster = isthmus.Cluster(table)
        workload = replace(plain, combine=how and RobustMean(how))
        seconds[how] = together_terms(cluster, 0.0, workload)
    # Chunk by chunk it is hidden behind links, which take 16 s each way.
    chunks = 4 * size / chunk
    for how in ("median", "trimmed"):
        more = seconds[how]["decode"] - seconds[None]["decode"]
        assert more == pytest.approx(0.5 / chunks, rel=0.01)
        assert seconds[how]["links"] == seconds[None]["links"]
    # Krum has all of it come before anything goes: both ways in turn, and its own time is not hidden.
    assert seconds["krum"]["decode"] - seconds[None]["decode"] == pytest.approx(0.5)
    assert seconds["krum"]["links"] == pytest.approx(2 * seconds[None]["links"], rel=0.02)


def test_seals_masks_and_noise_are_counted_as_often_as_they_are_made():
    cluster, size = isthmus.Cluster(cluster_of(1, 1, 1, 1, 1)), 1000
    plain = isthmus.Workload(size=size)
    assert passes_of(cluster, plain, size) == []
    (sealed,) = passes_of(cluster, replace(plain, sealed=True, compressor=isthmus.Int8(256)), size)
    assert (sealed.times, sealed.nbytes) == (4, isthmus.Int8(256).wire_nbytes(size))  # the hub's
    for how, streams in (("repeat", 3), ("reveal", 4)):
        workload = replace(plain, secure=how, compressor=FixedPoint(16, 5))
        codes, masks = passes_of(cluster, workload, size)
        assert codes.waits
        assert (masks.name, masks.times, masks.nbytes) == ("mask 16 bits", streams, 2 * size)
    stages = {
        unit: passes_of(cluster, replace(plain, private=unit), size)[0].stage
        for unit in ("sample", "site")
    }
    assert stages == {"sample": "compute", "site": "encode"}
    names = ["median of 3", "krum of 5", "seal", "mask 8 bits", "fixed point 16 bits", "noise"]
    measured = [pass_table(name, 0.001, 2) for name in names]
    Site(name="a", tier="edge", ranks=1, samples_per_second=1.0, passes=measured)
    # Behind no link all of it counts, and in a step the noise is in computing.
    table = cluster_of(1, 1, latency_seconds=0.0, bytes_per_second=1e15)
    for site in table["site"]:
        site["passes"] = [
            {"name": name, "nbytes": [4000], "seconds": [seconds]}
            for name, seconds in (("seal", 0.003), ("noise", 0.002))
        ]
    fast = isthmus.Cluster(table)
    before = predict_step(fast, [0, 0], plain)
    after = predict_step(fast, [0, 0], replace(plain, sealed=True, private="sample"))
    assert after["encode"] - before["encode"] == pytest.approx(0.003, rel=0.01)
    assert after["compute"] - before["compute"] == pytest.approx(0.002)
    ring = replace(plain, sealed=True, algorithm="ring")
    assert together_terms(fast, 0.0, ring) == together_terms(fast, 0.0, replace(ring, sealed=False))


def test_the_slowest_of_batches_that_are_drawn_takes_longer_than_any_on_average():
    draw = np.random.default_rng(0)
    for ranks, samples in ((4, 64), (2, 200), (16, 30)):
        table = {"site": [{"name": "a", "tier": "cloud", "ranks": ranks, "samples_per_second": 1e3}]}
        cluster, drawn = isthmus.Cluster(table), isthmus.Workload(private="sample")
        found = private_seconds(cluster, drawn, [samples] * ranks)
        played = draw.poisson(samples, (20_000, ranks)).max(axis=1).mean() / 1e3 - samples / 1e3
        assert found == pytest.approx(played, rel=0.06), (ranks, samples)
        assert private_seconds(cluster, isthmus.Workload(), [samples] * ranks) == 0
