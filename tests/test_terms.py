"""The contract of objectives: sums of terms, which searches ask and know no name of."""

import ast
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.cluster import cluster as cluster_module
from isthmus.cluster.cluster_file import ClusterTable, NotNegative, Site
from isthmus.jobs.settings import PlanSettings
from isthmus.planning.programme import objectives, terms
from isthmus.planning.programme.objectives import (
    OBJECTIVES,
    Imbalance,
    Makespan,
    Moving,
    Period,
    make_objective,
)
from isthmus.planning.programme.problem import Pipes, make_problem
from isthmus.planning.programme.search import improve
from isthmus.planning.programme.terms import SEARCHES, Objective, PerByte, PerSecond, Term
from isthmus.planning.replanning import Replanner
from isthmus.timing.step import together_terms


@dataclass(frozen=True)
class Energy(PerSecond):
    """Joules of computing: all that a new term has to say."""

    watts: tuple[float, ...] = ()

    def on(self, cluster):
        return replace(self, watts=tuple(cluster.sites[site].watts for site in cluster.site_of_rank))

    def per_second(self, problem):
        return self.weight * np.array(self.watts)


class PoweredSite(Site):
    """A site with the one key that it needs in a cluster file."""

    watts: NotNegative = 0.0


class PoweredTable(ClusterTable):
    site: tuple[PoweredSite, ...]


@pytest.fixture
def energy(monkeypatch):
    """One row in the table of objectives, one key of the cluster file: nothing else."""
    monkeypatch.setitem(OBJECTIVES, "energy", lambda alpha=1.0: Objective((Makespan(), Energy(alpha))))
    monkeypatch.setattr(cluster_module, "ClusterTable", PoweredTable)


def powered(*watts):
    """A cluster of one-rank sites that are alike but for their watts."""
    table = cluster_of(*(1 for _ in watts), bytes_per_second=1e7)
    for site, power in zip(table["site"], watts):
        site |= {"watts": power, "samples_per_second": 100.0}
    return isthmus.Cluster(table)


@pytest.mark.parametrize(
    ("watts", "alpha"), [((5.0, 1.0, 3.0), 0.05), ((5.0, 1.0, 1.0), 1.0), ((1.0, 9.0, 9.0), 0.01)]
)
def test_a_new_term_is_one_class_and_one_key_of_the_cluster_file(energy, watts, alpha):
    """Its plans are the best of all, its value and its prices are right, and a run may ask for it."""
    cluster, shards = powered(*watts), [40, 30, 20, 20, 10]
    workload = isthmus.Workload(size=1000, batch_size=40)
    plan = isthmus.plan_shards(cluster, shards, workload, "energy", alpha=alpha)
    computing = [
        np.bincount(place, shards, 3) / 100.0
        for place in itertools.product(range(3), repeat=len(shards))
    ]
    exchange = plan.steps * sum(together_terms(cluster, 0.0, workload).values())
    best = min(seconds.max() + alpha * seconds @ watts for seconds in computing)
    assert plan.objective_seconds == pytest.approx(best + exchange)
    assert plan.lower_bound_seconds == pytest.approx(best + exchange)
    assert isthmus.Cluster(cluster.to_table()).to_table() == cluster.to_table()
    assert PlanSettings(objective="energy").objective == "energy"
    with pytest.raises(ValueError, match="replan = true needs"):
        PlanSettings(objective="energy", replan=True)


@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_the_price_of_a_rate_is_a_slope_with_a_new_term_too(alpha):
    pace, watts = [0.01, 0.02, 0.02], (3.0, 1.0, 2.0)

    def planned(pace):
        return isthmus.allocate_shards(
            np.ones(200),
            pace,
            storage=[90.0, 90.0, 90.0],
            then=(),
            objective=Objective((Makespan(), Energy(alpha, watts))),
        )

    for rank in range(3):
        ends = []
        for sign in (1, -1):
            changed = list(pace)
            changed[rank] = 1 / (1 / changed[rank] + 1e-4 * sign)
            ends.append(planned(changed).lp_seconds)
        assert planned(pace).shadow_prices["rate"][rank] == pytest.approx(
            (ends[1] - ends[0]) / 2e-4, abs=1e-6
        )


class Keeping(PerByte):
    """What it costs to keep a byte on the first rank."""

    def per_byte(self, problem):
        return self.weight * np.array([1.0, 0.0])


