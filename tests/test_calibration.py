"""Calibration: what was planted is found, read back and used, and not believed outside its range."""

import math
import warnings

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given
from hypothesis import strategies as st

import isthmus
from isthmus.cluster.measured import CalibrationRangeWarning, SizeTable
from isthmus.errors import ClusterError
from isthmus.measuring.calibrate import measure_ways
from isthmus.measuring.computing import coding_seconds as measured_coding_seconds
from isthmus.measuring.messages import NBYTES, allreduce_seconds, way_seconds
from isthmus.measuring.mpi_algorithm import OPEN_MPI, allreduce_algorithm
from isthmus.registry import ALGORITHMS
from isthmus.timing.fits import fit_table
from isthmus.timing.simulation import simulate
from isthmus.timing.stages import coding_seconds, hierarchical_stages
from isthmus.timing.time_model import (
    Workload,
    chain_seconds,
    fair_staging_seconds,
    local_steps_seconds,
    narrow_link_bound_seconds,
    pipelined_seconds,
    staging_seconds,
    waiting_seconds,
)

SIZES = (4, 1024, 61_440, 983_040)
PLANTED = st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-6, 1.0)), min_size=1, max_size=8)


def planted(steps):
    """Return sizes and seconds of a table that never falls."""
    return np.cumsum([size for size, _ in steps]), np.cumsum([seconds for _, seconds in steps])


@given(PLANTED)
def test_exact_times_give_back_the_table(steps):
    nbytes, seconds = planted(steps)
    fit = fit_table(np.repeat(nbytes, 3), np.repeat(seconds, 3))
    np.testing.assert_array_equal(fit.nbytes, nbytes)
    for found in (fit.seconds, fit.low_seconds, fit.high_seconds):
        np.testing.assert_allclose(found, seconds, rtol=1e-6)


@given(PLANTED, st.integers(1, 9), st.integers(0, 999))
def test_a_table_is_no_further_off_than_its_samples(steps, samples, seed):
    nbytes, seconds = planted(steps)
    noise = np.random.default_rng(seed).uniform(0.9, 1.1, (samples, seconds.size))
    fit = fit_table(np.tile(nbytes, samples), (seconds * noise).ravel())
    assert np.abs(fit.seconds / seconds - 1).max() <= 0.1 + 1e-6


@given(st.lists(st.tuples(st.sampled_from(SIZES), st.floats(1e-9, 1e3)), min_size=1, max_size=30))
def test_no_latency_and_no_rate_is_negative_whatever_was_measured(samples):
    fit = fit_table(*zip(*samples))
    assert fit.seconds[0] > 0
    assert (np.diff(fit.seconds) >= -1e-12 * fit.seconds[1:]).all()
    assert (fit.low_seconds <= fit.seconds).all()
    assert (fit.seconds <= fit.high_seconds).all()


def test_the_truth_is_within_the_interval_99_times_in_100():
    draw, missed, asked = np.random.default_rng(1), 0, 0
    for samples in (8, 12, 20, 40) * 20:
        nbytes, seconds = planted(list(zip(draw.integers(1, 10**6, 6), draw.uniform(1e-4, 1e-2, 6))))
        noisy = seconds * np.exp(draw.normal(0, 0.2, (samples, 6)))  # its median is the planted one
        fit = fit_table(np.tile(nbytes, samples), noisy.ravel())
        missed += np.sum((fit.low_seconds > seconds) | (seconds > fit.high_seconds))
        asked += 6
        if samples == 40:
            assert (fit.high_seconds / fit.low_seconds).max() < 1.6  # and it is no wide one
    assert missed <= 0.02 * asked


def flat(factor):
    return {"nbytes": SIZES, "factors": [factor] * 4, "low": [factor] * 4, "high": [factor] * 4}


def calibrated(**factors):
    """Two sites of two ranks: tables with which a way takes `factors` times what its rate says."""
    table = cluster_of(2, 2, bytes_per_second=1e6)
    for link in table["link"]:
        link |= {name: flat(factors[name]) for name in ("streams", "messages") if name in factors}
    for site in table["site"] if "network" in factors else ():
        site["network"] = site["network"] | {"messages": flat(factors["network"])}
    return table


