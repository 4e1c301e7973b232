"""Robust means: what one site sends, whatever it is, leads the others nowhere."""

import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_rebalancing import lab

import isthmus
from isthmus.collectives.allreduce import Allreduce
from isthmus.collectives.robust_sum import nearest
from isthmus.errors import SettingsError
from isthmus.jobs import train as job
from isthmus.jobs.plan import make_plan
from isthmus.jobs.settings import RunSettings
from isthmus.kernels import robust, robust_reference
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.models import Perceptron
from isthmus.robust import HOW, RobustMean

numbers = st.one_of(
    st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1.0, -1.0]),
    st.floats(-4, 4, width=32),
)


def test_a_network_sorts_whatever_there_is():
    for rows in range(1, 11):  # what sorts all zeros and ones sorts everything (Knuth 5.3.4 Z)
        pairs = robust.sorting_network(rows).tolist()
        given = (np.arange(1 << rows)[:, None] >> np.arange(rows)) & 1
        for one, other in pairs:
            given[:, [one, other]] = np.sort(given[:, [one, other]])
        assert (np.diff(given) >= 0).all(), rows


@settings(max_examples=80)
@given(
    rows=st.tuples(st.integers(1, 9), st.sampled_from([1, 7, 127, 129, 256, 300, 513])).flatmap(
        lambda shape: arrays.arrays(np.float32, shape, elements=numbers)
    ),
    share=st.floats(0, 1),
)
def test_loops_are_those_of_numpy_to_the_bit(rows, share):
    cut, network = int(share * ((len(rows) - 1) // 2)), robust.sorting_network(len(rows))
    found = []
    for loops in (robust_reference, robust):
        mean, sums = np.empty(rows.shape[1], "f4"), np.zeros((len(rows), len(rows)))
        with np.errstate(all="ignore"):
            loops.trimmed_mean(rows, cut, network, mean)
            loops.add_square_distances(rows, sums)
        for each in (mean, sums):
            each[np.isnan(each)] = np.nan
        found.append((mean.tobytes(), sums.tobytes()))
    assert found[0] == found[1]
    if np.isfinite(rows).all():
        robust.trimmed_mean(rows, (len(rows) - 1) // 2, network, mean)
        assert mean == pytest.approx(np.median(rows, axis=0), rel=1e-6, abs=1e-6)


def test_krum_takes_who_is_nearest_to_most_others():
    draw = np.random.default_rng(4)
    rows = draw.normal(size=(7, 40))
    rows[2] += 30
    rows[5] = rows[2] + 0.001  # two that agree are two at most
    apart = np.triu(((rows[:, None] - rows[None]) ** 2).sum(-1))
    scores = {
        one: sum(
            sorted(((rows[one] - rows[other]) ** 2).sum() for other in range(7) if other != one)[:3]
        )
        for one in range(7)
    }
    assert nearest(apart, 2) == min(scores, key=scores.get) not in (2, 5)
    apart[1, 3] = np.nan
    assert nearest(apart, 2) is None


def made(vectors, sites, act, **arguments):
    """Return what `act(allreduce, rank's vector)` gives on each rank of such sites."""
    cluster = isthmus.Cluster(cluster_of(*sites))

    def play(table, rank):
        tiers = tiers_in_process(table, cluster, rank)
        allreduce = Allreduce(tiers, vectors.shape[1], weight=1 + rank, **arguments)
        return act(allreduce, vectors[rank])

    return in_threads(sum(sites), play)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("compressor", [None, isthmus.Int8(16)])
def test_every_rank_has_the_robust_mean_of_sites_whatever_one_of_them_sends(how, compressor):
    sites, size = (2, 1, 1, 2, 1), 1000
    vectors = np.random.default_rng(5).normal(size=(7, size)).astype("f4")
    vectors[3] *= -100  # site 2, alone
    buckets = [slice(640, size), slice(0, 640)]

    def act(allreduce, vector):
        mean = allreduce(vector)
        predicted = allreduce.predicted_nbytes()
        assert allreduce.sent_nbytes == predicted
        broken = vector.copy()
        if vector is vectors[6] or np.shares_memory(vector, vectors[6]):
            broken[700] = np.nan
        allreduce(broken)
        before = allreduce.finite
        state = {name: array.copy() for name, array in allreduce.state().items()}
        following = allreduce(vector)
        return mean, predicted, before, state, following

    combine = RobustMean(how)
    ranks = made(
        vectors, sites, act, combine=combine, compressor=compressor, buckets=buckets, chunk_nbytes=640
    )
    weights = np.arange(1, 8, dtype="f4")[:, None]
    of_site = np.stack(
        [
            (weights[mine] * vectors[mine]).sum(0) / weights[mine].sum()
            for mine in (slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6), slice(6, 7))
        ]
    )
    if how == "krum":
        whole = ((of_site[:, None] - of_site[None]) ** 2).sum(-1)
        wanted = of_site[nearest(np.triu(whole), 1)]
    else:
        ordered = np.sort(of_site, axis=0)
        wanted = ordered[2] if how == "median" else ordered[1:4].mean(0)
    # Wires of a wild site are coarse, so that an entry of it may be among the others' by chance.
    assert np.abs(ranks[0][0] - wanted).mean() < (1e-6 if compressor is None else 0.02)
    assert len({each[0].tobytes() for each in ranks}) == 1
    assert not any(finite for _, _, finite, _, _ in ranks)  # as in a sum
    assert len({each[4].tobytes() for each in ranks}) == 1
    # All sites but the hub send one wire, and the hub one to each of them.
    wire = 4 * size if compressor is None else compressor.wire_nbytes(640) + compressor.wire_nbytes(360)
    assert sorted(sent["link"] for _, sent, *_ in ranks) == [0, 0, wire, wire, wire, wire, 4 * wire]
    # What is kept is all that is needed to go on.
    states = [state for _, _, _, state, _ in ranks]

    def go_on(allreduce, vector):
        rank = next(number for number, each in enumerate(vectors) if np.shares_memory(each, vector))
        allreduce.load(states[rank])
        return allreduce(vector)

    again = made(
        vectors, sites, go_on, combine=combine, compressor=compressor, buckets=buckets, chunk_nbytes=640
    )
    assert again[3].tobytes() == ranks[3][4].tobytes()


def test_what_cannot_be_held_against_each_other_is_refused():
    vectors = np.zeros((4, 50), "f4")
    refused = partial(made, vectors, act=lambda allreduce, vector: None)
    median, krum = RobustMean(), RobustMean("krum")
    with pytest.raises(ValueError, match=r"median with 1 faulty takes 3 sites .*\(2 x 1 \+ 1\), not 2"):
        refused(sites=(2, 2), combine=median)
    with pytest.raises(ValueError, match=r"krum with 1 faulty takes 5 sites .*\(2 x 1 \+ 3\), not 4"):
        refused(sites=(1, 1, 1, 1), combine=krum)
    with pytest.raises(ValueError, match=r"takes 5 sites .*\(2 x 2 \+ 1\), not 4"):
        refused(sites=(1, 1, 1, 1), combine=RobustMean("trimmed", 2))
    for algorithm in ("ring", "tree", "recursive", "mpi"):
        with pytest.raises(ValueError, match=f'"{algorithm}" adds up on the way'):
            refused(sites=(1, 1, 1, 1), combine=median, algorithm=algorithm)
    with pytest.raises(ValueError, match="leaves most of them out"):
        refused(sites=(1, 1, 1, 1), combine=median, compressor=isthmus.TopK(0.1))
    for wrong in ({"how": "mean"}, {"faulty": 0}, {"faulty": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            RobustMean(**wrong)


def test_a_site_that_counts_has_a_weight():
    cluster = isthmus.Cluster(cluster_of(1, 1, 1))

    def play(table, rank):
        Allreduce(tiers_in_process(table, cluster, rank), 3, weight=rank, combine=RobustMean())

    with pytest.raises(ValueError, match="all weights of site 'site0' are 0"):
        in_threads(3, play)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"allreduce": {"algorithm": "ring", "compressor": "none"}}, '"ring" adds up on the way'),
        ({"allreduce": {"algorithm": "auto"}}, 'needs algorithm = "hierarchical", not "auto"'),
        ({"allreduce": {"compressor": "top_k"}}, "leaves most of them out"),
        ({"allreduce": {"combine": "mean", "faulty": 2}}, "faulty is of robust means"),
        ({"strategy": {"kind": "federated"}}, "is not alike enough"),
        (
            {
                "privacy": {"secure_sum": "repeat"},
                "security": {"link": "sealed", "keys": "keys"},
                "allreduce": {"compressor": "none"},
            },
            "which privacy.secure_sum hides",
        ),
        ({"plan": {"replan": True}}, "leave plan.replan out"),
        ({"recovery": {"survive": True}}, "leave recovery.survive out"),
    ],
)
def test_settings_that_hide_what_sites_send_are_refused(tmp_path, changes, wrong):
    table = tomllib.loads(Path("experiments/fashion_two_sites.toml").read_text())
    table["allreduce"]["combine"] = "median"
    for section, values in changes.items():
        table[section] = table.get(section, {}) | values
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(SettingsError, match=wrong):
        RunSettings.from_toml(tmp_path / "run.toml")


