"""The time model: against closed forms, against bounds, and term by term."""

import math

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given
from hypothesis import strategies as st

import isthmus
from isthmus.registry import ALGORITHMS
from isthmus.timing.fits import fit_link
from isthmus.timing.step import predict_overlapped, predict_step
from isthmus.timing.time_model import (
    Workload,
    compute_seconds,
    narrow_link_bound_seconds,
    overlapped_seconds,
    recursive_seconds,
    ring_seconds,
    staging_seconds,
    steps_per_epoch,
)

COMPRESSORS = [None, isthmus.Int8(), isthmus.TopK(0.01), isthmus.Dense("float16")]


def test_a_uniform_ring_takes_the_textbook_time():
    """p = 8, 100 MB, 1.25 GB/s, 50 us: 2 (p - 1) (L + n / (p B))."""
    seconds = sum(ring_seconds([50e-6] * 8, [1.25e9] * 8, 100e6))
    assert seconds == pytest.approx(0.1407, abs=1e-12)


@given(
    st.lists(st.tuples(st.floats(0, 0.1), st.floats(1e5, 1e9)), min_size=2, max_size=8),
    st.floats(1, 1e8),
)
def test_a_ring_is_between_its_bounds(hops, nbytes):
    """Never more than the slowest hop in every step; never less than what that hop must carry."""
    latency, rate = zip(*hops)
    ranks = len(hops)
    seconds = sum(ring_seconds(latency, rate, nbytes))
    part = nbytes / ranks
    slowest = max(l + part / b for l, b in hops)  # noqa: E741
    assert seconds <= 2 * (ranks - 1) * slowest * (1 + 1e-9)
    assert seconds >= max(2 * (ranks - 1) * part / b + l for l, b in hops) * (1 - 1e-9)  # noqa: E741


def test_one_narrow_link_in_a_ring_is_crossed_once_a_lap():
    """By hand: of four ranks one hop takes 1 s, the others nothing; a part passes it in each lap."""
    seconds = sum(ring_seconds([1.0, 0, 0, 0], [math.inf] * 4, 4.0))
    assert seconds == pytest.approx(2.0)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
@pytest.mark.parametrize("sites", [(1, 1), (4, 2), (2, 2, 2), (1, 1, 1, 5)])
@given(size=st.integers(1, 10**7))
def test_no_prediction_beats_the_bound_of_the_narrow_link(sites, compressor, size):
    cluster = isthmus.Cluster(cluster_of(*sites, bytes_per_second=1e6))
    wire = (compressor or isthmus.Dense()).wire_nbytes(size)
    bound = narrow_link_bound_seconds(4 * size, 0.001, 1e6, wire / (4 * size))
    predicted = isthmus.predict_allreduce(cluster, size, algorithm="hierarchical", compressor=compressor)
    assert predicted.seconds >= bound * (1 - 1e-3)
    assert predicted.seconds == pytest.approx(sum(predicted.terms.values()))


def test_a_dense_vector_over_100_megabit_is_within_a_tenth_of_the_bound():
    cluster = isthmus.Cluster(cluster_of(2, 2, bytes_per_second=12.5e6, latency_seconds=1e-4))
    predicted = isthmus.predict_allreduce(cluster, 4_000_000, algorithm="hierarchical")
    assert 1.28 <= predicted.seconds <= 1.1 * 1.28
    assert predicted.links_seconds == max(predicted.terms.values())


def test_links_that_share_take_turns():
    def links_seconds(**shared):
        cluster = isthmus.Cluster(cluster_of(1, 1, 1, latency_seconds=0.0, **shared))
        return isthmus.predict_allreduce(cluster, 10**6, algorithm="hierarchical").links_seconds

    assert links_seconds(shared="uplink") == pytest.approx(2 * links_seconds(), rel=0.05)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_to_send_takes_no_time(algorithm):
    two = isthmus.Cluster(cluster_of(1, 1))
    one = isthmus.Cluster(cluster_of(1))
    assert isthmus.predict_allreduce(two, 0, algorithm=algorithm).seconds == 0
    assert isthmus.predict_allreduce(one, 1000, algorithm=algorithm).seconds == 0