def seconds_of(table, algorithm, size=100_000):
    return isthmus.predict_allreduce(isthmus.Cluster(table), size, algorithm=algorithm).seconds


@pytest.mark.parametrize("algorithm", ["hierarchical", "tree", "ring", "recursive"])
def test_what_a_link_took_is_what_an_allreduce_will_take(algorithm):
    """Twice as long by size: twice the seconds. The sites' networks take next to nothing."""
    plain = seconds_of(calibrated(), algorithm)
    assert seconds_of(calibrated(streams=2.0), algorithm) == pytest.approx(2 * plain, rel=0.03)
    assert seconds_of(calibrated(streams=1.0), algorithm) == pytest.approx(plain, rel=1e-9)
    assert seconds_of(calibrated(network=2.0), algorithm) >= plain


def test_a_table_is_a_line_from_size_to_size_and_follows_the_link_s_rate():
    table = SizeTable(nbytes=(100, 1000), factors=(2, 1), low=(1, 1), high=(3, 3))

    def formula(sizes):
        return 0.5 + sizes / 1000

    assert table.seconds(100, formula) == pytest.approx(1.2)
    assert table.seconds(1000, formula) == pytest.approx(1.5)
    assert table.seconds(550, formula) == pytest.approx(1.35)
    link = {"streams": flat(1.25), "latency_seconds": 0.0}
    for rate in (1e6, 2e6):
        cluster = isthmus.Cluster(cluster_of(1, 1, bytes_per_second=rate, **link))
        assert cluster.links[0].line(61_440) == (0.0, pytest.approx(rate / 1.25))


def test_sizes_that_were_not_measured_are_warned_of_once():
    cluster = isthmus.Cluster(calibrated(streams=1.5))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        inside = isthmus.predict_allreduce(cluster, 983_040 // 4, algorithm="hierarchical").seconds
        assert not told
        for size in (10**7, 10**8):
            isthmus.predict_allreduce(cluster, size, algorithm="hierarchical")
    assert [each.category for each in told] == [CalibrationRangeWarning]
    assert "4 to 983040 bytes" in str(told[0].message)
    with pytest.warns(CalibrationRangeWarning):
        outside = isthmus.predict_allreduce(cluster, 983_040, algorithm="hierarchical").seconds
    assert outside == pytest.approx(4 * inside, rel=0.02)


def test_mpi_s_own_is_corrected_by_what_it_took_on_as_many_ranks():
    plain = seconds_of(calibrated(), "mpi")
    found = {"version": 1, "ranks": 4, "allreduce": flat(3.0)}
    assert seconds_of(calibrated() | {"calibration": found}, "mpi") == pytest.approx(3 * plain)
    assert seconds_of(calibrated() | {"calibration": found | {"ranks": 5}}, "mpi") == plain


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "mpi"])
def test_what_an_allreduce_takes_whatever_its_size_is_added_once(algorithm):
    found = {"version": 1, "ranks": 4, "overhead_seconds": {algorithm: 0.25}}
    for size in (1, 100_000):
        plain = seconds_of(calibrated(), algorithm, size)
        assert seconds_of(calibrated() | {"calibration": found}, algorithm, size) - plain == (
            pytest.approx(0.25)
        )
        others = found | {"ranks": 5}
        assert seconds_of(calibrated() | {"calibration": others}, algorithm, size) == plain
    if algorithm == "hierarchical":
        cluster = isthmus.Cluster(calibrated() | {"calibration": found})
        simulated = simulate(cluster, Workload(size=100_000, batch_size=4), [1, 1, 1, 1], steps=1)
        assert simulated.seconds == pytest.approx(1 / 500 + seconds_of(cluster.to_table(), algorithm))


def bursts(*sites):
    """An uplink that lets the first 60 kB pass at once, as token buckets do."""
    table = cluster_of(*sites, bytes_per_second=1e6, shared="uplink")
    for link in table["link"]:
        latency, rate = link["latency_seconds"], link["bytes_per_second"]
        factors = [(latency + max(0, size - 60_000) / rate) / (latency + size / rate) for size in SIZES]
        link |= dict.fromkeys(("streams", "messages"), flat(1.0) | {"factors": factors})
    return isthmus.Cluster(table)


