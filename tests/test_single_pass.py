"""Data that is read once: the exact cases, closed form against linear programme, and best orders."""

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import isthmus
from isthmus.planning.single_pass.linear_programme import solve_rounds

STAR = (Fraction(1), [Fraction(2), Fraction(3), Fraction(4)], [Fraction(1, 2), Fraction(1), Fraction(2)])
SECONDS = st.floats(0.01, 100)
NO_LATENCY = st.just(0.0)


@st.composite
def stars(draw, largest=5, latency=NO_LATENCY, seconds=SECONDS):
    """Root, workers, links and latencies of a star with one worker or more."""
    size = draw(st.integers(1, largest))
    workers, links, latencies = (
        draw(st.lists(kind, min_size=size, max_size=size)) for kind in (seconds, seconds, latency)
    )
    return draw(st.none() | seconds), workers, links, latencies


def arrangements(workers):
    """Every order of every subset."""
    for size in range(len(workers) + 1):
        yield from permutations(range(len(workers)), size)


def best_by_trial(star, rounds=1, subsets=True):
    """Seconds of the best order, found by trying all of them in the linear programme."""
    root, workers = star[:2]
    orders = arrangements(workers) if subsets else permutations(range(len(workers)))
    return min(
        solve_rounds(*star, order, rounds, True)[0] for order in orders if order or root is not None
    )


def check_whole(plan, **about):
    assert plan.root_share + sum(plan.worker_shares) == pytest.approx(1, **about)
    assert min(plan.root_share, *plan.worker_shares) >= -1e-12
    assert plan.lower_bound_seconds <= plan.seconds


@pytest.mark.parametrize(
    ("mode", "seconds", "shares"),
    [
        ("sequential", Fraction(10, 17), (10, 4, 2, 1)),
        ("simultaneous", Fraction(60, 109), (60, 24, 15, 10)),
        ("cut-through", Fraction(12, 25), (12, 6, 4, 3)),
    ],
)
def test_three_workers_exactly(mode, seconds, shares):
    plan = isthmus.plan_single_pass(*STAR, mode=mode)
    assert plan.seconds == seconds
    assert isinstance(plan.seconds, Fraction)
    assert (plan.root_share, *plan.worker_shares) == tuple(
        Fraction(share, sum(shares)) for share in shares
    )
    assert plan.order == (0, 1, 2)


def test_a_root_that_only_sends_exactly():
    plan = isthmus.plan_single_pass(None, *STAR[1:])
    assert plan.seconds == Fraction(10, 7)
    assert plan.root_share == 0
    assert plan.worker_shares == (Fraction(4, 7), Fraction(2, 7), Fraction(1, 7))


def test_a_latency_that_costs_more_than_its_worker_brings_leaves_it_out():
    """By hand: the first worker alone takes 1/5 + 5/2 a = 1 - a, so a = 8/35, T = 27/35."""
    plan = isthmus.plan_single_pass(*STAR, latency_seconds=[Fraction(1, 5), Fraction(9), Fraction(9)])
    assert plan.seconds == Fraction(27, 35)
    assert plan.worker_shares == (Fraction(8, 35), 0, 0)
    assert plan.order == (0,)


@given(stars())
def test_fastest_links_first_is_the_linear_programme_s_best_order(star):
    plan = isthmus.plan_single_pass(*star[:3])
    assert list(plan.order) == sorted(range(len(star[1])), key=star[2].__getitem__)
    seconds, root_share, shares = solve_rounds(*star, plan.order, 1, True)
    assert plan.seconds == pytest.approx(seconds, rel=1e-9)
    assert plan.root_share == pytest.approx(root_share, abs=1e-9)
    np.testing.assert_allclose(plan.worker_shares, shares, atol=1e-9)
    check_whole(plan)


@settings(max_examples=15)
@given(stars(largest=5))
def test_no_order_is_better_than_fastest_links_first(star):
    assert isthmus.plan_single_pass(*star[:3]).seconds == pytest.approx(
        best_by_trial(star, subsets=False), rel=1e-9
    )