def test_one_site_has_no_link_to_cross():
    predicted = isthmus.predict_allreduce(
        isthmus.Cluster(cluster_of(4)), 10**6, algorithm="hierarchical", compressor=isthmus.Int8()
    )
    assert predicted.links_seconds == predicted.encode_seconds == 0
    assert predicted.reduce_seconds > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "star"}, "'star'"),
        ({"algorithm": "ring", "compressor": isthmus.Int8()}, 'needs algorithm = "hierarchical"'),
    ],
)
def test_what_cannot_run_is_not_predicted(arguments, message):
    with pytest.raises(ValueError, match=message):
        isthmus.predict_allreduce(isthmus.Cluster(cluster_of(1, 1)), 10, **arguments)


def test_ranks_compute_side_by_side():
    cluster = isthmus.Cluster(cluster_of(2, 1))
    terms = predict_step(cluster, [10, 20, 30], Workload(size=0))
    assert terms["compute"] == pytest.approx(max(10 / 1000, 20 / 1000, 30 / 500))
    np.testing.assert_allclose(compute_seconds([1, 2], [10, 10], 0.5), [0.6, 0.7])


def test_buckets_wait_for_the_backward_pass_and_for_each_other():
    assert overlapped_seconds([1, 2, 10], [3, 3, 1]) == [4, 7, 11]


def test_halving_and_doubling():
    assert recursive_seconds(8, 8e6, 1e-3, 1e6) == pytest.approx(6e-3 + 14)


def alike(ranks, latency_seconds=1e-3, bytes_per_second=1e6, **site):
    """One site of ranks that are all alike."""
    table = cluster_of(ranks)
    table["site"][0]["network"] = {
        "latency_seconds": latency_seconds,
        "bytes_per_second": bytes_per_second,
    }
    table["site"][0].update(site)
    return isthmus.Cluster(table)


def seconds_of(algorithm, cluster, size):
    return isthmus.predict_allreduce(cluster, size, algorithm=algorithm).seconds


@pytest.mark.parametrize("ranks", [2, 4, 8, 64])
def test_halving_among_ranks_that_are_alike_takes_the_textbook_time(ranks):
    size = 64 * 1000
    assert seconds_of("recursive", alike(ranks), size) == pytest.approx(
        recursive_seconds(ranks, 4 * size, 1e-3, 1e6)
    )
    adds = (ranks - 1) / ranks * 4 * size / 2e6
    assert seconds_of("recursive", alike(ranks, add_bytes_per_second=2e6), size) == pytest.approx(
        recursive_seconds(ranks, 4 * size, 1e-3, 1e6) + adds
    )


@pytest.mark.parametrize(("ranks", "steps"), [(2, 1), (4, 2), (8, 3), (64, 6)])
def test_doubling_takes_a_vector_a_step(ranks, steps):
    cluster = alike(ranks, add_bytes_per_second=2e6)
    assert seconds_of("doubling", cluster, 8000) == pytest.approx(steps * (1e-3 + 0.032 + 0.016))


@pytest.mark.parametrize(("ranks", "core"), [(3, 2), (5, 4), (7, 4), (12, 8)])
def test_folding_takes_the_whole_vector_there_and_back(ranks, core):
    assert seconds_of("recursive", alike(ranks), 8000) == pytest.approx(
        2 * (1e-3 + 0.032) + recursive_seconds(core, 32_000, 1e-3, 1e6)
    )
    # Without latencies: those of doubling pass while the rank that is told last still takes a vector.
    assert seconds_of("doubling", alike(ranks, latency_seconds=0.0), 8000) == pytest.approx(
        (2 + core.bit_length() - 1) * 0.032
    )


