"""Objectives and limits beyond the makespan: optimal where that can be enumerated, priced, refused."""

import ast
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.errors import PlanError
from isthmus.planning.programme.objectives import OBJECTIVES
from isthmus.planning.programme.problem import Pipes, Prices

WEIGHTS = {
    "makespan": (1, 0, 0, 0),
    "total_time": (0, 1, 0, 0),
    "assignment": (0, 1, 1, 0),
    "imbalance": (0, 0, 0, 1),
    "weighted": (1, 0, 0.5, 0),
}


def every_plan(case):
    """Yield (value, bytes moved, imbalance) of each assignment that keeps every limit, from scratch."""
    sizes, pace, limits, objective = case
    pipes, prices, ranks = limits["pipes"], limits["prices"], range(len(pace))
    target = [sum(sizes) / s / sum(1 / other for other in pace) for s in pace]
    finish, computing, moving, balance = WEIGHTS[objective]
    for where in itertools.product(*(limits["allowed"].get(i, ranks) for i in range(len(sizes)))):
        load = [sum(size for size, rank in zip(sizes, where) if rank == r) for r in ranks]
        over = [
            sum(load[r] for r in ranks if uses[r]) / rate
            for uses, rate in zip(pipes.uses, pipes.bytes_per_second)
        ]
        wait = [max([t for t, uses in zip(over, pipes.uses) if uses[r]], default=0) for r in ranks]
        money = sum(load[r] * (prices.per_second[r] * pace[r] + prices.per_byte[r]) for r in ranks)
        if (
            all(load[r] <= limits["storage"][r] and load[r] >= limits["least"][r] for r in ranks)
            and money <= prices.budget
        ):
            seconds = [pace[r] * load[r] for r in ranks]
            uneven = sum(abs(s - pace[r] * target[r]) for r, s in enumerate(seconds))
            yield (
                finish * max(w * pipes.share + s for w, s in zip(wait, seconds))
                + computing * sum(seconds)
                + moving * sum(over)
                + balance * uneven,
                sum(load[r] for r in ranks if any(uses[r] for uses in pipes.uses)),
                uneven,
            )


@st.composite
def cases(draw):
    """Sizes, seconds per unit, every kind of limit, and an objective."""
    ranks = draw(st.integers(2, 3))

    def one_a_rank(*values):
        return draw(st.lists(st.sampled_from(values), min_size=ranks, max_size=ranks))

    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    count = draw(st.integers(1, 2))
    pipes = Pipes(
        tuple(map(str, range(count))),
        [2.0, 5.0][:count],
        [one_a_rank(True, False) for _ in range(count)],
        draw(st.sampled_from([0.0, 0.5, 1.0])),
    )
    limits = {
        "storage": one_a_rank(9, 15, math.inf),
        "least": one_a_rank(0, 0, 2, 5),
        "pipes": pipes,
        "prices": Prices(
            one_a_rank(0.0, 1.0, 4.0), one_a_rank(0.0, 0.5), draw(st.sampled_from([20.0, 60.0, 1000.0]))
        ),
        "allowed": draw(
            st.dictionaries(
                st.integers(0, len(sizes) - 1),
                st.lists(st.integers(0, ranks - 1), min_size=1, unique=True),
                max_size=2,
            )
        ),
    }
    return sizes, one_a_rank(0.25, 0.5, 1.0, 3.0), limits, draw(st.sampled_from(sorted(WEIGHTS)))


