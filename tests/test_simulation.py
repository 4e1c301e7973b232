"""Fair flows against known examples, and simulated steps against the time model."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.timing.flow_loops import fill_one
from isthmus.timing.flows import FlowNetwork, max_min_rates
from isthmus.timing.simulation import Stragglers, simulate
from isthmus.timing.step import computed_share, predict_step
from isthmus.timing.time_model import Workload, overlapped_seconds

SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.mark.parametrize(
    ("routes", "capacities", "caps", "rates"),
    [
        ([[0], [0], [0]], [6], None, [2, 2, 2]),
        # The line of Bertsekas and Gallager: one long flow, a short one on each of its pipes.
        ([[0, 1, 2], [0], [1], [2]], [1, 2, 4], None, [0.5, 0.5, 1.5, 3.5]),
        ([[0], [0, 1], [1]], [10, 4], None, [8, 2, 2]),
        ([[0], [0], [0]], [6], [1, np.inf, np.inf], [1, 2.5, 2.5]),
        ([[0], [0], [0]], [6], [1, 2.1, np.inf], [1, 2.1, 2.9]),
        ([[], [0]], [5], [3, 9], [3, 5]),
        # A parking lot: the last pipe is the narrowest.
        ([[0, 1, 2], [1, 2], [2]], [9, 9, 3], None, [1, 1, 1]),
    ],
)
def test_known_fair_rates(routes, capacities, caps, rates):
    np.testing.assert_allclose(max_min_rates(routes, capacities, caps), rates, rtol=1e-12)


@st.composite
def networks(draw):
    """Routes over up to four pipes, their bytes per second, and starts and bytes of the flows."""
    pipes = draw(st.integers(1, 4))
    routes = draw(
        st.lists(
            st.lists(st.integers(0, pipes - 1), min_size=1, max_size=3, unique=True),
            min_size=1,
            max_size=7,
        )
    )
    capacities = draw(st.lists(st.integers(1, 1000), min_size=pipes, max_size=pipes))
    starts = draw(st.lists(st.integers(0, 20), min_size=len(routes), max_size=len(routes)))
    nbytes = draw(st.lists(st.integers(1, 5000), min_size=len(routes), max_size=len(routes)))
    return routes, capacities, starts, nbytes


@given(networks(), st.floats(1, 1000))
def test_nobody_can_have_more_without_taking_it_from_one_who_has_no_more(network, cap):
    """The definition: each flow is at its cap, or on a full pipe on which no flow is faster."""
    routes, capacities = network[:2]
    rates = max_min_rates(routes, capacities, np.full(len(routes), cap))
    used = [
        sum(rate for rate, route in zip(rates, routes) if pipe in route)
        for pipe in range(len(capacities))
    ]
    assert all(use <= rate * (1 + 1e-9) for use, rate in zip(used, capacities))
    for rate, route in zip(rates, routes):
        fastest = {
            pipe: max(other for other, way in zip(rates, routes) if pipe in way) for pipe in route
        }
        assert rate >= cap * (1 - 1e-9) or any(
            used[pipe] >= capacities[pipe] * (1 - 1e-9) and rate >= fastest[pipe] * (1 - 1e-9)
            for pipe in route
        )


def test_a_flow_that_comes_later_takes_its_half_by_hand():
    """100 bytes over 10 bytes/s; the second starts at 4: 40 sent, 5 each until 16; 40 left, by 20."""
    network = FlowNetwork([[0], [0]], [10.0])
    np.testing.assert_allclose(network.finish_seconds([0.0, 4.0], 100.0), [16.0, 20.0])
    np.testing.assert_allclose(network.finish_seconds([0.0, 4.0], 100.0, caps=8.0), [17.6, 21.6])
    np.testing.assert_allclose(network.finish_seconds([4.0, 0.0], [100.0, 20.0]), [14.0, 2.0])


@given(networks(), st.integers(1, 5000))
def test_a_fast_path_gives_what_going_event_by_event_gives(network, nbytes):
    routes, capacities, starts, _ = network
    flows = FlowNetwork(routes, capacities)
    fast = flows.finish_seconds(starts, float(nbytes))
    slow = np.array(fast)
    for group in flows.groups:
        slow[group] = flows._event_by_event(
            group,
            np.array(starts, float)[group],
            np.full(len(group), float(nbytes)),
            flows.own_caps[group],
        )
    np.testing.assert_allclose(fast, slow, rtol=1e-9)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=8), st.floats(1, 100), st.data())
def test_one_pipe_is_shared_by_rising_cap_as_by_filling(caps, capacity, data):
    caps, rates = np.array(caps), np.zeros(len(caps))
    active = np.array(data.draw(st.lists(st.booleans(), min_size=caps.size, max_size=caps.size)))
    fill_one(capacity, caps, np.argsort(caps), active, active.sum(), rates)
    np.testing.assert_allclose(
        rates[active], max_min_rates([[0]] * active.sum(), [capacity], caps[active]), rtol=1e-9
    )


@given(networks())
def test_what_is_sent_is_what_there_was_to_send(network):
    """No flow is faster than alone; no pipe carries more than its rate from first start to last end."""
    routes, capacities, starts, nbytes = network
    finish = FlowNetwork(routes, capacities).finish_seconds(starts, nbytes)
    for route, start, size, end in zip(routes, starts, nbytes, finish):
        assert end - start >= size / min(capacities[pipe] for pipe in route) * (1 - 1e-9)
    for pipe, rate in enumerate(capacities):
        flows = [number for number, route in enumerate(routes) if pipe in route]
        if flows:
            span = max(finish[flows]) - min(starts[flow] for flow in flows)
            assert sum(nbytes[flow] for flow in flows) <= rate * span * (1 + 1e-9)


def simgrid_finish(**case):
    """Return what SimGrid says, by the system's Python; skip where that has no SimGrid."""
    known = (
        Path(SYSTEM_PYTHON).exists()
        and subprocess.run([SYSTEM_PYTHON, "-c", "import simgrid"], capture_output=True).returncode == 0
    )
    if not known:
        pytest.skip("SimGrid is not installed: apt-get install python3-simgrid")
    done = subprocess.run(
        [SYSTEM_PYTHON, Path(__file__).with_name("simgrid_flows.py")],
        input=json.dumps(case),
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@settings(max_examples=10)
@given(networks())
def test_simgrid_s_fluid_model_says_the_same(network):
    routes, capacities, starts, nbytes = network
    expected = simgrid_finish(routes=routes, capacities=capacities, starts=starts, nbytes=nbytes)
    finish = FlowNetwork(routes, capacities).finish_seconds(starts, nbytes)
    np.testing.assert_allclose(finish, expected, rtol=1e-6)


@given(
    sites=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    size=st.integers(1, 10**6),
    rate=st.floats(1e5, 1e10),
    shared=st.booleans(),
    steps=st.integers(1, 7),
    local_steps=st.integers(1, 4),
    kernels=st.floats(1e6, 1e10),
    compressor=st.sampled_from([None, isthmus.Int8(), isthmus.TopK(0.01)]),
)
def test_without_stragglers_a_step_is_the_time_model_s(
    sites, size, rate, shared, steps, local_steps, kernels, compressor
):
    """K steps of computing and ceil(K / H) synchronisations, links alike: exactly."""
    table = cluster_of(*sites, bytes_per_second=rate, **({"shared": "uplink"} if shared else {}))
    for site in table["site"]:
        site |= {
            "encode_bytes_per_second": kernels,
            "decode_bytes_per_second": 2 * kernels,
            "fixed_seconds": 0.01,
            "host_copy_bytes_per_second": 3 * kernels,
        }
    cluster = isthmus.Cluster(table)
    workload = Workload(size=size, compressor=compressor)
    samples = 0.05 * np.array(cluster.rates)  # all ranks ready at the same time
    terms = predict_step(cluster, samples, workload)
    simulated = simulate(cluster, workload, samples, steps=steps, local_steps=local_steps)
    assert simulated.seconds == pytest.approx(
        steps * terms["compute"] + -(-steps // local_steps) * (sum(terms.values()) - terms["compute"]),
        rel=1e-9,
    )
    assert len(simulated.sync_seconds) == -(-steps // local_steps)
    assert all(0 <= share <= 1 + 1e-9 for share in simulated.utilisation.values())


@pytest.mark.parametrize("algorithm", ["mpi", "ring"])
def test_other_algorithms_take_what_the_time_model_says(algorithm):
    cluster = isthmus.Cluster(cluster_of(2, 3))
    workload = Workload(size=10**5, algorithm=algorithm)
    samples = np.full(5, 10.0)
    assert simulate(cluster, workload, samples, steps=2).step_seconds == pytest.approx(
        sum(predict_step(cluster, samples, workload).values()), rel=1e-12
    )


@given(st.integers(1, 8), st.floats(1e5, 1e9))
def test_buckets_overlap_as_the_time_model_says(buckets, rate):
    """f_b = max(r_b, f_(b-1)) + t_b, buckets ready one after another in the backward pass."""
    cluster = isthmus.Cluster(cluster_of(1, 1, 1, bytes_per_second=rate))
    workload = Workload(size=840_000)
    samples = np.array([100.0, 50.0, 1.0])
    usual = 0.1
    ready = [usual * computed_share(buckets - number, buckets) for number in range(1, buckets + 1)]
    each = isthmus.predict_allreduce(cluster, 840_000 // buckets, algorithm="hierarchical").seconds
    done = overlapped_seconds(ready, [each] * buckets)[-1]
    simulated = simulate(cluster, workload, samples, steps=1, buckets=buckets)
    assert simulated.seconds == pytest.approx(done, rel=1e-9)


def test_a_seed_gives_the_same_steps_and_another_seed_others():
    cluster, workload = isthmus.Cluster(cluster_of(3, 3, 3)), Workload(size=1000)
    first, again, other = (
        simulate(cluster, workload, stragglers=Stragglers(0.3), seed=seed, steps=10)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first.sync_seconds != other.sync_seconds


def test_stragglers_are_waited_for():
    """A rank's mean stays, the slowest rank's grows: means of 16 and of the largest of 16."""
    cluster = isthmus.Cluster(cluster_of(16))
    samples = np.full(16, 100.0)
    calm = simulate(cluster, Workload(), samples, steps=400)
    rough = simulate(cluster, Workload(), samples, steps=400, stragglers=Stragglers(0.2))
    assert calm.wait_seconds == pytest.approx(0)
    assert rough.compute_seconds == pytest.approx(calm.compute_seconds, rel=0.02)
    draw = np.random.default_rng(5).lognormal(-np.log(1.04) / 2, np.sqrt(np.log(1.04)), (4000, 16))
    assert rough.seconds / calm.seconds == pytest.approx(draw.max(axis=1).mean(), rel=0.05)


def test_measured_factors_are_all_that_is_drawn():
    cluster = isthmus.Cluster(cluster_of(1))
    simulated = simulate(
        cluster, Workload(), [1000.0], steps=50, stragglers=Stragglers(measured=(0.5, 1.0, 3.0))
    )
    assert {round(seconds, 12) for seconds in simulated.sync_seconds} == {0.5, 1.0, 3.0}


def test_staggered_sites_find_a_shared_link_less_crowded():
    """Two edge sites share an uplink; when one is later, its wire has the link for itself."""
    table = cluster_of(1, 1, 1, bytes_per_second=1e6, shared="uplink", latency_seconds=0.0)
    cluster = isthmus.Cluster(table)
    workload = Workload(size=250_000)  # 1 MB: 1 s alone
    together = simulate(cluster, workload, [0.0, 0.0, 0.0], steps=1).seconds
    apart = simulate(cluster, workload, [0.0, 0.0, 1000.0], steps=1).seconds
    late = 1000.0 / cluster.rates[2]
    assert together >= 2.0
    assert apart == pytest.approx(late + together - 1.0, rel=0.01)


def test_local_steps_and_compression_use_the_link_less():
    cluster = isthmus.Cluster(cluster_of(1, 1, bytes_per_second=1e6))
    workload = Workload(size=100_000)
    dense, seldom = (simulate(cluster, workload, steps=20, local_steps=h) for h in (1, 10))
    packed = simulate(cluster, replace(workload, compressor=isthmus.Int8()), steps=20)
    pipe = "site1>site0"
    assert dense.utilisation[pipe] == pytest.approx(20 * 4e5 / (1e6 * dense.seconds), rel=1e-3)
    assert seldom.utilisation[pipe] < dense.utilisation[pipe]
    assert packed.utilisation[pipe] < dense.utilisation[pipe]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"local_steps": 0}, "local_steps must be 1 or more"),
        ({"buckets": -1}, "buckets must be 1"),
    ],
)
def test_counts_below_one_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(isthmus.Cluster(cluster_of(1)), Workload(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"variation": -1},
        {"variation": float("nan")},
        {"measured": (1.0, 0.0)},
        {"measured": (float("inf"),)},
    ],
)
def test_distributions_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        Stragglers(**options)