@pytest.mark.parametrize(("ranks", "depth"), [(2, 1), (4, 2), (8, 3), (9, 4), (64, 6)])
def test_a_short_vector_takes_the_hops_of_a_tree(ranks, depth):
    assert seconds_of("tree", alike(ranks, bytes_per_second=1e15), 1) == pytest.approx(2e-3 * depth)


@pytest.mark.parametrize("ranks", [4, 5, 8, 33, 100])
def test_a_long_vector_takes_a_double_tree_twice_its_bytes_whatever_the_ranks(ranks):
    seconds = seconds_of("tree", alike(ranks, latency_seconds=0.0), 10_000_000)
    assert (1.5 if ranks == 5 else 2) * 40 * (1 - 1e-9) <= seconds <= 2 * 40 * 1.05


def test_the_ranks_of_a_site_take_turns_on_a_link():
    """By hand, of two and two: halving sends n / 4 for each rank over the link, doubling again; of
    the trees two edges of one and two of the other cross it, n / 2 each and both ways."""
    table = cluster_of(2, 2, latency_seconds=0.0, bytes_per_second=1e6)
    for site in table["site"]:
        site["network"] = {}
    cluster = isthmus.Cluster(table)
    assert seconds_of("recursive", cluster, 1_000_000) == pytest.approx(4.0)
    assert seconds_of("doubling", cluster, 1_000_000) == pytest.approx(8.0)
    assert seconds_of("tree", cluster, 10_000_000) == pytest.approx(80.0, rel=0.02)


@pytest.mark.parametrize("algorithm", ["tree", "recursive"])
@pytest.mark.parametrize("sites", [(1, 1), (4, 2), (2, 2, 2), (1, 1, 1, 5)])
@given(size=st.integers(64, 10**7))
def test_no_exact_allreduce_beats_the_bound_of_the_narrow_link(sites, algorithm, size):
    cluster = isthmus.Cluster(cluster_of(*sites, bytes_per_second=1e6))
    predicted = isthmus.predict_allreduce(cluster, size, algorithm=algorithm)
    assert predicted.seconds >= narrow_link_bound_seconds(4 * size, 0.001, 1e6) * (1 - 1e-9)
    assert predicted.seconds == pytest.approx(predicted.reduce_seconds + predicted.broadcast_seconds)
    assert min(predicted.reduce_seconds, predicted.broadcast_seconds) > 0


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_there_is_at_least_one_step(samples, batch):
    steps = steps_per_epoch(samples, batch)
    assert steps >= 1
    assert abs(samples / batch - steps) <= max(1, 0.5)


def test_staging_is_bound_by_the_pipe_that_carries_most():
    cluster = isthmus.Cluster(cluster_of(1, 1, 1, bytes_per_second=1e6, shared="uplink"))
    assert staging_seconds(cluster, [5e6, 1e6, 2e6], "site0") == pytest.approx(3.0)
    assert staging_seconds(cluster, [5e6, 1e6, 2e6], None) == 0


@given(st.floats(0, 1), st.floats(1e3, 1e11), st.integers(0, 99))
def test_exact_times_give_back_latency_and_rate(latency, rate, seed):
    nbytes = np.array([8, 1e3, 1e5, 1e6, 1e8])
    fit = fit_link(nbytes, latency + nbytes / rate)
    predicted = fit.latency_seconds + nbytes / fit.bytes_per_second
    np.testing.assert_allclose(predicted, latency + nbytes / rate, rtol=2e-6)
    noise = np.random.default_rng(seed).uniform(0.95, 1.05, nbytes.size)
    fit = fit_link(nbytes, (latency + nbytes / rate) * noise)
    assert fit.latency_seconds >= 0
    assert fit.bytes_per_second > 0
    assert fit.largest_relative_error <= 0.15


