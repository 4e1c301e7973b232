"""Plans: optimal where that can be enumerated, bounded where it cannot, and every limit obeyed."""

import itertools
import json
import math

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.errors import PlanError
from isthmus.jobs.plan import held_as
from isthmus.planning.plan import Plan

SIZES, SECONDS = (6, 5, 4, 3, 3, 2, 1), (1 / 3, 3 / 4, 3 / 2)


def brute_force(sizes, seconds, fixed, storage, allowed):
    """Return the least makespan over every assignment, infinity if none obeys the limits."""
    best = math.inf
    places = [allowed.get(shard, range(len(seconds))) for shard in range(len(sizes))]
    for ranks in itertools.product(*places):
        load = [0] * len(seconds)
        for size, rank in zip(sizes, ranks):
            load[rank] += size
        if all(mine <= room for mine, room in zip(load, storage)):
            best = min(best, max(f + s * mine for f, s, mine in zip(fixed, seconds, load)))
    return best


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [({}, 5.0), ({"storage": (12, 10, 10)}, 6.0), ({"allowed": {0: [2], 3: [1, 2]}}, 9.0)],
)
def test_seven_shards_on_three_ranks(limits, seconds):
    found = isthmus.allocate_shards(SIZES, SECONDS, **limits)
    assert found.seconds == pytest.approx(seconds, abs=1e-9)
    assert found.lp_seconds <= found.lower_bound_seconds + 1e-9 <= found.seconds + 2e-9
    if not limits:
        assert found.lp_seconds == pytest.approx(4.8, abs=1e-9)


@st.composite
def instances(draw):
    ranks = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    seconds = draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]), min_size=ranks, max_size=ranks))
    fixed = draw(st.lists(st.sampled_from([0.0, 1.0, 4.0]), min_size=ranks, max_size=ranks))
    storage = draw(st.lists(st.sampled_from([8, 12, 20, math.inf]), min_size=ranks, max_size=ranks))
    allowed = draw(
        st.dictionaries(
            st.integers(0, len(sizes) - 1),
            st.lists(st.integers(0, ranks - 1), min_size=1, max_size=ranks, unique=True),
            max_size=3,
        )
    )
    return sizes, seconds, fixed, storage, allowed


@pytest.mark.slow
@given(instances())
@settings(max_examples=200)
def test_small_plans_equal_brute_force(instance):
    sizes, seconds, fixed, storage, allowed = instance
    best = brute_force(*instance)
    if best == math.inf:
        with pytest.raises(PlanError, match="no plan"):
            isthmus.allocate_shards(
                sizes, seconds, fixed_seconds=fixed, storage=storage, allowed=allowed
            )
        return
    found = isthmus.allocate_shards(
        sizes, seconds, fixed_seconds=fixed, storage=storage, allowed=allowed
    )
    assert found.seconds == pytest.approx(best, abs=1e-7)
    assert found.lower_bound_seconds <= best + 1e-7
    assert sorted(itertools.chain(*found.shards_of_rank)) == list(range(len(sizes)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(300, 30, 900), (120, 40, 1), (500, 7, 50)])
@given(seed=st.integers(0, 30))
@settings(max_examples=2)
def test_large_plans_are_within_their_bounds(shape, seed):
    """Every shard once, no rank over its storage, seconds at least the bound, the gap small."""
    shards, ranks, spread = shape
    draw = np.random.default_rng(seed)
    sizes = draw.integers(100, 100 + spread, shards)
    seconds = 1 / draw.uniform(1, 10, ranks)
    storage = np.full(ranks, 3 * sizes.sum() / ranks)
    found = isthmus.allocate_shards(sizes, seconds, storage=storage)
    held = [sizes[list(mine)].sum() for mine in found.shards_of_rank]
    assert sorted(itertools.chain(*found.shards_of_rank)) == list(range(shards))
    assert (held <= storage).all()
    assert found.seconds == pytest.approx((seconds * held).max())
    assert found.seconds >= found.lower_bound_seconds
    assert found.gap == pytest.approx(found.seconds / found.lower_bound_seconds - 1)
    assert found.gap <= 0.05


def test_a_plan_is_the_same_every_time():
    draw = np.random.default_rng(0)
    sizes, seconds = draw.integers(1, 50, 200), 1 / draw.uniform(1, 9, 20)
    assert isthmus.allocate_shards(sizes, seconds) == isthmus.allocate_shards(sizes, seconds)


