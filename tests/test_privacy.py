"""Differential privacy: what runs tell of a sample is bounded, counted over all, and not undone."""

import json
import math
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from scipy import stats
from test_rebalancing import lab, lines_of
from test_sealed import keys_of

import isthmus
from isthmus.errors import SettingsError
from isthmus.jobs import train as job
from isthmus.jobs.settings import RunSettings
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.models import Convolutional, Perceptron
from isthmus.privacy.accounting import Steps, epsilon_of, noise_for
from isthmus.privacy.draws import NOISE, SAMPLE, Draws, site_secret
from isthmus.privacy.ledger import NAME, charge
from isthmus.privacy.protection import Protection
from isthmus.security.key_files import make_keys, read_private
from isthmus.training.clients import Clients
from isthmus.training.strategies.sums import Sums

pytest.importorskip("dp_accounting")


NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(16, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def gaussian_delta(epsilon, noise):
    """Return the delta of one Gaussian mechanism (Balle and Wang 2018, arXiv:1805.06530), theorem 8."""
    half, ratio = 1 / (2 * noise), epsilon * noise
    return stats.norm.cdf(half - ratio) - math.exp(epsilon) * stats.norm.cdf(-half - ratio)


@pytest.mark.slow
def test_epsilon_is_that_of_the_exact_mechanism_and_not_the_classic_formula():
    for noise, steps in ((5.0, 1), (1.0, 1), (5.0, 16), (0.1, 1)):
        found = isthmus.epsilon(sampling=1, noise=noise, steps=steps, delta=1e-5)
        # So many Gaussians are one with a deviation smaller by the root of how many.
        exact = gaussian_delta(found, noise / math.sqrt(steps))
        assert exact == pytest.approx(1e-5, rel=0.01)
        assert exact <= 1e-5
    # Beyond epsilon 1 the classic bound says too little: with its noise for 20, more than 20 is told.
    classic = math.sqrt(2 * math.log(1.25 / 1e-5)) / 20
    assert isthmus.epsilon(sampling=1, noise=classic, steps=1, delta=1e-5) > 20
    sampled = {"sampling": 0.05, "noise": 1.0, "steps": 60, "delta": 1e-5}
    tight, loose = (isthmus.epsilon(**sampled, accountant=name) for name in ("pld", "rdp"))
    assert tight < loose < 1.5 * tight
    assert tight < isthmus.epsilon(**sampled | {"sampling": 1.0}) / 5
    parts = [Steps(0.05, 1.0, 20), Steps(0.05, 1.0, 40)]
    assert epsilon_of(parts, 1e-5) == pytest.approx(tight, rel=1e-3)
    noise = noise_for(3.0, sampling=0.05, steps=60, delta=1e-5)
    found = isthmus.epsilon(**sampled | {"noise": noise})
    assert 0.97 * 3 < found <= 3


def test_what_tells_nothing_or_all_is_said_so():
    assert isthmus.epsilon(sampling=0.1, noise=0, steps=1, delta=1e-5) == math.inf
    assert isthmus.epsilon(sampling=0.1, noise=1, steps=0, delta=1e-5) == 0
    for wrong in (
        {"sampling": 1.5},
        {"noise": -1},
        {"noise": math.nan},
        {"steps": 1.5},
        {"delta": 0},
        {"delta": 1},
        {"accountant": "classic"},
    ):
        with pytest.raises(ValueError):
            isthmus.epsilon(**{"sampling": 0.1, "noise": 1, "steps": 1, "delta": 1e-5} | wrong)


MODELS = (
    Perceptron(20, (9, 7), 4),
    Convolutional(inputs=(2, 12, 12), channels=(3, 5), classes=4),
    Convolutional(inputs=(1, 11, 10), channels=(3,), loss="mse", outputs=2),
)


@pytest.mark.parametrize("model", MODELS, ids=("dense", "images", "numbers"))
def test_gradients_are_clipped_as_if_each_sample_were_alone(model):
    draw = np.random.default_rng(0)
    features = (
        draw.normal(size=(13, math.prod(model.inputs_shape))).astype("f4") * np.arange(1, 14)[:, None]
    )
    targets = draw.integers(0, 4, 13) if model.loss.metrics[-1] == "accuracy" else draw.random((13, 2))
    parameters = model.initial(1).astype("f8")
    each = np.empty((13, model.size))
    for number in range(13):
        row = slice(number, number + 1)
        model.gradient(parameters, features[row], targets[row], each[number])
    norms = np.linalg.norm(each, axis=1)
    clip = float(np.median(norms))  # some are clipped and some are not
    expected = (each * np.minimum(1, clip / norms)[:, None]).sum(axis=0)
    found = np.empty(model.size)
    model.clipped_gradient(parameters, features, targets, clip, found)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    model.clipped_gradient(parameters, features, targets, 1e9, found)
    whole = np.empty(model.size)
    model.gradient(parameters, features, targets, whole)
    assert found == pytest.approx(whole, abs=1e-9 * np.abs(whole).max())
    # One sample never moves the sum by more than the clip, whatever it holds.
    for broken in (np.nan, np.inf, 1e30):
        wrong, single = features.copy(), parameters.astype("f4")
        wrong[3, 5] = broken
        with_it, without = np.empty((2, model.size), "f4")
        others = np.arange(13) != 3
        with np.errstate(all="ignore"):
            model.clipped_gradient(single, wrong, targets, 0.5, with_it)
            model.clipped_gradient(single, features[others], targets[others], 0.5, without)
        assert np.linalg.norm((with_it - without).astype("f8")) <= 0.5 * (1 + 1e-6), broken
    model.clipped_gradient(parameters, features[:0], targets[:0], clip, found)
    assert not found.any()


def test_draws_follow_from_the_key_the_run_and_the_step_and_from_nothing_else(tmp_path):
    for site in ("edge", "cloud"):
        make_keys(tmp_path / "keys", site)
    edge, cloud = (read_private(tmp_path / "keys", site) for site in ("edge", "cloud"))
    secret = site_secret(edge, b"r" * 16)
    draws = Draws(secret, 3, NOISE)
    noise = draws.noise(7, 1001)
    assert noise.tobytes() == Draws(site_secret(edge, b"r" * 16), 3, NOISE).noise(7, 1001).tobytes()
    others = [
        Draws(site_secret(cloud, b"r" * 16), 3, NOISE).noise(7, 1001),
        Draws(site_secret(edge, b"s" * 16), 3, NOISE).noise(7, 1001),
        Draws(secret, 4, NOISE).noise(7, 1001),
        Draws(secret, 3, SAMPLE).noise(7, 1001),
        draws.noise(8, 1001),
    ]
    for other in others:
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.15
    many = Draws(secret, 0, NOISE).noise(0, 400_000)
    assert stats.kstest(many, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(many[:200_000], many[200_000:])[0, 1]) < 0.012
    assert np.abs(many).max() < 6.7


def test_sampling_is_poisson_and_no_shuffled_order():
    draws = Draws(b"k" * 32, 0, SAMPLE)
    steps, samples, probability = 4000, 200, 0.05
    taken = np.zeros((steps, samples), bool)
    for step in range(steps):
        taken[step, draws.sampled(step, samples, probability)] = True
    sizes = taken.sum(axis=1)
    # A shuffled order has batches of one size, in which samples keep each other away.
    assert sizes.mean() == pytest.approx(samples * probability, rel=0.02)
    assert sizes.var() == pytest.approx(samples * probability * (1 - probability), rel=0.1)
    epochs = taken.reshape(-1, 20, samples).sum(axis=1)
    assert (epochs == 0).mean() == pytest.approx(0.95**20, rel=0.05)
    assert len(draws.sampled(0, 10, 1.0)) == 10


@pytest.mark.slow
def test_a_budget_is_held_over_all_runs_of_a_set(tmp_path):
    steps = Steps(0.1, 1.0, 50)
    one = epsilon_of([steps], 1e-5)
    assert isthmus.privacy_spent(tmp_path)["epsilon"] == 0
    assert charge(tmp_path, "aa", steps, 1e-5, budget=1.2 * one) == pytest.approx(one)
    assert charge(tmp_path, "aa", steps, 1e-5, budget=1.2 * one) == pytest.approx(one)  # it goes on
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(SettingsError, match=r"its steps with noise 1\.0, not 5\.0; go on"):
        charge(tmp_path, "aa", Steps(0.1, 5.0, 50), 1e-5, budget=None)
    with pytest.raises(SettingsError, match=r"have told epsilon .* with this one it is"):
        charge(tmp_path, "bb", steps, 1e-5, budget=1.2 * one)
    assert (tmp_path / NAME).read_bytes() == before
    charge(tmp_path, "bb", steps, 1e-5, budget=None)
    spent = isthmus.privacy_spent(tmp_path)
    assert spent["epsilon"] == pytest.approx(epsilon_of([Steps(0.1, 1.0, 100)], 1e-5), rel=1e-3)
    assert spent["epsilon_by_rdp"] > spent["epsilon"]
    assert spent["sampling"] == "Poisson"
    assert spent["adjacency"] == "add or remove one sample"
    assert [run["run"] for run in spent["runs"]] == ["aa", "bb"]
    for text in ("{}", '{"format": 1, "runs": [{"run": "aa"}]}', "[", '{"format": 2, "runs": []}'):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(SettingsError, match="is no account of what runs have told"):
            isthmus.privacy_spent(tmp_path)
    with pytest.raises(SettingsError, match="no such folder"):
        isthmus.privacy_spent(tmp_path / "none")


@pytest.mark.parametrize(
    ("section", "values", "wrong"),
    [
        ("privacy", {"unit": None}, 'give unit = "sample" too'),
        ("privacy", {"epsilon": 3.0}, "either epsilon or noise, and not both"),
        ("privacy", {"noise": None}, "either epsilon or noise, and not both"),
        ("privacy", {"delta": 1.0}, "delta"),
        ("privacy", {"clip": 0.0}, "clip"),
        ("security", {"keys": None}, r"needs \[security\] keys"),
        ("strategy", {"kind": "local_steps"}, 'needs strategy = "synchronous"'),
        ("allreduce", {"algorithm": "ring", "compressor": None}, 'needs allreduce.algorithm = "hier'),
        ("plan", {"replan": True}, "needs plan.replan = false"),
        ("run", {"trace": True}, "needs run.trace = false"),
    ],
)
def test_what_would_tell_more_of_samples_is_refused(tmp_path, section, values, wrong):
    table = tomllib.loads(Path("experiments/fashion_two_sites.toml").read_text())
    table["security"] = {"keys": "keys"}
    table["privacy"] = {"unit": "sample", "noise": 1.0, "clip": 1.0}
    table[section] = table.get(section, {}) | values
    for name in [name for name, value in table[section].items() if value is None]:
        del table[section][name]
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(SettingsError, match=wrong):
        RunSettings.from_toml(tmp_path / "run.toml")


def protection(secret, rank, **changes):
    """Return what rank `rank` does for its clients or its site, who all have one secret."""
    named = {"clip": 0.5, "noise": 2.0, "probability": 0.5, "told": {}} | changes
    noising = Draws(secret, rank, NOISE)
    return Protection(sampling=Draws(secret, rank, SAMPLE), noising=noising, **named)


def test_of_clients_only_a_noisy_sum_of_clipped_changes_goes_out():
    size, clients = 50, 12
    changes = np.random.default_rng(8).normal(size=(clients, size)).astype("f4")
    changes[4] *= 0.01  # shorter than the clip
    changes[7] = np.nan
    changes[9, 3] = 1e30
    strategy = isthmus.Federated(participants=6)
    cluster = isthmus.Cluster(cluster_of(1, 1))

    def play(table, rank):
        mine = np.arange(6) + 6 * rank
        who = Clients(np.arange(1.0, clients + 1), mine, mine)
        sums = Sums(
            tiers_in_process(table, cluster, rank),
            size,
            6.0,
            clients=who,
            protection=protection(b"s" * 32, rank),
        )
        member, parameters = strategy.join(sums, 3), np.ones(size, "f4")
        member.begin(parameters)
        for _ in range(3):
            for client in member.draw():
                member.visit(client, parameters)
                parameters -= changes[client]
                assert member.leave(client, parameters, 1.0)
            member.after_step(parameters)
            assert member.finite
        assert not member.dropped  # nobody is told whose change was not finite
        return parameters

    first, second = in_threads(2, play)
    assert first.tobytes() == second.tobytes()
    kept = np.where(np.isfinite(changes).all(axis=1)[:, None], changes, 0).astype("f8")
    kept *= np.minimum(1, 0.5 / np.maximum(np.linalg.norm(kept, axis=1), 1e-9))[:, None]
    expected, drawn = np.ones(size), []
    for step in range(3):
        for rank in range(2):
            draws = protection(b"s" * 32, rank)
            places = draws.sampling.sampled(step, 6, 0.5)
            drawn.append(len(places))
            total = kept[6 * rank + places].sum(axis=0) + 2.0 * 0.5 * draws.noising.noise(step + 1, size)
            expected -= total / (0.5 * clients)
    assert len(set(drawn)) > 1  # by chance, and not as many each time
    assert first == pytest.approx(expected, abs=2e-5)


def test_of_a_site_its_noisy_clipped_change_goes_out_from_all_its_ranks_alike():
    size, cluster = 40, isthmus.Cluster(cluster_of(2, 1))
    steps = np.random.default_rng(9).normal(size=(2, 4, size)).astype("f4")  # of each site

    def play(table, rank):
        site = cluster.site_of_rank[rank]
        kept = protection(b"0" * 31 + b"%d" % site, 2 * site, probability=1.0)
        sums = Sums(tiers_in_process(table, cluster, rank), size, 1.0 + rank, protection=kept)
        member, parameters = isthmus.LocalSteps(2).join(sums, 4), np.zeros(size, "f4")
        member.begin(parameters)
        for step in steps[site]:
            parameters -= member.gradients(step)
            member.after_step(parameters)
        return parameters

    found = in_threads(3, play)
    assert len({each.tobytes() for each in found}) == 1
    expected = np.zeros(size)
    for number in (2, 4):
        for site, weight in ((0, 0.5), (1, 0.5)):  # 1 + 2 of the ranks' 6, and 3
            change = steps[site, number - 2 : number].sum(axis=0, dtype="f8")
            change *= min(1, 0.5 / np.linalg.norm(change))
            noise = protection(b"0" * 31 + b"%d" % site, 2 * site).noising.noise(number, size)
            expected -= weight * (change + noise)
    assert found[0] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("section", "values", "wrong"),
    [
        ("strategy", {"kind": "streaming"}, 'needs strategy = "local_steps" or "federated"'),
        ("strategy", {"kind": "federated", "local": "scaffold"}, "scaffold"),
        ("strategy", {"kind": "federated", "edge_rounds": 2}, "needs strategy.edge_rounds = 1"),
        ("strategy", {"kind": "local_steps", "late": 1}, "needs strategy.late = 0"),
        ("strategy", {"kind": "local_steps", "after": 1}, "needs strategy.after = 0"),
        ("training", {"momentum": 0.9}, "needs training.optimizer"),
        ("training", {"on_non_finite": "stop"}, "needs training.on_non_finite"),
        ("run", {"checkpoint_every": 7}, "needs run.checkpoint_every to be rounds"),
        ("run", {"trace": True}, "needs run.trace = false"),
        ("security", {"keys": None}, r"needs \[security\] keys"),
    ],
)
def test_what_would_tell_more_of_sites_is_refused(tmp_path, section, values, wrong):
    table = tomllib.loads(Path("experiments/fashion_two_sites.toml").read_text())
    table["security"] = {"keys": "keys"}
    table["privacy"] = {"unit": "site", "noise": 1.0}
    table["strategy"] = {"kind": "local_steps", "every": 8}
    table["training"] |= {"momentum": 0.0, "on_non_finite": "skip"}
    table["allreduce"].pop("buckets", None)
    table[section] = values if section == "strategy" else table.get(section, {}) | values
    for name in [name for name, value in table[section].items() if value is None]:
        del table[section][name]
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(SettingsError, match=wrong):
        RunSettings.from_toml(tmp_path / "run.toml")


