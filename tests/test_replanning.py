"""Plans that follow measured rates: never worse than staying, quiet under noise, quick."""

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given
from hypothesis import strategies as st

import isthmus
from isthmus.planning.programme.allocation import shards_by_rank
from isthmus.planning.programme.moving_programme import MovingProgramme
from isthmus.planning.replanning import Replanner, move_towards, moving_seconds
from isthmus.timing.rates import RateFilter, measured_rates
from isthmus.timing.step import exchange_terms, together_terms
from isthmus.timing.time_model import steps_per_epoch


def cluster_with(rates_of_sites, link=2e6, storage=None):
    """A star of sites with `rates` of their ranks each."""
    table = cluster_of(*map(len, rates_of_sites), bytes_per_second=link)
    for site, rates in zip(table["site"], rates_of_sites):
        site |= {"samples_per_second": list(rates)} | ({"storage_nbytes": storage} if storage else {})
    return isthmus.Cluster(table)


def workload_of(**options):
    return isthmus.Workload(**{"size": 1000, "batch_size": 30, "sample_nbytes": 1000} | options)


rates = st.floats(10, 1000)


@st.composite
def situations(draw):
    """A cluster, samples of shards, where they are, rates by now, and epochs left."""
    sites = draw(st.lists(st.lists(rates, min_size=1, max_size=3), min_size=1, max_size=3))
    cluster = cluster_with(sites, link=draw(st.sampled_from([3e3, 2e5, 2e7])))
    samples = draw(st.lists(st.integers(0, 60), min_size=1, max_size=25).filter(sum))
    ranks = st.integers(0, cluster.size - 1)
    place = np.array(draw(st.lists(ranks, min_size=len(samples), max_size=len(samples))))
    now = draw(st.lists(rates, min_size=cluster.size, max_size=cluster.size))
    return cluster, samples, place, now, draw(st.sampled_from([0, 1, 7, 100]))


def seconds_of(cluster, samples, workload, old, new, now, epochs, objective="makespan"):
    """Moving, and epochs of steps: from the formulas, without the planner."""
    steps = steps_per_epoch(sum(samples), workload.batch_size)
    held = np.bincount(new, samples, minlength=cluster.size)
    compute = (held / now).max() / steps
    if objective == "makespan":
        exchange = sum(together_terms(cluster, compute, workload).values())
    else:
        of_site = [
            (held / now)[np.array(cluster.site_of_rank) == site].max() / steps
            for site in range(len(cluster.sites))
        ]
        exchange = sum(exchange_terms(cluster, of_site, workload).values())
    return moving_seconds(cluster, 1000.0 * np.array(samples), old, new) + epochs * steps * (
        compute + exchange
    )


@given(
    situations(),
    st.booleans(),
    st.sampled_from([(), (slice(9000, 30_000), slice(0, 9000))]),
    st.sampled_from(["makespan", "period"]),
)
def test_a_new_plan_is_never_worse_than_staying_and_never_better_than_its_bound(
    situation, warm, buckets, objective
):
    cluster, samples, place, now, epochs = situation
    workload = workload_of(size=30_000 if buckets else 1000, buckets=buckets)
    options = {"warm": warm, "objective": objective}
    found = Replanner(cluster, samples, workload, **options).plan_again(place, now, epochs)
    stay, true = (
        seconds_of(cluster, samples, workload, place, new, now, epochs, objective)
        for new in (place, found.rank_of_shard)
    )
    assert found.staying_seconds == pytest.approx(stay)
    assert found.seconds == pytest.approx(true)
    assert found.lower_bound_seconds <= true * (1 + 1e-6) <= stay * (1 + 2e-6)
    assert found.moved == tuple(np.flatnonzero(found.rank_of_shard != place).tolist())
    assert sorted(shard for mine in found.shards_of_rank for shard in mine) == list(range(len(samples)))
    if found.moved:
        assert found.seconds <= 0.98 * stay + 1e-12
    again = Replanner(cluster, samples, workload, **options).plan_again(place, now, epochs)
    assert (again.rank_of_shard == found.rank_of_shard).all()