def test_shadow_prices_are_the_slopes_of_the_optimum():
    """Against finite differences of the relaxation."""
    sizes, seconds = np.full(1000, 0.01), np.array([1 / 4, 1 / 3, 1 / 2])
    storage = np.array([2.0, 100.0, 100.0])

    def lp_seconds(seconds, storage):
        return isthmus.allocate_shards(sizes, seconds, storage=storage).lp_seconds

    found = isthmus.allocate_shards(sizes, seconds, storage=storage)
    now = lp_seconds(seconds, storage)
    for rank in range(3):
        faster = seconds.copy()
        faster[rank] = 1 / (1 / seconds[rank] + 1e-4)
        assert found.shadow_prices["rate"][rank] == pytest.approx(
            (now - lp_seconds(faster, storage)) / 1e-4, rel=1e-3, abs=1e-6
        )
        more = storage.copy()
        more[rank] += 1e-4
        assert found.shadow_prices["storage"][rank] == pytest.approx(
            (now - lp_seconds(seconds, more)) / 1e-4, rel=1e-3, abs=1e-6
        )
    assert found.shadow_prices["storage"][0] > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([5, 5, 5], [1, 1], {"storage": [6, 6]}), PlanError, "storage of ranks 0, 1 is short by 3"),
        (
            ([5, 5, 5], [1, 1], {"storage": [8, 8]}),
            PlanError,
            "of 5 to 5 samples would fit in pieces, but not whole; give more storage_nbytes, or pack "
            "smaller",
        ),
        (
            ([5, 5, 6], [1, 1], {"least": [8, 8]}),
            PlanError,
            "of 5 to 6 samples would fit in pieces, but not whole; demand fewer least_samples, or pack",
        ),
        (([5, 9], [1, 1], {"storage": [8, 6]}), PlanError, "shard 1 takes 9, more than the storage"),
        (
            ([5, 9], [1, 1], {"storage": [9, 6], "allowed": {1: [1]}}),
            PlanError,
            "shard 1 takes 9, more than .*at most 6",
        ),
        (([5], [1, 1], {"allowed": {0: []}}), PlanError, "shard 0 is allowed on no rank"),
        (([5], [1, 1], {"allowed": {3: [0]}}), PlanError, "names shard 3"),
        (([5], [1, 1], {"allowed": {0: [2]}}), PlanError, "allowed on ranks .2."),
        (([5], [0, 1], {}), ValueError, "positive"),
        (([5], [math.nan, 1], {}), ValueError, "finite"),
        (([-5], [1, 1], {}), ValueError, "not negative"),
        (([5], [], {}), ValueError, "one rank"),
        (([5], [1, 1], {"storage": [1]}), ValueError, "2 numbers"),
        (([5], [1, 1], {"fixed_seconds": [1]}), ValueError, "2 numbers"),
    ],
)
def test_what_cannot_be_planned_is_named(arguments, error, message):
    sizes, seconds, limits = arguments
    with pytest.raises(error, match=message) as caught:
        isthmus.allocate_shards(sizes, seconds, **limits)
    assert "\n" not in str(caught.value)


def test_no_shards_are_no_work():
    found = isthmus.allocate_shards([], [1, 2])
    assert (found.shards_of_rank, found.seconds, found.gap) == (((), ()), 0, 0)


CLUSTER = isthmus.Cluster(cluster_of(2, 2))


def test_a_plan_gives_fast_ranks_more():
    plan = isthmus.plan_shards(CLUSTER, [10] * 60, isthmus.Workload(size=1000, batch_size=60))
    assert plan.samples_of_rank == (200, 200, 100, 100)
    assert plan.steps == 10
    assert plan.terms["compute"] == pytest.approx(20 / 1000)
    assert plan.step_seconds == pytest.approx(sum(plan.terms.values()))
    assert plan.epoch_seconds == pytest.approx(10 * plan.step_seconds)
    assert 0 <= plan.gap < 1e-9
    assert "computing on rank" in plan.bound_by


def test_pinned_shards_stay_at_their_site():
    plan = isthmus.plan_shards(
        CLUSTER, [10] * 20, isthmus.Workload(batch_size=20), pinned=dict.fromkeys(range(15), "site1")
    )
    at_edge = {shard for rank in (2, 3) for shard in plan.shards_of_rank[rank]}
    assert at_edge >= set(range(15))


def test_storage_is_counted_in_bytes():
    table = cluster_of(2, 2)
    table["site"][0]["storage_nbytes"] = 300.0
    plan = isthmus.plan_shards(
        isthmus.Cluster(table), [10] * 20, isthmus.Workload(batch_size=20, sample_nbytes=10.0)
    )
    assert plan.samples_of_rank == (30, 30, 70, 70)


def test_a_plan_survives_json_and_its_hash_is_that_of_the_placement():
    plan = isthmus.plan_shards(CLUSTER, [10] * 20, isthmus.Workload(size=500, batch_size=20))
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.shards_of_rank == plan.shards_of_rank
    assert again.hash == plan.hash == plan.to_dict()["hash"]


@pytest.mark.parametrize("nobodys", [0, 7, 19])
def test_a_plan_may_leave_shards_to_nobody(nobodys):
    plan = isthmus.plan_shards(CLUSTER, [10] * 20, isthmus.Workload(size=500, batch_size=20))
    placed = [[shard for shard in shards if shard != nobodys] for shards in plan.shards_of_rank]
    held = held_as(plan, placed, [10] * 20, CLUSTER.rates)
    assert [*map(list, held.shards_of_rank)] == placed
    assert sum(held.samples_of_rank) == 190
    again = Plan.from_dict(json.loads(json.dumps(held.to_dict())))
    assert again.shards_of_rank == held.shards_of_rank
    assert again.hash == held.hash != plan.hash


def test_more_rate_on_a_link_is_worth_what_the_model_says():
    """A link-bound step: dT/dB = -K n b / B^2."""
    cluster = isthmus.Cluster(cluster_of(1, 1, bytes_per_second=1e6))
    plan = isthmus.plan_shards(cluster, [10] * 10, isthmus.Workload(size=10**6, batch_size=50))
    price = plan.shadow_prices["link"]["site0-site1"]
    assert price == pytest.approx(plan.steps * 4e6 / 1e6**2, rel=0.01)
    assert "the link" in plan.bound_by


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pinned": {0: "moon"}}, PlanError, "'moon', which does not exist; known sites: site0, site1"),
        ({"pinned": {99: "site1"}}, PlanError, "shards 0 to 4"),
        ({"objective": "beauty"}, ValueError, "'makespan'"),
        ({"shards_or_counts": [0, 0]}, PlanError, "no samples"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(arguments, error, message):
    arguments = {"shards_or_counts": [10] * 5, **arguments}
    with pytest.raises(error, match=message):
        isthmus.plan_shards(CLUSTER, workload=isthmus.Workload(batch_size=5), **arguments)