@settings(max_examples=15)
@given(stars(largest=4, latency=st.floats(0, 1)))
def test_with_latencies_no_order_of_any_subset_is_better(star):
    plan = isthmus.plan_single_pass(*star[:3], latency_seconds=star[3])
    assert plan.seconds == pytest.approx(best_by_trial(star), rel=1e-9)
    check_whole(plan)


@given(stars(largest=5, latency=st.floats(0, 1)), st.randoms(use_true_random=False))
def test_a_given_order_is_kept_and_is_the_linear_programme_s(star, shuffle):
    order = list(range(len(star[1])))
    shuffle.shuffle(order)
    plan = isthmus.plan_single_pass(*star[:3], latency_seconds=star[3], order=order)
    assert [worker for worker in order if worker in plan.order] == list(plan.order)
    assert plan.seconds == pytest.approx(solve_rounds(*star, plan.order, 1, True)[0], rel=1e-9)
    check_whole(plan)


@given(stars(largest=6, latency=st.floats(0, 1)))
def test_links_at_once_are_the_linear_programme_s(star):
    plan = isthmus.plan_single_pass(*star[:3], latency_seconds=star[3], mode="simultaneous")
    assert plan.seconds == pytest.approx(solve_rounds(*star, plan.order, 1, False)[0], rel=1e-9)
    check_whole(plan)
    for worker in set(range(len(star[1]))) - set(plan.order):
        assert star[3][worker] >= plan.seconds


@given(stars(largest=6, latency=st.floats(0, 1)))
def test_cut_through_is_a_linear_programme(star):
    root, workers, links, latencies = star
    plan = isthmus.plan_single_pass(*star[:3], latency_seconds=latencies, mode="cut-through")
    check_whole(plan)
    costs = ([root] if root is not None else []) + [max(workers[i], links[i]) for i in plan.order]
    late = ([0.0] if root is not None else []) + [latencies[i] for i in plan.order]
    found = linprog(
        [1] + [0] * len(costs),
        A_eq=[[0] + [1] * len(costs)],
        b_eq=[1],
        A_ub=np.c_[-np.ones(len(costs)), np.diag(costs)],
        b_ub=-np.array(late),
        options={"primal_feasibility_tolerance": 1e-10},
    )
    assert plan.seconds == pytest.approx(found.fun, rel=1e-9)


@settings(max_examples=8)
@given(stars(largest=3, latency=st.floats(0, 0.1), seconds=st.floats(0.1, 10)), st.integers(2, 3))
def test_several_rounds_find_the_best_order_and_subset(star, rounds):
    """To the tolerance of the integer programme, which chooses; the seconds are the linear one's."""
    plan = isthmus.plan_single_pass(*star[:3], latency_seconds=star[3], rounds=rounds)
    assert plan.seconds == pytest.approx(best_by_trial(star, rounds), rel=1e-6)
    check_whole(plan)


@settings(max_examples=10)
@given(stars(largest=3, latency=st.floats(0, 0.5), seconds=st.floats(0.1, 10)), st.integers(2, 4))
def test_several_rounds_of_links_at_once_take_whom_they_have_time_for(star, rounds):
    plan = isthmus.plan_single_pass(
        *star[:3], latency_seconds=star[3], rounds=rounds, mode="simultaneous"
    )
    subsets = (order for order in arrangements(star[1]) if list(order) == sorted(order))
    assert plan.seconds == pytest.approx(
        min(
            solve_rounds(*star, order, rounds, False)[0]
            for order in subsets
            if order or star[0] is not None
        ),
        rel=1e-9,
    )
    check_whole(plan)


def test_one_worker_in_two_rounds_by_hand():
    """w = 2, z = 1: the second message travels while the first is computed: parts 1/3 and 2/3,
    T = 1/3 + 2; with latency 1/10 a message: parts 11/30 and 19/30, T = 1/10 + 11/30 + 2."""
    plan = isthmus.plan_single_pass(None, [2.0], [1.0], rounds=2)
    assert plan.seconds == pytest.approx(7 / 3, rel=1e-12)
    late = isthmus.plan_single_pass(None, [2.0], [1.0], rounds=2, latency_seconds=0.1)
    assert late.seconds == pytest.approx(0.1 + 11 / 30 + 2, rel=1e-12)