def test_a_plan_for_two_sites_says_how_many_a_median_takes(tmp_path):
    table = tomllib.loads(Path("experiments/fashion_two_sites.toml").read_text())
    table["cluster"]["file"] = str(Path("experiments/two_sites.toml").resolve())
    table["allreduce"]["combine"] = "median"
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(SettingsError, match=r"\[allreduce\] combine, for .*: median .* takes 3 sites"):
        make_plan(tmp_path / "run.toml")


@pytest.mark.ranks(5)
def test_training_learns_beside_a_site_that_sends_anything_and_the_mean_does_not(
    comm, shared_folder, monkeypatch
):
    real = Perceptron.gradient

    def wild(model, parameters, features, targets, gradient, ready):
        if comm.rank != 3:
            return real(model, parameters, features, targets, gradient, ready)
        loss = real(model, parameters, features, targets, gradient)
        gradient *= -100
        ready(0)
        return loss

    monkeypatch.setattr(Perceptron, "gradient", wild)
    found, again = {}, {}
    for combine, strategy in [
        ("mean", "synchronous"),
        ("median", "synchronous"),
        ("trimmed", "local_steps"),
        ("krum", "synchronous"),
    ]:
        folder = shared_folder / combine
        if comm.rank == 0:
            folder.mkdir()
        comm.Barrier()
        path = lab(
            comm,
            folder,
            (1,) * 5,
            training={"epochs": 2, "on_non_finite": "skip"},
            allreduce={"combine": combine},
            plan={"replan": False},
            run={"checkpoint_every": 15},
            cluster={"compute": "real"},
        )
        if comm.rank == 0:
            table = tomllib.loads(path.read_text())
            table["strategy"] = strategy
            path.write_text(tomli_w.dumps(table))
        comm.Barrier()
        found[combine] = job.train(comm, path, lambda line, passing=False: None)
        for link in found[combine]["links"]:
            assert link["sent_nbytes"] == link["predicted_nbytes"]
    assert found["mean"].get("accuracy", 0) < 0.5
    for combine in ("median", "trimmed", "krum"):
        assert found[combine]["accuracy"] > 0.7, combine
    again = job.train(comm, path, lambda line, passing=False: None, resume=found["krum"]["folder"])
    assert again["parameter_hash"] == found["krum"]["parameter_hash"]