@pytest.mark.ranks(3)
@pytest.mark.parametrize("kind", ["federated", "local_steps"])
def test_a_job_that_tells_little_of_clients_or_sites_learns_and_resumes(comm, shared_folder, kind):
    path = lab(comm, shared_folder, (2, 1), training={"epochs": 4, "batch_size": 60, "momentum": 0.0})
    keys_of(comm, shared_folder, "site0", "site1")
    if comm.rank == 0:
        table = tomllib.loads(path.read_text())
        table["plan"]["replan"] = False
        table["cluster"]["compute"] = "real"
        table["data"]["scale"] = "none"
        table["security"] = {"keys": "keys"}
        table["privacy"] = {"unit": "site", "noise": 0.3, "clip": 1.0, "budget": 1e4}
        table["training"] |= {"on_non_finite": "skip", "learning_rate": 0.5}
        table["run"]["checkpoint_every"] = 5
        table["strategy"] = {"kind": kind} | (
            {"participants": 0.5} if kind == "federated" else {"every": 5}
        )
        if kind == "federated":
            table["training"]["batch_size"] = 10
            table["clients"] = {"split": "by_shard", "epochs": 3}
        path.write_text(tomli_w.dumps(table))
    comm.Barrier()
    told = []
    whole = job.train(comm, path, lambda line, passing=False: told.append(line))
    again = job.train(comm, path, lambda line, passing=False: None, resume=whole["folder"])
    assert again["parameter_hash"] == whole["parameter_hash"]
    if kind == "federated":  # of two sites noise leaves little
        assert whole["accuracy"] > 0.5
    if comm.rank == 0:
        table = json.loads(Path(whole["folder"], "run.json").read_text())["privacy"]
        unit, sampling = ("client", 0.5) if kind == "federated" else ("site", 1.0)
        lines = lines_of(whole, "step")
        rounds = sum(line["exchanged"] for line in lines)
        assert (table["unit"], table["sampling_probability"], table["steps"]) == (unit, sampling, rounds)
        expected = isthmus.epsilon(sampling=sampling, noise=0.3, steps=rounds, delta=1e-5)
        assert table["epsilon"] == pytest.approx(expected)
        assert table["adjacency"] == f"add or remove one {unit}"
        spent = isthmus.privacy_spent(shared_folder / "data" / "train", unit=unit)
        assert len(spent["runs"]) == 1
        assert not isthmus.privacy_spent(shared_folder / "data" / "train")["runs"]  # of samples
        assert all(line["loss"] is None and "clients" not in line for line in lines)