@pytest.mark.slow
@given(cases())
@settings(max_examples=200)
def test_small_plans_with_every_limit_equal_brute_force(case):
    """The objective first, then the bytes moved, then the imbalance."""
    sizes, pace, limits, objective = case
    plans = list(every_plan(case))
    if not plans:
        with pytest.raises(PlanError, match="no plan"):
            isthmus.allocate_shards(sizes, pace, objective=objective, alpha=0.5, **limits)
        return
    found = isthmus.allocate_shards(sizes, pace, objective=objective, alpha=0.5, **limits)
    best = min(value for value, *_ in plans)
    assert found.value == pytest.approx(best, abs=2e-6)
    assert found.lp_seconds <= best + 1e-6
    assert found.lower_bound_seconds <= best + 1e-6
    owner, pace = found.rank_of_shard, np.array(pace)
    moved = np.array(sizes) @ np.array(limits["pipes"].uses).any(axis=0)[owner]
    fewest = min(nbytes for value, nbytes, _ in plans if value <= best + 1e-9)
    assert moved == fewest
    held = np.bincount(owner, sizes, minlength=pace.size)
    uneven = abs(pace * held - sum(sizes) / (1 / pace).sum()).sum()
    assert uneven <= 1e-6 + min(
        uneven for value, nbytes, uneven in plans if value <= best + 1e-9 and nbytes == fewest
    )


def test_a_link_and_a_cloud_behind_it_are_one_rate():
    """Cloud 8, edge 2 a second, link 4, all 100 at the edge: 1 / (1/4 + 1/8) = 8/3 and 2."""
    found = isthmus.allocate_shards(
        np.full(1000, 0.1), [1 / 8, 1 / 2], pipes=Pipes(("link",), [4.0], [[True, False]])
    )
    assert found.lp_seconds == pytest.approx(100 / (8 / 3 + 2), abs=1e-6)
    assert found.lp_seconds == pytest.approx(21.428571, abs=1e-6)
    assert found.shadow_prices["pipe"]["link"] == pytest.approx(2.04081633, abs=1e-8)
    assert found.gap <= 0.001


FLUID = {
    "sizes": np.full(400, 0.25),
    "pace": [1 / 8, 1 / 5, 1 / 2],
    "storage": [60.0, 40.0, math.inf],
    "least": [0.0, 0.0, 9.0],
    "rate": [4.0, 6.0],
    "budget": 38.0,
    "fixed": [1.0, 0.5, 0.1],
}


def lp_seconds(
    objective,
    pace=FLUID["pace"],
    storage=FLUID["storage"],
    least=FLUID["least"],
    rate=FLUID["rate"],
    budget=FLUID["budget"],
    fixed=FLUID["fixed"],
):
    return isthmus.allocate_shards(
        FLUID["sizes"],
        pace,
        fixed_seconds=fixed,
        storage=storage,
        least=least,
        objective=objective,
        then=(),
        pipes=Pipes(("a", "b"), rate, [[True, True, False], [False, True, False]]),
        prices=Prices([4.0, 1.0, 0.5], [0.1, 0.2, 0.0], budget),
    )


@pytest.mark.parametrize("objective", ["makespan", "assignment", "weighted"])
@pytest.mark.parametrize("budget", [38.0, 1000.0])
def test_every_shadow_price_is_a_slope(objective, budget):
    """Against central differences of the relaxation, one limit after the other."""
    prices = lp_seconds(objective, budget=budget).shadow_prices

    def slope(name, values, index, step=1e-5):
        ends = []
        for sign in (1, -1):
            changed = list(values)
            if name == "pace":
                changed[index] = 1 / (1 / changed[index] + sign * step)
            else:
                changed[index] += sign * step
            ends.append(lp_seconds(objective, **{"budget": budget, name: changed}).lp_seconds)
        return (ends[1] - ends[0]) / (2 * step)

    for rank in range(3):
        assert prices["rate"][rank] == pytest.approx(slope("pace", FLUID["pace"], rank), abs=2e-4)
        assert prices["fixed"][rank] == pytest.approx(-slope("fixed", FLUID["fixed"], rank), abs=2e-4)
    for rank in range(2):
        assert prices["storage"][rank] == pytest.approx(
            slope("storage", FLUID["storage"], rank), abs=2e-4
        )
        assert prices["pipe"]["ab"[rank]] == pytest.approx(slope("rate", FLUID["rate"], rank), abs=2e-4)
    assert prices["least"][2] == pytest.approx(-slope("least", FLUID["least"], 2), abs=2e-4)
    money = (
        lp_seconds(objective, budget=budget - 1e-5).lp_seconds
        - lp_seconds(objective, budget=budget + 1e-5).lp_seconds
    ) / 2e-5
    assert prices["budget"] == pytest.approx(money, abs=2e-4)
    assert (prices["budget"] > 0) == (budget < 100)