def test_what_a_link_lets_pass_at_once_it_does_so_once():
    """A ring's hop carries 2 (p - 1) parts, all but the first at the link's rate; two pairs of halving
    share the link twice, with half of the vector."""
    cluster, size = bursts(2, 2), 60_000
    (link, *_), nbytes = cluster.links, 4 * size
    ring = isthmus.predict_allreduce(cluster, size, algorithm="ring").seconds
    _, rate = link.line(6 * nbytes / 4)
    assert ring >= (5 * nbytes / 4 / rate) * (1 - 1e-9)
    halving = isthmus.predict_allreduce(cluster, size, algorithm="recursive").seconds
    _, rate = link.line(nbytes / 2)
    assert halving >= 2 * (nbytes / 2 / rate) * (1 - 1e-9)
    star = bursts(1, 1, 1)
    latency, rate = star.links[0].line(2 * 60_000)
    assert isthmus.predict_allreduce(star, 15_000, algorithm="hierarchical").links_seconds == (
        pytest.approx(2 * (latency + 2 * 60_000 / rate))
    )


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1000, 200_000))
def test_a_ring_s_hops_share_an_uplink(north, south, size):
    """Two sites behind one: both ways of it carry two hops, 2 (p - 1) parts each, the first at once."""
    cluster = isthmus.Cluster(cluster_of(2, north, south, bytes_per_second=1e6, shared="uplink"))
    seconds = isthmus.predict_allreduce(cluster, size, algorithm="ring").seconds
    assert seconds >= 2 * (2 * (cluster.size - 1) - 1) * 4 * size / cluster.size / 1e6


def test_links_that_share_a_rate_do_not_share_what_a_message_takes_before_its_first_byte():
    alone, both = (
        isthmus.Cluster(
            cluster_of(
                *sites,
                bytes_per_second=1e6,
                shared="uplink",
                streams=flat(1.0) | {"factors": [3.0, 1.0, 1.0, 1.0]},
            )
        )
        for sites in ((1, 1, 1), (1, 1, 1, 1, 1))
    )
    one, other = (
        isthmus.predict_allreduce(cluster, 1, algorithm="hierarchical").links_seconds
        for cluster in (alone, both)
    )
    assert one == pytest.approx(2 * 0.003, rel=0.01)
    assert other == pytest.approx(one, rel=0.01)


def test_a_compressor_takes_what_it_took_and_another_of_its_class_is_the_best_guess():
    def coding(compressor, seconds):
        return {
            "compressor": compressor,
            "nbytes": [4000, 8000],
            "encode_seconds": [seconds, 4 * seconds],
            "decode_seconds": [seconds, seconds],
        }

    table = calibrated()
    table["site"][1]["coding"] = [coding("OneBit(block=1024)", 7.0), coding(repr(isthmus.Int8()), 1.0)]
    fast, slow = isthmus.Cluster(table).sites
    assert coding_seconds(fast, isthmus.Int8(), 1000) == (0, 0)
    assert coding_seconds(slow, isthmus.Int8(), 1500) == pytest.approx((2.5, 2.0))
    assert coding_seconds(slow, isthmus.Int8(block=64), 1000) == pytest.approx((1.0, 2.0))
    assert coding_seconds(slow, isthmus.TopK(0.1), 1000) == (0, 0)
    with pytest.warns(CalibrationRangeWarning):
        assert coding_seconds(slow, isthmus.Int8(), 4000) == pytest.approx((8.0, 4.0))
    stages = hierarchical_stages(isthmus.Cluster(table), 2000, isthmus.OneBit(), True)
    assert stages.first["encode"] == pytest.approx(28.0)