@pytest.mark.parametrize("seed", range(10))
def test_a_price_of_bytes_counts_them_where_the_problem_does_not(seed):
    """Shards with as many samples, of which the light ones go where bytes are dear: the best of all."""
    draw = np.random.default_rng(seed)
    sizes, nbytes, pace = draw.integers(1, 4, 7), draw.integers(1, 9, 7), np.array([1.0, 1.5])
    found = isthmus.allocate_shards(
        sizes, pace, storage_sizes=nbytes, objective=Objective((Makespan(), Keeping(0.2)))
    )
    best = min(
        (pace * np.bincount(place, sizes, 2)).max() + 0.2 * np.bincount(place, nbytes, 2)[0]
        for place in itertools.product(range(2), repeat=7)
    )
    assert found.value == pytest.approx(best)
    assert found.lower_bound_seconds <= best + 1e-6


class Square(Term):
    """Not linear: no row of a programme has it."""


class Odd(Term):
    """Says that a search can handle it which does not exist."""

    searches = ("programme", "dowsing")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (("makespan",), "an objective is a sum of planning.terms.Term, not of 'makespan'"),
        ((Makespan(), Square()), "the integer programme cannot handle the term Square"),
        ((Odd(),), "Odd names the search 'dowsing'; there are programme, swaps, replanning"),
        ((Makespan(), Period()), "one finish time at most, not Makespan and Period"),
        ((Makespan(0.5), Imbalance()), "Makespan has the weight 1, to which those of other"),
    ],
)
def test_a_term_that_nothing_can_plan_for_is_refused(made, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Objective(made)


PROBLEM = make_problem([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_search_refuses_what_it_cannot_make_small(name):
    """Silence would give a plan for something else."""
    objective, place = make_objective(name), np.array([0, 1, 1])
    cluster = isthmus.Cluster(cluster_of(1, 1))
    workload = isthmus.Workload(size=10, batch_size=3)
    for search, use in {
        "swaps": lambda: improve(PROBLEM, objective, place.copy(), 0.0),
        "replanning": lambda: Replanner(cluster, [1, 2, 3], workload, objective=name),
    }.items():
        if objective.handled_by(search):
            use()
        else:
            with pytest.raises(ValueError, match=f"{SEARCHES[search]} cannot handle the term"):
                use()


def test_objectives_and_tie_breaks_that_do_not_exist_are_named():
    cluster = isthmus.Cluster(cluster_of(1, 1))
    with pytest.raises(ValueError, match="objective must be one of 'makespan', .* not 'beauty'"):
        Replanner(cluster, [1], isthmus.Workload(), objective="beauty")
    with pytest.raises(ValueError, match="then must hold some of 'bytes', 'imbalance', not 'beauty'"):
        isthmus.allocate_shards([1, 2], [1.0, 1.0], then=("beauty",))


def test_local_search_leaves_alone_what_has_no_finish_time():
    place = np.array([0, 0, 0])
    problem = make_problem([1.0, 2.0, 3.0], [1.0, 2.0], pipes=Pipes(("a",), [1.0], [[True, True]]))
    assert (improve(problem, Objective((Moving(),)), place.copy(), 0.0) == place).all()


@pytest.mark.parametrize(
    "term", [Makespan(), Period(), Moving(0.3), Imbalance(), Energy(2.0, (1.0, 2.0))]
)
def test_values_and_increments_of_terms_agree(term):
    """What one more shard adds to a sum over ranks is the difference of two values."""
    problem = make_problem([1.0, 2.0, 3.0], [1.0, 2.0], pipes=Pipes(("a",), [4.0], [[False, True]], 0.0))
    before, rank, size = np.array([1.0, 2.0]), np.array([1]), 3.0
    after = before + [0.0, size]
    added = np.sum(
        term.increment(problem, before, np.zeros(2), rank, size) + size * term.per_byte(problem)[rank]
    )
    if term.finishes:  # the rank's own finish: dealing looks for the least of them
        assert added == problem.seconds_of(after)[1]
    else:
        assert added == pytest.approx(
            term.value(problem, after, after) - term.value(problem, before, before)
        )


def test_no_search_knows_an_objective_by_name():
    """Neither the names nor the classes of terms are in any other file of the planner."""
    classes = {
        name
        for name, kind in vars(objectives).items()
        if isinstance(kind, type) and kind.__module__ == objectives.__name__
    }
    for path in Path(terms.__file__).parent.glob("*.py"):
        if path.name == "objectives.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                words = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                assert not words & OBJECTIVES.keys(), f"{path}:{node.lineno}"
            assert not (isinstance(node, ast.Name) and node.id in classes), f"{path}:{node.lineno}"
