"""Steps that follow one another: their period, and plans that are made for it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.folders.terms import RoundTerms, critical_terms
from isthmus.timing.crossing import Crossing, shortest_period
from isthmus.timing.simulation import simulate
from isthmus.timing.step import exchange_terms, predict_step, together_terms
from isthmus.timing.time_model import Workload, period_seconds
from isthmus.training.loop import MEASURED

seconds = st.floats(0, 1)


def largest_mean_of_a_cycle(weight):
    """max over k <= n and i of (A^k)_ii / k, A's powers in the max-plus algebra: the definition."""
    power, means = weight, [weight.diagonal().max()]
    for length in range(2, len(weight) + 1):
        power = (power[:, :, None] + weight[None]).max(axis=1)
        means.append(power.diagonal().max() / length)
    return max(means)


@given(seconds, seconds, seconds, seconds)
def test_two_sites_take_turns_in_waiting(here, there, way, back):
    weight = np.array([[here, there + back], [here + way, there]])  # row: begins when all of these have
    assert period_seconds([here, there], [0, way + back]) == pytest.approx(
        largest_mean_of_a_cycle(weight)
    )


@given(seconds, st.lists(st.tuples(seconds, seconds, seconds), min_size=2, max_size=4))
def test_the_hub_of_a_star_computes_while_wires_travel(own, others):
    begins = np.array([own, *(computing + up for computing, up, _ in others)])
    weight = np.stack([begins, *(begins + down for *_, down in others)])
    assert period_seconds(
        [own, *(each[0] for each in others)], [0, *(up + down for _, up, down in others)]
    ) == pytest.approx(largest_mean_of_a_cycle(weight))


@st.composite
def situations(draw, may_share=True):
    """A cluster of two sites or a star, each direction of each link its own; samples; a workload."""
    sites = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    table = cluster_of(*sites)
    table["link"] = [
        {
            "from": ends[0],
            "to": ends[1],
            "latency_seconds": draw(st.floats(0, 0.05)),
            "bytes_per_second": draw(st.floats(1e6, 1e8)),
        }
        for number in range(1, len(sites))
        for ends in itertools.permutations(("site0", f"site{number}"))
    ]
    if may_share and draw(st.booleans()):
        for link in table["link"]:
            link |= {"bytes_per_second": 1e7} | ({"shared": "up"} if link["to"] == "site0" else {})
    for site in table["site"]:
        site |= {"samples_per_second": draw(st.floats(100, 10_000)), "fixed_seconds": 0.001}
    samples = draw(st.lists(st.floats(0, 100), min_size=sum(sites), max_size=sum(sites)))
    workload = Workload(
        size=draw(st.sampled_from([10, 5000, 100_000])),
        compressor=draw(st.sampled_from([None, isthmus.Int8()])),
    )
    return isthmus.Cluster(table), samples, workload


@settings(max_examples=40)
@given(situations(may_share=False))
def test_a_step_takes_what_simulated_sites_take_on_their_own_clocks(situation):
    """The simulation knows no formula for it: sites send when they are ready, and wait for wires."""
    cluster, samples, workload = situation
    some, more = (simulate(cluster, workload, samples, steps=steps).seconds for steps in (400, 800))
    step = sum(predict_step(cluster, samples, workload).values())
    assert (more - some) / 400 == pytest.approx(step, rel=0.01)


@given(situations())
def test_links_add_no_more_than_to_sites_that_begin_together(situation):
    cluster, samples, workload = situation
    terms = predict_step(cluster, samples, workload)
    together = together_terms(cluster, terms["compute"], workload)
    assert 0 <= terms["links"] <= together["links"] * (1 + 1e-9)
    assert {**terms, "links": 0} == {**together, "compute": terms["compute"], "links": 0}
    ready = np.full(len(cluster.sites), 0.01)
    alike = cluster.links[0].latency_seconds, cluster.links[0].bytes_per_second
    if all((link.latency_seconds, link.bytes_per_second) == alike for link in cluster.links):
        assert exchange_terms(cluster, ready, workload) == together_terms(cluster, 0.01, workload)