@pytest.mark.ranks(3)
def test_a_private_job_learns_tells_epsilon_and_resumes_to_the_same_bits(comm, shared_folder):
    path = lab(comm, shared_folder, (2, 1), training={"epochs": 2, "batch_size": 60})
    keys_of(comm, shared_folder, "site0", "site1")

    def write(**changes):
        if comm.rank == 0:
            table = tomllib.loads((shared_folder / "run.toml").read_text())
            for section, values in changes.items():
                table[section] = table.get(section, {}) | values
            path.write_text(tomli_w.dumps(table))
        comm.Barrier()

    def run(**named):
        told.clear()
        return job.train(comm, path, lambda line, passing=False: told.append(line), **named)

    told = []
    write(
        security={"keys": "keys"},
        privacy={"unit": "sample", "noise": 1.0, "clip": 0.7, "budget": 50.0},
        plan={"replan": False},
        cluster={"compute": "real"},
        run={"checkpoint_every": 13},
    )
    with pytest.raises(SettingsError, match=r'data.scale = "auto" learns from the samples'):
        run()
    write(data={"scale": "none"})
    whole = run()
    again = run(resume=whole["folder"])
    assert again["parameter_hash"] == whole["parameter_hash"]
    other = run()
    assert other["parameter_hash"] != whole["parameter_hash"]  # another run draws anew
    assert whole["accuracy"] > 0.5
    if comm.rank == 0:
        table = json.loads(Path(whole["folder"], "run.json").read_text())["privacy"]
        expected = isthmus.epsilon(sampling=0.1, noise=1.0, steps=20, delta=1e-5)
        assert table["epsilon"] == pytest.approx(expected)
        assert table["steps"] == 20
        spent = isthmus.privacy_spent(shared_folder / "data" / "train")
        assert len(spent["runs"]) == 2  # the one that went on is told once
        assert spent["epsilon"] > 1.3 * expected
        assert any("privacy: epsilon" in line and "of 50" in line for line in told)
        assert any("loss not told" in line for line in told)
        lines = lines_of(whole, "step")
        assert all(line["loss"] is None for line in lines)
        assert len({line["terms"]["compute"] for line in lines}) <= 6  # of whole reports
    if find_spec("torch") is not None:
        if comm.rank == 0:
            (shared_folder / "nets.py").write_text(NET)
            table = tomllib.loads(path.read_text()) | {"model": {"kind": "nets:net"}}
            table["training"]["epochs"] = 3
            path.write_text(tomli_w.dumps(table))
        comm.Barrier()
        own = run()
        assert own["accuracy"] > 0.5
    write(privacy={"budget": 0.5})
    with pytest.raises(SettingsError, match="of the budget of 0.5"):
        run()