@given(stars(largest=4), st.integers(2, 4))
def test_more_rounds_without_latency_are_never_slower(star, rounds):
    order = sorted(range(len(star[1])), key=star[2].__getitem__)
    more, fewer = (
        isthmus.plan_single_pass(*star[:3], rounds=count, order=order).seconds
        for count in (rounds, rounds - 1)
    )
    assert more <= fewer * (1 + 1e-9)


@pytest.mark.slow
def test_many_workers_of_few_kinds_are_planned_to_the_best_order():
    """200 workers of two kinds: proved, and not slower than one kind after the other."""
    workers, links, latencies = [2.0, 9.0] * 100, [0.05, 0.02] * 100, [0.01, 0.03] * 100
    plan = isthmus.plan_single_pass(5.0, workers, links, latency_seconds=latencies)
    first, second = range(0, 200, 2), range(1, 200, 2)
    blocks = min(
        isthmus.plan_single_pass(5.0, workers, links, latency_seconds=latencies, order=order).seconds
        for order in ([*first, *second], [*second, *first])
    )
    assert plan.seconds <= blocks * (1 + 1e-12)
    assert plan.lower_bound_seconds == plan.seconds
    check_whole(plan)


@pytest.mark.parametrize("rounds", [1, 3])
def test_beyond_the_exact_search_the_bound_is_told(rounds):
    draw = np.random.default_rng(0)
    star = (1.0, draw.uniform(1, 9, 40).tolist(), draw.uniform(0.1, 2, 40).tolist())
    plan = isthmus.plan_single_pass(*star, latency_seconds=0.005, rounds=rounds)
    check_whole(plan)
    assert plan.lower_bound_seconds <= plan.seconds <= 1.6 * plan.lower_bound_seconds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root_seconds": 0}, "root_seconds must be positive and finite, not 0"),
        ({"worker_seconds": [1, -2]}, "worker_seconds must be positive and finite, not -2"),
        ({"link_seconds": [1, math.nan]}, "link_seconds must be positive and finite, not nan"),
        ({"link_seconds": [1, math.inf]}, "link_seconds must be positive and finite, not inf"),
        ({"link_seconds": [1]}, "of one length, not 2, 1 and 2"),
        ({"latency_seconds": -1}, "latency_seconds must be finite and not negative, not -1"),
        ({"latency_seconds": math.nan}, "latency_seconds must be finite"),
        ({"latency_seconds": [1, 2, 3]}, "of one length, not 2, 2 and 3"),
        ({"mode": "parallel"}, "one of sequential, simultaneous, cut-through, not 'parallel'"),
        ({"rounds": 0}, "rounds must be at least 1, not 0"),
        ({"rounds": 1.5}, "not 1.5"),
        ({"rounds": 2, "mode": "cut-through"}, "leave rounds at 1"),
        ({"order": [0, 0]}, "each at most once"),
        ({"order": [0, 2]}, "workers 0 to 1"),
        ({"root_seconds": None, "worker_seconds": [], "link_seconds": []}, "nobody computes"),
        ({"root_seconds": None, "order": []}, "nobody computes"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(changes, message):
    arguments = {"root_seconds": 1, "worker_seconds": [1, 2], "link_seconds": [1, 2], **changes}
    with pytest.raises(ValueError, match=message) as error:
        isthmus.plan_single_pass(**arguments)
    assert "\n" not in str(error.value)


def trees(depth):
    """A TreeNode with up to three levels below."""
    children = st.lists(trees(depth - 1), max_size=3) if depth else st.just([])
    return st.builds(
        lambda seconds, link, below: isthmus.TreeNode(seconds, link, tuple(below)),
        SECONDS,
        SECONDS,
        children,
    )


def tree_by_programme(root, one_port):
    """Seconds of a tree as one linear programme: own parts, subtree loads, times of arrival."""
    names, rows, equal = {}, [], []

    def column(*name):
        return names.setdefault(name, len(names) + 1)  # 0 is T

    def visit(node, place):
        children = sorted(enumerate(node.children), key=lambda item: item[1].link_seconds)
        rows.append({column("at", place): 1, column("own", place): node.seconds, 0: -1})
        loads = {column("load", (*place, number)): -1 for number, _ in children}
        equal.append({column("load", place): 1, column("own", place): -1, **loads})
        before = place
        for number, child in children:
            below = (*place, number)
            equal.append(
                {
                    column("at", below): 1,
                    column("load", below): -child.link_seconds,
                    column("at", before if one_port else place): -1,
                }
            )
            before = below
            visit(child, below)

    visit(root, ())
    size = len(names) + 1

    def matrix(table):
        dense = np.zeros((len(table), size))
        for number, row in enumerate(table):
            for place, value in row.items():
                dense[number, place] += value
        return dense

    start = [{column("at", ()): 1}, {column("load", ()): 1}]
    found = linprog(
        np.eye(1, size)[0],
        A_ub=matrix(rows),
        b_ub=np.zeros(len(rows)),
        A_eq=matrix(equal + start),
        b_eq=[0] * len(equal) + [0, 1],
        options={"primal_feasibility_tolerance": 1e-10},
    )
    return found.fun


@settings(max_examples=50)
@given(trees(2), st.sampled_from(["sequential", "simultaneous"]))
def test_a_tree_reduced_bottom_up_is_the_linear_programme_of_the_whole(root, mode):
    plan = isthmus.plan_single_pass_tree(root, mode=mode)
    assert plan.seconds == pytest.approx(tree_by_programme(root, mode == "sequential"), rel=1e-9)
    assert sum(plan.shares) == pytest.approx(1)
    assert min(plan.shares) > 0


def test_a_tree_of_two_levels_exactly():
    """The star with its root as the child of a root that takes 1 s, on a link of 1 s."""
    inner = isthmus.TreeNode(
        STAR[0], Fraction(1), tuple(isthmus.TreeNode(seconds, link) for seconds, link in zip(*STAR[1:]))
    )
    plan = isthmus.plan_single_pass_tree(isthmus.TreeNode(Fraction(1), children=(inner,)))
    assert plan.seconds == Fraction(27, 44)  # 1 / (1 + 1 / (1 + 10/17))
    assert plan.shares[0] == Fraction(27, 44)
    assert plan.shares[1:] == tuple(Fraction(17, 44) * Fraction(part, 17) for part in (10, 4, 2, 1))
    through = isthmus.plan_single_pass_tree(
        isthmus.TreeNode(None, children=(inner,)), mode="cut-through"
    )
    assert through.seconds == 1  # the link of 1 s is slower than the star of 12/25 s


def test_a_long_chain_of_machines_is_a_tree():
    chain = isthmus.TreeNode(1.0, 0.5)
    for _ in range(5000):
        chain = isthmus.TreeNode(1.0, 0.5, (chain,))
    plan = isthmus.plan_single_pass_tree(chain)
    assert len(plan.shares) == 5001
    assert sum(plan.shares) == pytest.approx(1)
    equivalent = plan.seconds  # of an endless chain: e = (1/2 + e) / (3/2 + e)
    assert equivalent == pytest.approx((0.5 + equivalent) / (1.5 + equivalent))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (isthmus.TreeNode(1.0, children=(isthmus.TreeNode(1.0),)), "link_seconds"),
        (isthmus.TreeNode(1.0, children=(isthmus.TreeNode(0.0, 1.0),)), "root_seconds|worker_seconds"),
        (isthmus.TreeNode(None), "nobody computes"),
    ],
)
def test_a_tree_that_makes_no_sense_is_refused(tree, message):
    with pytest.raises(ValueError, match=message):
        isthmus.plan_single_pass_tree(tree)