def test_a_calibrated_file_reads_back_equal_and_an_old_one_has_no_tables(tmp_path):
    table = calibrated(streams=1.5, messages=1.25, network=1.1)
    table["calibration"] = {"version": 1, "made": "2026-11-21", "ranks": 4, "allreduce": flat(2.0)}
    cluster = isthmus.Cluster(table)
    cluster.to_toml(tmp_path / "cluster.toml")
    again = isthmus.Cluster.from_toml(tmp_path / "cluster.toml")
    assert (again.sites, again.links, again.calibration) == (
        cluster.sites,
        cluster.links,
        cluster.calibration,
    )
    assert again.links[0].streams.factors == (1.5,) * 4
    old = isthmus.Cluster(calibrated())
    assert old.calibration is old.links[0].streams is old.sites[0].network.messages is None
    assert "calibration" not in old.to_table()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            {"calibration": {"version": 2, "new": 1}},
            ["calibration.version: 2", "reads version 1", "again"],
        ),
        ({"calibration": {"version": 1, "alowreduce": 1}}, ["alowreduce", "did you mean 'allreduce'"]),
        ({"link": {"streams": flat(1.0) | {"low": [1.0]}}}, ["one length", "4, 4, 1, 4"]),
        ({"link": {"streams": flat(1.0) | {"nbytes": [4, 3, 5, 6]}}}, ["nbytes must ascend"]),
        ({"link": {"messages": flat(-1.0)}}, ["link[0].messages.factors[0]", "greater than 0"]),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(broken, words):
    table = calibrated()
    table["link"][0] |= broken.pop("link", {})
    with pytest.raises(ClusterError) as refused:
        isthmus.Cluster(table | broken, source="measured.toml")
    assert str(refused.value).startswith("measured.toml: ")
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(rates=st.lists(st.floats(0.5, 3.0), min_size=4, max_size=4), size=st.integers(1, 240_000))
def test_no_table_makes_an_allreduce_beat_what_its_links_took(algorithm, rates, size):
    """Non-negative and finite; a hierarchical one is never faster than the stream it sends."""
    table = calibrated()
    table["link"][0] |= {name: flat(1.0) | {"factors": rates} for name in ("streams", "messages")}
    cluster = isthmus.Cluster(table)
    seconds = isthmus.predict_allreduce(cluster, size, algorithm=algorithm).seconds
    assert 0 < seconds < math.inf
    if algorithm == "hierarchical":
        latency, rate = cluster.links[0].line(4 * size)
        assert seconds >= narrow_link_bound_seconds(4 * size, latency, rate) * (1 - 1e-9)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=9))
def test_waiting_ends_when_the_last_rank_arrives(seconds):
    waits = waiting_seconds(seconds)
    np.testing.assert_allclose(waits + seconds, max(seconds))
    assert waits.min() == 0


@given(st.integers(1, 40), st.integers(1, 12))
def test_local_steps_take_what_the_simulation_says(steps, local_steps):
    cluster, workload = isthmus.Cluster(cluster_of(2, 1)), Workload(size=100_000, batch_size=30)
    simulated = simulate(cluster, workload, [20, 20, 10], steps=steps, local_steps=local_steps)
    exchange = isthmus.predict_allreduce(cluster, workload.size, algorithm="hierarchical").seconds
    assert simulated.seconds == pytest.approx(
        float(local_steps_seconds(steps, local_steps, 10 / 500, exchange))
    )


def test_formulas_take_arrays():
    first, each = chain_seconds(np.array([1, 2, 3]), 1e6, 0.5, 1e6, 0.25, 2e6)
    np.testing.assert_allclose(first, [0, 2.25, 4.5])
    np.testing.assert_allclose(each, [0, 1.75, 1.75])
    np.testing.assert_allclose(pipelined_seconds([[1, 2], [3, 4]], [[1, 2], [1, 0]], [1, 3]), [3, 9])
    np.testing.assert_allclose(local_steps_seconds(np.array([4, 5]), 2, 1.0, 10.0), [24, 35])


def test_a_star_of_chunks_is_a_pipeline():
    cluster = isthmus.Cluster(cluster_of(1, 1, bytes_per_second=1e6))
    stages = hierarchical_stages(cluster, 10**6, isthmus.Dense(), False)
    first, each = stages.links
    expected = pipelined_seconds([first], [each], 1 + stages.rest)
    assert isthmus.predict_allreduce(cluster, 10**6, algorithm="hierarchical").seconds == (
        pytest.approx(float(expected))
    )