@st.composite
def small_plans(draw):
    """Few shards on few ranks, and a site that must hold some of them."""
    cluster, _, workload = draw(situations())
    ranks = cluster.size
    shards = draw(st.lists(st.integers(1, 40), min_size=2, max_size=6 if ranks < 5 else 4))
    pinned = draw(
        st.dictionaries(st.integers(0, len(shards) - 1), st.sampled_from(cluster.names), max_size=2)
    )
    return cluster, shards, Workload(workload.size, 20, compressor=workload.compressor), pinned


@pytest.mark.slow
@settings(max_examples=25)
@given(small_plans())
def test_small_plans_are_within_their_bounds_of_brute_force(case):
    """A star's is the best of all; two sites' is within the shard that another lead might move."""
    cluster, shards, workload, pinned = case
    plan = isthmus.plan_shards(cluster, shards, workload, "period", pinned)
    assert plan.objective_seconds == pytest.approx(plan.epoch_seconds)
    site_of_rank, best = np.array(cluster.site_of_rank), np.inf
    for place in itertools.product(range(cluster.size), repeat=len(shards)):
        if all(cluster.names[site_of_rank[place[shard]]] == site for shard, site in pinned.items()):
            held = np.bincount(place, shards, cluster.size)
            best = min(
                best, plan.steps * sum(predict_step(cluster, held / plan.steps, workload).values())
            )
    assert plan.lower_bound_seconds <= best * (1 + 1e-6)
    assert plan.gap == pytest.approx(plan.objective_seconds / plan.lower_bound_seconds - 1, abs=1e-9)
    slack = max(shards) / min(cluster.rates) if len(cluster.sites) == 2 else 0.0
    assert best * (1 - 1e-6) <= plan.objective_seconds <= best * (1 + 1e-6) + slack
    together = isthmus.plan_shards(cluster, shards, workload, "makespan", pinned)
    assert plan.lower_bound_seconds <= together.epoch_seconds * (1 + 1e-6)


def two_sites(hub, other, **link):
    table = cluster_of(1, 1, **{"latency_seconds": 0.02, "bytes_per_second": 1e7} | link)
    for site, rate in zip(table["site"], (hub, other)):
        site["samples_per_second"] = rate
    return isthmus.Cluster(table)


def chain():
    """Three sites in a row: the last is two links away from the hub."""
    table = cluster_of(1, 1, 1, latency_seconds=0.004, bytes_per_second=5e6)
    table["link"][1]["between"] = ["site1", "site2"]
    return isthmus.Cluster(table)


SMALL = Workload(size=10, batch_size=100)


@pytest.mark.parametrize(
    ("rates", "lead"), [((1000.0, 200.0), 1), ((200.0, 1000.0), 0), ((700.0, 700.0), 0.5)]
)
def test_the_faster_site_is_ahead_by_the_round_trip(rates, lead):
    """By hand, T: r_1 T + r_2 (T - 2 L) = 100 samples, the slower site waits for nothing either."""
    cluster = two_sites(*rates)
    crossing = Crossing.of(cluster, SMALL, 0.02)
    plan = isthmus.plan_shards(cluster, [1] * 3000, SMALL, "period")
    fast, slow = max(rates), min(rates)
    trip = crossing.round_trip_seconds.sum()
    assert plan.step_seconds == pytest.approx((100 + slow * trip) / (fast + slow), rel=2e-3)
    assert plan.gap < 2e-3
    ahead = plan.seconds_of_rank[0] - plan.seconds_of_rank[1]
    assert ahead == pytest.approx((2 * lead - 1) * trip, abs=2e-3)