def test_what_drifts_is_found_again_from_a_warm_start(capfd):
    """The same values as from a cold one, drift after drift; HiGHS does not say that it is there."""
    cluster = cluster_with([[100, 120], [50, 60, 70]])
    draw = np.random.default_rng(0)
    planner = Replanner(cluster, draw.integers(5, 50, 40), workload_of(), pinned={0: "site1"})
    warm, cold = (MovingProgramme(cluster, planner.problem, each) for each in (True, False))
    place = draw.integers(0, 5, 40)
    for _ in range(6):
        now = np.array(cluster.rates) * draw.uniform(0.3, 2, 5)
        epochs = int(draw.integers(1, 30))
        assert warm.solve(now, place, epochs)[0] == pytest.approx(cold.solve(now, place, epochs)[0])
    assert capfd.readouterr().out == ""


def test_a_plan_for_a_period_follows_what_drifts():
    """A cloud that gets slower gives shards to the edge, and is still ahead of it by the round trip."""
    table = cluster_of(1, 1, latency_seconds=0.02)
    for site, rate in zip(table["site"], (1000.0, 300.0)):
        site["samples_per_second"] = rate
    cluster, samples = isthmus.Cluster(table), [10] * 300
    workload = workload_of(batch_size=100, sample_nbytes=1.0)
    plan = isthmus.plan_shards(cluster, samples, workload, "period")
    found = Replanner(cluster, samples, workload, objective="period").plan_again(
        plan.rank_of_shard, [700, 300], epochs=20
    )
    anew = table | {"site": [table["site"][0] | {"samples_per_second": 700.0}, table["site"][1]]}
    best = isthmus.plan_shards(isthmus.Cluster(anew), samples, workload, "period")
    assert found.step_seconds == pytest.approx(best.step_seconds, rel=0.02)
    assert found.seconds_of_rank[0] - found.seconds_of_rank[1] == pytest.approx(0.04, abs=0.01)


def test_few_shards_move_and_only_where_it_pays():
    cluster = cluster_with([[100, 100], [100, 100]], link=1e5)
    samples, place = [10] * 80, np.repeat([0, 1, 2, 3], 20)
    planner = Replanner(cluster, samples, workload_of())
    now = [100, 100, 100, 100 / 3]
    found = planner.plan_again(place, now, epochs=1000)
    assert 10 <= len(found.moved) <= 13  # a tenth of all shards is left there: 6 or 8 of 20
    assert set(place[list(found.moved)]) <= {2, 3}
    narrow = cluster_with([[100, 100], [100, 100]], link=1e4)  # 1 s a shard: they stay in their site
    few = Replanner(narrow, samples, workload_of()).plan_again(place, now, epochs=2)
    site = np.array(cluster.site_of_rank)
    assert few.moved
    assert (site[few.rank_of_shard] == site[place]).all()
    assert not planner.plan_again(place, now, epochs=0).moved
    assert not planner.plan_again(place, [101, 99, 100, 100], epochs=1000).moved


def test_moving_takes_what_the_links_take():
    cluster = cluster_with([[1, 1], [1], [1]], link=1000.0)
    nbytes, old = [1000, 3000, 500], [0, 0, 2]
    assert moving_seconds(cluster, nbytes, old, [0, 0, 2]) == 0
    assert moving_seconds(cluster, nbytes, old, [1, 0, 2]) == pytest.approx(1e-5 + 1000 / 1e9)
    assert moving_seconds(cluster, nbytes, old, [2, 3, 2]) == pytest.approx(0.001 + 3.0)
    assert moving_seconds(cluster, nbytes, old, [0, 3, 3]) == pytest.approx(0.002 + 3.5)  # by the hub


def test_limits_hold_for_new_plans():
    cluster = cluster_with([[100], [100], [100]], storage=105_000)
    samples, place = [10] * 20, np.repeat([0, 1, 2], [7, 7, 6])
    planner = Replanner(
        cluster,
        samples,
        workload_of(),
        pinned={0: "site0", 1: "site0"},
        forbidden={2: ("site1",)},
        least_samples=15,
    )
    found = planner.plan_again(place, [5, 100, 100], epochs=100)
    assert found.moved
    assert set(found.rank_of_shard[:2]) == {0}
    assert found.rank_of_shard[2] != 1
    assert min(found.samples_of_rank) >= 15
    assert max(found.samples_of_rank) <= 105