def test_what_each_objective_leaves_out():
    """The total time puts everything on the fastest rank; only finish times make ranks work together."""
    found = {
        name: isthmus.allocate_shards(np.ones(90), [1.0, 1.1, 1.2], objective=name)
        for name in OBJECTIVES
    }
    assert [len(mine) for mine in found["total_time"].shards_of_rank] == [90, 0, 0]
    assert found["makespan"].seconds == found["weighted"].seconds < 34
    assert found["total_time"].seconds == found["assignment"].seconds == 90
    assert found["imbalance"].value < 3


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"least": [0, 0, 9], "storage": [99, 99, 8]},
            "storage of rank 2 and least samples of rank 2 cannot hold together",
        ),
        ({"least": [0, 0, 25]}, "least samples of rank 2 cannot be kept; demand fewer samples a rank"),
        ({"prices": Prices([1, 1, 1], [0, 0, 0], 1.0)}, "the budget cannot be kept; raise the budget"),
        (
            {"prices": Prices([1, 1, 9], [0, 0, 0], 50.0), "least": [0, 0, 8], "storage": [30, 30, 30]},
            "least samples of rank 2 and the budget cannot hold together",
        ),
        (
            {"allowed": {0: [2], 1: [2], 2: [2]}, "storage": [99, 99, 12]},
            "storage of rank 2 is short by 3 in all, given where shards 0, 1, 2 may go",
        ),
        ({"storage": [7, 8, 6]}, "storage of ranks 0, 1, 2 is short by 3 in all; "),
        (
            {"allowed": {0: [2], 1: [2], 2: [2], 6: [0]}, "storage": [99, 5, 12], "least": [0, 2, 0]},
            "storage of rank 2 is short by 3 in all, given where shards 0, 1, 2 may go",
        ),
    ],
)
def test_a_smallest_set_of_limits_in_conflict_is_named(limits, message):
    with pytest.raises(PlanError, match="^no plan: " + message) as caught:
        isthmus.allocate_shards((6, 5, 4, 3, 3, 2, 1), (1 / 3, 3 / 4, 3 / 2), **limits)
    assert "\n" not in str(caught.value)