def test_a_lead_in_between_is_found_where_limits_ask_for_it():
    """The fast hub has room for little, so it cannot use a whole round trip: what it needs is enough."""
    table = two_sites(1000.0, 200.0).to_table()
    table["site"][0]["storage_nbytes"] = 1800.0
    cluster, workload = isthmus.Cluster(table), Workload(10, 100, sample_nbytes=1.0)
    found = {}

    def allocate(delays):
        found[tuple(delays)] = isthmus.allocate_shards(
            [1.0] * 3000, [1 / 1000, 1 / 200], fixed_seconds=30 * delays, storage=[1800.0, 1e9]
        )
        return found[tuple(delays)]

    crossing = Crossing.of(cluster, workload, 0.02)
    best, lead, bound = shortest_period(cluster, crossing, 30, allocate)
    assert len(found) <= 4
    assert bound <= best.value <= bound * 1.001
    assert best.value == pytest.approx(min(each.value for each in found.values()))
    # The other site computes 1200 / 30 / 200 = 0.2 s a step whatever the lead: the least is no delay.
    assert lead == pytest.approx(0, abs=1e-6)


@settings(max_examples=30)
@given(st.floats(0.2, 5), st.integers(0, 30))
def test_tangents_bound_every_lead(balance, pinned):
    cluster = two_sites(1000.0 * balance, 1000.0)
    limits = {"pinned": dict.fromkeys(range(pinned), "site1")}
    plan = isthmus.plan_shards(cluster, [10] * 60, SMALL, "period", **limits)
    shards = 60 - np.arange(61)
    for at_hub in shards[shards <= 60 - pinned].tolist():
        held = np.array([10 * at_hub, 10 * (60 - at_hub)]) / plan.steps
        assert plan.lower_bound_seconds <= plan.steps * sum(
            predict_step(cluster, held, SMALL).values()
        ) * (1 + 1e-6)


@pytest.mark.parametrize(
    "cluster",
    [
        two_sites(900.0, 400.0, bytes_per_second=2e6),
        isthmus.Cluster(cluster_of(1, 1, 1, latency_seconds=0.004, bytes_per_second=5e6)),
        chain(),
    ],
)
def test_what_a_faster_link_saves_is_what_the_plan_for_it_saves(cluster):
    workload = Workload(size=5000, batch_size=100)

    def planned(rate):
        table = cluster.to_table()
        for link in table["link"][:2]:  # both directions of the first link
            link["bytes_per_second"] = rate
        return isthmus.plan_shards(isthmus.Cluster(table), [0.1] * 9000, workload, "period")

    rate = cluster.links[0].bytes_per_second
    saved = planned(0.99 * rate).lower_bound_seconds - planned(1.01 * rate).lower_bound_seconds
    price = planned(rate).shadow_prices["link"]["site0-site1"]
    assert price == pytest.approx(saved / (0.02 * rate), rel=0.05)
    assert any("uplink" in sentence for sentence in planned(rate).sentences)


def test_a_pipe_that_is_always_full_is_what_a_step_takes():
    """Each direction carries n bytes a step, whatever sites do meanwhile: n / B of the slower one."""
    table = two_sites(1e6, 1e6).to_table()
    table["link"][0]["bytes_per_second"] = 1e5
    cluster = isthmus.Cluster(table)
    step = sum(predict_step(cluster, [1, 1], Workload(size=100_000)).values())
    assert step == pytest.approx(4e5 / 1e5)
    plan = isthmus.plan_shards(cluster, [1] * 100, Workload(size=100_000, batch_size=10), "period")
    assert plan.gap == pytest.approx(0)
    assert plan.shadow_prices["link"]["site0-site1"] == pytest.approx(10 * 4e5 / 1e5**2, rel=0.01)


@settings(max_examples=30)
@given(situations(), st.integers(2, 5), st.integers(1, 4))
def test_a_bound_holds_where_buckets_hide_the_links(situation, buckets, samples):
    """What is hidden depends on the plan; that of another plan is within the bound all the same."""
    cluster, _, workload = situation
    ends = np.linspace(workload.size, 0, buckets + 1).astype(int).tolist()
    workload = replace(
        workload,
        batch_size=20,
        buckets=tuple(slice(start, stop) for stop, start in itertools.pairwise(ends)),
    )
    shards = [samples] * (3 * cluster.size)
    plan = isthmus.plan_shards(cluster, shards, workload, "period")
    rates = np.array(cluster.rates)
    for power in (0.0, 0.5, 1.0, 2.0, 8.0):
        held = sum(shards) * rates**power / (rates**power).sum()
        whole = samples * whole_shares(held / samples, len(shards))
        other = predict_step(cluster, whole / plan.steps, workload)
        assert plan.lower_bound_seconds <= plan.steps * sum(other.values()) * (1 + 1e-6)