def test_shards_go_no_further_than_they_must():
    planner = Replanner(cluster_with([[1, 1], [1, 1]]), [10] * 8, workload_of())
    place = np.repeat([0, 1, 2, 3], 2)
    moved = move_towards(planner.problem, np.array([0, 0, 1, 1]), place, np.array([40, 0, 20, 20.0]))
    assert shards_by_rank(moved, 4) == ((0, 1, 2, 3), (), (4, 5), (6, 7))


@pytest.mark.parametrize("seed", range(5))
def test_ten_percent_of_noise_moves_nothing(seed):
    """Each measurement is off by 10 % (standard deviation): not one change in 400 of 8 ranks."""
    draw = np.random.default_rng(seed)
    true = draw.uniform(50, 500, 8)
    followed = RateFilter(true)
    for _ in range(400):
        assert followed.add(true * np.exp(draw.normal(0, 0.1, 8))) == []


def test_noise_in_every_step_moves_nothing():
    """From steps to plan: 8 constant ranks, steps that vary by 10 %, plans after every epoch."""
    draw = np.random.default_rng(1)
    cluster = cluster_with([[400, 400], [100, 120, 80]])
    samples = draw.integers(5, 15, 100)
    place = isthmus.plan_shards(cluster, samples, workload_of()).rank_of_shard
    planner, followed, moves = Replanner(cluster, samples, workload_of()), RateFilter(cluster.rates), 0
    batch = np.bincount(place, samples, minlength=5)[:, None] / 20 * np.ones((5, 20))
    for left in range(50, 0, -1):
        seconds = batch / np.array(cluster.rates)[:, None] * draw.normal(1, 0.1, (5, 20))
        changed = [followed.add(rates) for rates in measured_rates(batch, seconds, np.zeros(5))]
        if any(changed):
            moves += len(planner.plan_again(place, followed.rates, left).moved)
    assert moves == 0


@pytest.mark.parametrize("factor", [1 / 3, 3.0, 0.6])
def test_a_change_is_seen_once_in_two_or_three_measurements_and_one_outlier_is_not(factor):
    followed = RateFilter([100.0, 50.0])
    for _ in range(10):
        assert followed.add([100, 50]) == []
    assert followed.add([100 * factor, np.nan]) == []
    assert followed.add([100, 50]) == []
    assert followed.add([100, 50]) == []
    assert followed.add([100 * factor, 50]) == []
    assert followed.add([100 * factor, 50]) == [0]
    assert followed.rates.tolist() == pytest.approx([100 * factor, 50])
    for _ in range(20):
        assert followed.add([100 * factor, 50]) == []
    assert RateFilter.from_json(followed.to_json()).add([100, 50]) == []


def test_a_small_change_is_seen_later():
    followed, seen = RateFilter([100.0]), 0
    while not followed.add([82]):
        seen += 1
    assert 4 <= seen <= 17
    assert followed.rates[0] == 82


def test_rates_are_measured_in_halves_and_slow_moments_pass():
    samples, seconds = np.full((2, 40), 10.0), np.full((2, 40), 0.1 + 0.02)
    samples[1], seconds[0, 7] = 0, 9.0
    seconds[0, 20:] = 0.3 + 0.02
    halves = measured_rates(samples, seconds, np.full(2, 0.02))
    np.testing.assert_allclose(halves[:, 0], [100, 100 / 3])
    assert np.isnan(halves[:, 1]).all()
    assert measured_rates(samples[:, :1], seconds[:, :1], np.zeros(2)).shape == (1, 2)


def test_rates_that_make_no_sense_are_refused():
    planner = Replanner(cluster_with([[1], [1]]), [10] * 8, workload_of())
    for wrong in ([1], [1, 0], [1, np.nan]):
        with pytest.raises(ValueError, match="2 positive numbers"):
            planner.plan_again(np.zeros(8, int), wrong, 1)