def test_one_outlier_in_five_repetitions_does_not_matter():
    nbytes = np.repeat([1e3, 1e6], 5)
    seconds = 0.001 + nbytes / 1e8
    seconds[[1, 7]] *= 50
    fit = fit_link(nbytes, seconds)
    assert fit.latency_seconds == pytest.approx(0.001, rel=1e-6)
    assert fit.bytes_per_second == pytest.approx(1e8, rel=1e-6)


@pytest.mark.parametrize(
    ("nbytes", "seconds", "message"),
    [
        ([8], [1.0], "two sizes"),
        ([8, 8], [1.0, 2.0], "two sizes"),
        ([8, 9], [1.0, 0.0], "positive"),
        ([8, 9], [1.0, float("nan")], "positive"),
        ([8, 9], [1.0], "one length"),
    ],
)
def test_times_that_say_nothing_are_refused(nbytes, seconds, message):
    with pytest.raises(ValueError, match=message):
        fit_link(nbytes, seconds)


def test_buckets_hide_the_link_behind_the_computing():
    """Two sites, fast inside: a step takes max(compute, links) and what cannot overlap, not the sum."""
    cluster = isthmus.Cluster(cluster_of(1, 1, latency_seconds=0.0, bytes_per_second=1e6))
    size = 250_000  # 1 s on the link
    buckets = [slice(first, first + size // 10) for first in range(size - size // 10, -1, -size // 10)]
    for compute in (0.1, 1.0, 10.0):
        whole = predict_overlapped(cluster, [slice(0, size)], compute, algorithm="hierarchical").seconds
        left = predict_overlapped(cluster, buckets, compute, algorithm="hierarchical").seconds
        ready = compute * (1 / 3 + 2 / 3 * np.arange(1, 11) / 10)
        expected = overlapped_seconds(ready, [whole / 10] * 10)[-1] - compute
        assert left == pytest.approx(expected, rel=0.01)
        assert left >= 0.1 * whole * 0.99


def test_one_bucket_is_no_overlap():
    cluster = isthmus.Cluster(cluster_of(2, 2))
    whole = predict_overlapped(cluster, [slice(0, 1000)], 1.0, algorithm="hierarchical")
    assert whole == isthmus.predict_allreduce(cluster, 1000, algorithm="hierarchical")


def with_gpus(table, bytes_per_second):
    table["site"][0].update(device="gpu", host_copy_bytes_per_second=bytes_per_second)
    return isthmus.Cluster(table)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("sites", [(1, 1), (3, 1), (2, 2, 2)])
def test_a_gpus_host_copies_what_is_sent_and_received_and_a_cpus_copies_nothing(algorithm, sites):
    size, rate = 500_000, 1e9
    free = isthmus.predict_allreduce(isthmus.Cluster(cluster_of(*sites)), size, algorithm=algorithm)
    paid = isthmus.predict_allreduce(with_gpus(cluster_of(*sites), rate), size, algorithm=algorithm)
    assert free.copy_seconds == 0
    vector = 4 * size / rate
    if algorithm == "hierarchical":  # hidden behind the links, but for the first chunk
        assert 0 < paid.copy_seconds < vector
    else:  # a rank sends a vector a step in doubling, three times where six ranks are
        most = 6 if algorithm == "doubling" else 4
        assert 2 * vector * 0.99 < paid.copy_seconds < most * vector * 1.01
    assert paid.terms | {"copy": 0} == free.terms


def test_a_leader_alone_at_its_site_copies_its_wire_out_and_the_other_s_in():
    size, rate, int8 = 1_000_000, 1e6, isthmus.Int8()
    table = cluster_of(1, 1, bytes_per_second=1e12)
    copy = isthmus.predict_allreduce(
        with_gpus(table, rate), size, algorithm="hierarchical", compressor=int8
    ).copy_seconds
    assert copy == pytest.approx(2 * int8.wire_nbytes(size) / rate, rel=1e-3)