def test_at_the_node_limit_the_best_plan_is_returned_and_marked():
    draw = np.random.default_rng(0)
    sizes, pace = draw.integers(10, 60, 40), 1 / draw.uniform(1, 9, 8)
    found = isthmus.allocate_shards(sizes, pace, nodes=1)
    assert found.stopped
    assert found.lower_bound_seconds <= found.seconds == found.value
    assert 0 < found.gap < 0.1
    assert sorted(itertools.chain(*found.shards_of_rank)) == list(range(40))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"least": [1]}, "2 numbers"),
        ({"pipes": Pipes(("a",), [0.0], [[True, True]])}, "positive"),
        ({"pipes": Pipes(("a",), [1.0], [[True]])}, "one row a pipe"),
        ({"objective": "beauty"}, "'weighted'"),
        ({"prices": Prices([1, 1], [0, math.nan], 1.0)}, r"per_byte\[1\] must be finite"),
        ({"prices": Prices([1, 1], [0, 0], -1.0)}, "budget must be"),
        ({"allowed": (np.zeros(3), np.ones((1, 2)))}, "allowed must be"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        isthmus.allocate_shards([5, 5], [1.0, 1.0], **limits)


def cluster(**link):
    table = cluster_of(2, 2, 1, **{"bytes_per_second": 12.5e6, **link})
    table["site"][0]["price_per_second"] = 2.0
    return isthmus.Cluster(table)


WORK = isthmus.Workload(size=10_000, batch_size=60, data_site="site1", sample_nbytes=1e5)


def test_staging_is_charged_over_the_epochs_it_serves():
    plans = {
        epochs: isthmus.plan_shards(cluster(), [10] * 60, WORK, staged_epochs=epochs)
        for epochs in (None, 1, 1000)
    }
    at_home = {epochs: sum(plan.samples_of_rank[2:4]) for epochs, plan in plans.items()}
    assert at_home[1] > at_home[1000] >= at_home[None]
    assert plans[None].objective_seconds == plans[None].epoch_seconds
    assert plans[1].objective_seconds >= plans[1].epoch_seconds
    assert plans[1].lower_bound_seconds <= plans[1].objective_seconds


def test_prices_are_sentences():
    work = replace(WORK, sample_nbytes=1e3)
    plan = isthmus.plan_shards(cluster(bytes_per_second=1e6), [10] * 60, work, staged_epochs=1)
    price = plan.shadow_prices["link"]["site0-site1"]
    assert price > 0
    assert f"10 % more on site1's uplink saves {1e5 * price:.3g} s an epoch" in plan.sentences


def test_forbidden_sites_least_samples_and_money():
    plan = isthmus.plan_shards(
        cluster(),
        [10] * 60,
        WORK,
        forbidden={0: "site0", 1: ["site0", "site1"]},
        least_samples={"site2": 150},
        pinned={2: "site1"},
    )
    owner = plan.rank_of_shard
    assert owner[0] >= 2
    assert owner[1] == 4
    assert owner[2] in (2, 3)
    assert plan.samples_of_rank[4] >= 150
    dear = isthmus.plan_shards(cluster(), [10] * 60, WORK).money
    thrifty = isthmus.plan_shards(cluster(), [10] * 60, WORK, budget=0.5 * dear)
    assert thrifty.money <= 0.5 * dear
    assert thrifty.shadow_prices["budget"] > 0


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"forbidden": {0: "moon"}}, "forbidden at site 'moon', which does not exist"),
        ({"forbidden": {0: ["site0", "site1", "site2"]}}, "shard 0 is allowed on no rank"),
        ({"least_samples": {"moon": 3}}, "least_samples names site 'moon'"),
        ({"workload": isthmus.Workload(data_site="moon")}, "data lies at site 'moon'"),
        ({"workload": isthmus.Workload(), "staged_epochs": 3}, "needs to know where the shards lie"),
    ],
)
def test_sites_that_do_not_exist_are_named(limits, message):
    with pytest.raises(PlanError, match=message):
        isthmus.plan_shards(cluster(), [10] * 60, **{"workload": WORK, **limits})


@pytest.mark.parametrize(("rate", "doubted"), [(1e8, True), (12.5e6, False), (5e9, True), (9e6, False)])
def test_bits_where_bytes_belong_are_doubted(rate, doubted):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = isthmus.plan_shards(cluster(bytes_per_second=rate), [10] * 60, WORK)
    assert bool(caught) == bool(plan.warnings) == doubted
    if doubted:
        assert f"if it was meant in bits per second, write {rate / 8:g}" in plan.warnings[0]


@pytest.mark.parametrize("shape", ["classes", "noise"])
def test_many_shards_are_dealt_within_a_percent(shape):
    """2 x 10^4 shards on 200 ranks, in classes with storage and places, and with no two alike."""
    draw = np.random.default_rng(1)
    if shape == "classes":
        kind, group = draw.integers(0, 40, 20_000), draw.integers(0, 20, 200)
        sizes = draw.integers(50, 150, 40)[kind]
        pace, bytes_ = 1 / draw.uniform(1, 2, 20)[group], sizes * draw.uniform(10, 100, 40)[kind]
        places = draw.random((4, 20)) < 0.6
        limits = {
            "allowed": (draw.integers(0, 4, 40)[kind], places[:, group]),
            "storage": (draw.uniform(0.8, 3, 20)[group]) * bytes_.sum() / 200,
        }
    else:
        sizes, pace, limits = draw.uniform(50, 150, 20_000), 1 / draw.uniform(1, 2, 200), {}
        bytes_, limits = sizes * draw.uniform(10, 11, 20_000), {"storage": np.full(200, 2e5)}
    found = isthmus.allocate_shards(sizes, pace, storage_sizes=bytes_, then=(), **limits)
    owner = found.rank_of_shard
    assert found.gap <= 0.01
    assert found.seconds == pytest.approx((pace * np.bincount(owner, sizes, minlength=200)).max())
    assert (np.bincount(owner, bytes_, minlength=200) <= limits["storage"] * (1 + 1e-9)).all()
    if "allowed" in limits:
        assert limits["allowed"][1][limits["allowed"][0], owner].all()