def test_fair_shares_of_links_bring_the_shards_no_sooner_than_full_ones():
    table = cluster_of(1, 1, 1, bytes_per_second=1e6, shared="uplink")
    cluster = isthmus.Cluster(table)
    assert fair_staging_seconds(cluster, [5e6, 1e6, 2e6], "site0") == pytest.approx(3.0)
    assert fair_staging_seconds(cluster, [5e6, 0, 0], "site0") == 0
    # Site 2 lies behind site 1: its flow is slowed on the first link by one that could have waited.
    table["link"] = [
        {"between": ["site0", "site1"], "latency_seconds": 0, "bytes_per_second": 2e6},
        {"between": ["site1", "site2"], "latency_seconds": 0, "bytes_per_second": 1.25e6},
    ]
    behind = isthmus.Cluster(table)
    assert staging_seconds(behind, [0, 3e6, 5e6], "site0") == pytest.approx(4.0)
    assert fair_staging_seconds(behind, [0, 3e6, 5e6], "site0") == pytest.approx(4.6)


def test_a_cluster_of_thousands_of_sites_is_made():
    cluster = isthmus.Cluster(cluster_of(*[1] * 4000))
    hub = cluster.names[cluster.hub]
    for name in cluster.names:
        assert len(cluster.route(name, hub)) == len(cluster.route(hub, name)) <= 1
        assert len(cluster.ranks_of_site(name)) == 1


@pytest.mark.ranks(2)
@pytest.mark.parametrize("message_nbytes", [61_440, 2**30])
def test_ranks_measure_the_ways_between_them(comm, message_nbytes, monkeypatch):
    monkeypatch.setattr("isthmus.measuring.messages.LONGEST_SECONDS", 0.5)
    with isthmus.split_tiers(
        comm, isthmus.Cluster(cluster_of(1, 1, latency_seconds=0.003, bytes_per_second=4e6))
    ) as tiers:
        world = tiers.paced().world
        nbytes, there, back = way_seconds(world, 1, 0, 0.01, 4, message_nbytes)
        if comm.rank == 0:
            measured = sorted({*nbytes})
            assert measured == [size for size in NBYTES if size < 10**6][: len(measured)]
            assert len(measured) >= 5  # where the machine stands still, the longest is left out
            for seconds in (there, back):
                assert (seconds >= (0.003 + nbytes / 4e6) * 0.999).all()


@pytest.mark.ranks(2)
def test_mpi_s_own_allreduce_is_timed_and_asked(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        nbytes, seconds = allreduce_seconds(tiers, "mpi", NBYTES, 0.01, 3)
    assert {*nbytes} == {*NBYTES} or seconds[-1] > 0.1
    assert (seconds > 0).all()
    assert allreduce_algorithm() in {"unknown", *OPEN_MPI.values()}


def test_every_compressor_can_be_timed():
    for compressor in (isthmus.Int8(), isthmus.TopK(0.01)):
        nbytes, encode, decode = measured_coding_seconds(compressor, 1e-4, 2, longest_seconds=0.0)
        assert nbytes.size == 1
        assert encode > 0 < decode


@pytest.mark.ranks(3)
def test_links_that_share_a_rate_are_measured_and_read_back(comm, monkeypatch):
    """Two edges behind one uplink: each link has its own latency, and all of a way one rate."""
    monkeypatch.setattr("isthmus.measuring.calibrate.MESSAGES_SECONDS", 0.5)
    table = cluster_of(1, 1, 1, bytes_per_second=2e8, shared="uplink")
    with isthmus.split_tiers(comm, isthmus.Cluster(table)) as tiers:
        table = tiers.cluster.to_table()
        measure_ways(tiers.paced(), 2, table, "paced", lambda line: None)
    if comm.rank == 0:
        measured = isthmus.Cluster(table)
        assert {link.pipe for link in measured.links} == {"uplink:up", "uplink:down"}
        assert all(0 < link.bytes_per_second <= 2.5e8 for link in measured.links)