def whole_shares(shares, count):
    """Round shares so that `count` are dealt: the largest remainders go up."""
    whole = np.floor(shares).astype(int)
    for rank in np.argsort(whole - shares)[: count - whole.sum()]:
        whole[rank] += 1
    return whole


@pytest.mark.parametrize(
    ("computing", "allreduce", "step", "links", "wait"),
    [
        ([0.04, 0.01], [0.002, 0.032], 0.043, 0.002, 0.0),  # all but 2 ms of the link behind computing
        ([0.02, 0.02], [0.020, 0.018], 0.042, 0.019, 0.001),  # nothing hidden, and 1 ms nobody explains
        ([0.03, 0.01], [0.0, 0.0], 0.029, 0.0, 0.0),
    ],
)
def test_measured_terms_of_a_step_add_up_to_it(computing, allreduce, step, links, wait):
    of_rank = dict.fromkeys(MEASURED, np.zeros(2)) | {
        "compute": np.array(computing),
        "allreduce": np.array(allreduce),
        "links": np.array(allreduce),
        "update": np.full(2, 0.001),
        "step": np.full(2, step),
    }
    terms = critical_terms(of_rank, [0, 1])
    assert terms["links"] == pytest.approx(links)
    assert terms["wait"] == pytest.approx(wait)
    assert terms["python"] == pytest.approx(max(0.0, step - computing[0] - allreduce[0] - 0.001))
    assert sum(terms.values()) == pytest.approx(max(step, max(computing) + 0.001))


def test_a_leader_that_waits_for_a_rank_of_its_site_is_not_counted_beside_that_rank():
    """Each leader is done after 10 ms and waits for 30; its mate computes for 40."""
    of_rank = dict.fromkeys(MEASURED, np.zeros(4)) | {
        "compute": np.array([0.01, 0.04, 0.01, 0.04]),
        "allreduce": np.array([0.033, 0.003, 0.033, 0.003]),
        "reduce": np.array([0.031, 0.001, 0.031, 0.001]),
        "links": np.array([0.002, 0.0, 0.002, 0.0]),
        "step": np.full(4, 0.043),
    }
    terms = critical_terms(of_rank, [0, 2])
    assert terms["compute"] == pytest.approx(0.04)
    assert terms["reduce"] == pytest.approx(0.003)
    assert sum(terms.values()) == pytest.approx(0.043)


@pytest.mark.parametrize("slow", [0, 1])
def test_waiting_of_unequal_sites_between_exchanges_is_not_counted_twice(slow):
    """Eight steps of 10 ms at one site and 5 at the other, and then 4 ms on the link: 84 ms, not 119."""
    compute = np.full(2, 0.005)
    compute[slow] = 0.01
    rounds, alone, told = RoundTerms([0, 1]), [], []
    for step in range(1, 17):
        exchanged = step % 8 == 0
        waited = 8 * (compute.max() - compute) if exchanged else np.zeros(2)
        links = waited + 0.004 * exchanged
        of_rank = dict.fromkeys(MEASURED, np.zeros(2)) | {
            "compute": compute,
            "allreduce": links,
            "links": links,
            "step": compute + links,
        }
        told.append(rounds.of_step(of_rank, exchanged))
        alone.append(critical_terms(of_rank, [0, 1]))
    for first in (0, 8):
        whole = {name: sum(terms[name] for terms in told[first : first + 8]) for name in told[0]}
        assert whole["compute"] == pytest.approx(0.08)
        assert whole["links"] == pytest.approx(0.004)
        assert sum(whole.values()) == pytest.approx(0.084)
    by_step = sum(sum(terms.values()) for terms in alone[:8])
    assert by_step == pytest.approx(0.084 + 0.035 * slow)  # where rank 0 is at the faster site