def test_the_second_and_third_objective_cost_the_first_nothing():
    """In the relaxation, with and without bytes to be moved."""
    from isthmus.planning.programme.objectives import makespan
    from isthmus.planning.programme.problem import make_problem
    from isthmus.planning.programme.relaxation import relax

    draw = np.random.default_rng(3)
    pace, room = 1 / draw.choice([1.0, 2.0, 5.0], 40), draw.uniform(5, 60, 40)
    for pipes in (None, Pipes(("a",), [9.0], [np.arange(40) % 2 == 0], 0.0)):
        problem = make_problem(draw.uniform(0.1, 0.2, 3000), pace, storage=room, pipes=pipes)
        alone, then = (relax(problem, makespan(), names) for names in ((), ("bytes", "imbalance")))
        finish = pace * np.bincount(then.rank, then.units, minlength=40)
        assert then.value == alone.value
        assert finish.max() <= alone.value * (1 + 1e-6)


def test_taking_ranks_together_keeps_the_bound_a_bound(monkeypatch):
    from isthmus.planning.programme import classes

    draw = np.random.default_rng(2)
    sizes, pace = draw.uniform(1, 3, 3000), 1 / draw.uniform(1, 2, 60)
    exact = isthmus.allocate_shards(sizes, pace)
    monkeypatch.setattr(classes, "GROUPS", 10)
    coarse = isthmus.allocate_shards(sizes, pace)
    assert coarse.lp_seconds <= exact.lp_seconds <= coarse.seconds
    assert coarse.gap <= 0.15


def test_the_hash_of_a_plan_is_known():
    """On every machine: ties go to the lowest rank and shard."""
    found = isthmus.allocate_shards([3, 3, 3, 3, 2, 2, 2, 2, 2], [1.0, 1.0, 1.0], then=())
    assert found.shards_of_rank == ((0, 1, 5), (2, 3, 4), (6, 7, 8))
    assert found.hash == "1001da224d9efddbf7df02c5164cff4ef09447d978ed3ca10f9b94dbe533f44f"


def test_a_tight_budget_is_kept_by_many_shards():
    """The relaxation spends all of it; whole shards must not spend more."""
    draw = np.random.default_rng(4)
    sizes, pace = draw.uniform(1, 10, 3000), 1 / draw.uniform(1, 9, 120)
    per_second = draw.uniform(0, 1, 120)
    dear = (per_second * pace).mean() * sizes.sum()
    found = isthmus.allocate_shards(sizes, pace, prices=Prices(per_second, np.zeros(120), 0.5 * dear))
    held = np.bincount(found.rank_of_shard, sizes, minlength=120)
    assert per_second @ (pace * held) <= 0.5 * dear
    assert found.shadow_prices["budget"] > 0
    assert found.gap <= 0.1


def test_what_the_solver_prints_is_seen_nowhere_and_what_others_print_is(capfd):
    import ctypes

    from isthmus.planning.programme.silence import silent

    printf = ctypes.CDLL(None).puts
    printf(b"before")
    with silent():
        printf(b"stray")
    printf(b"after")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_every_call_of_a_solver_is_silent(repository):
    """In the source: what HiGHS prints, it prints now and then."""
    for path in (repository / "src/isthmus/planning").glob("*.py"):
        tree = ast.parse(path.read_text())
        silenced = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            and any(ast.unparse(item.context_expr) == "silent()" for item in block.items)
            for node in ast.walk(block)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) in ("linprog", "milp", "model.run"):
                assert id(call) in silenced, f"{path}:{call.lineno}"
