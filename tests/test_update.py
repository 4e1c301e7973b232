"""The update of the parameters, and Python's own time, as terms of a step: predicted and measured."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from clusters import cluster_of

import isthmus
from isthmus.jobs.settings import RunSettings
from isthmus.registry import ALLREDUCE_STAGES
from isthmus.timing.simulation import simulate
from isthmus.timing.step import exchange_seconds, predict_step
from isthmus.timing.time_model import Workload
from isthmus.training.optimisers import SGD, AdamW, optimiser_of

ROOT = Path(__file__).resolve().parents[1]
MOMENTUM = repr(SGD())
WORKLOAD = Workload(250_000, 150, optimiser=MOMENTUM, update_nbytes=5e6)


def measured(*seconds_of_site, python=0.0, **more):
    """Two sites whose updates of 16 kB and 2 MB take `seconds_of_site`."""
    table = cluster_of(1, 1)
    for site, seconds in zip(table["site"], seconds_of_site):
        rows = {"optimiser": MOMENTUM, "nbytes": [16_000, 2_000_000], "seconds": list(seconds)}
        site |= {"update": [rows], "python_seconds": python} | more
    return isthmus.Cluster(table)


def terms_of(cluster, workload=WORKLOAD):
    return predict_step(cluster, [100, 50], workload)


def test_an_update_takes_what_calibration_found_of_its_optimiser_at_the_slowest_site():
    cluster = measured([0.001, 0.003], [0.002, 0.004], python=0.0005)
    assert isthmus.Cluster(cluster.to_table()).to_table() == cluster.to_table()
    without = terms_of(cluster, replace(WORKLOAD, optimiser=None))
    assert (without["update"], without["python"]) == (0.0, 0.0005)
    half_way = 0.002 + 0.002 * (1_000_000 - 16_000) / (2_000_000 - 16_000)
    terms = terms_of(cluster)
    assert terms["update"] == pytest.approx(half_way)
    assert {name: terms[name] for name in ALLREDUCE_STAGES} == {
        name: without[name] for name in ALLREDUCE_STAGES
    }
    kin = terms_of(cluster, replace(WORKLOAD, optimiser=repr(SGD(0.1, momentum=0.5))))
    assert kin["update"] == terms["update"]
    rounds = replace(WORKLOAD, exchanges_per_step=1 / 8, site_sums_per_step=1.0)
    assert terms_of(cluster, rounds)["update"] == terms["update"]  # it is made in every step
    assert exchange_seconds(cluster, 0.1, rounds) == pytest.approx(
        sum(terms[name] for name in ALLREDUCE_STAGES)
    )


def test_an_update_that_was_not_measured_takes_its_bytes_over_the_memorys_rate():
    """As in files that are older than this, or of another optimiser."""
    assert terms_of(isthmus.Cluster(cluster_of(1, 1)))["update"] == 0.0
    table = cluster_of(1, 1)
    for site, rate in zip(table["site"], (4e9, 2e9)):
        site["memory_bytes_per_second"] = rate
    assert terms_of(isthmus.Cluster(table))["update"] == pytest.approx(5e6 / 2e9)
    other = measured([1.0, 1.0], [1.0, 1.0], memory_bytes_per_second=1e9)
    dear = replace(WORKLOAD, optimiser=repr(AdamW()), update_nbytes=7e6)
    assert terms_of(other, dear)["update"] == pytest.approx(7e6 / 1e9)


@pytest.mark.parametrize(
    ("optimizer", "nbytes"),
    [
        ('"sgd"', 20),
        ('{ kind = "sgd", momentum = 0.0 }', 12),
        ('"adamw"', 28),
        ('"adamw"\nclip_norm = 1.0', 32),
        ('"torch.optim.SGD"', 12),
        ('"torch.optim.AdamW"', 28),
    ],
)
def test_a_run_says_which_bytes_its_optimiser_moves(tmp_path, optimizer, nbytes):
    if "torch" in optimizer:
        pytest.importorskip("torch")
    path = tmp_path / "run.toml"
    text = (ROOT / "experiments/fashion_two_sites.toml").read_text().replace("momentum = 0.9", "")
    path.write_text(text.replace("[training]", f"[training]\noptimizer = {optimizer}"))
    workload = RunSettings.from_toml(path).workload()
    assert workload.update_nbytes == nbytes * workload.size
    name = optimizer.split('"')[1]
    kind = name if "torch" in name else type(optimiser_of(name, {})).__name__
    assert workload.optimiser.startswith(f"{kind}(")
    assert workload.optimiser.endswith(" of what is clipped") == ("clip" in optimizer)


@pytest.mark.parametrize("objective", ["makespan", "period"])
def test_plans_and_simulations_take_as_much_longer_as_updates_take(objective):
    cluster = measured([0.004, 0.004], [0.004, 0.004], python=0.001)
    free, dear = (
        isthmus.plan_shards(cluster, [50] * 30, replace(WORKLOAD, optimiser=name), objective)
        for name in (None, MOMENTUM)
    )
    assert dear.samples_of_rank == free.samples_of_rank
    assert dear.step_seconds - free.step_seconds == pytest.approx(0.004)
    for name in ("objective_seconds", "lower_bound_seconds", "epoch_seconds"):
        saved = getattr(dear, name) - getattr(free, name)
        assert saved == pytest.approx(dear.steps * 0.004), name
    for local_steps in (1, 4):
        made, without = (
            simulate(cluster, replace(WORKLOAD, optimiser=name), steps=8, local_steps=local_steps)
            for name in (MOMENTUM, None)
        )
        assert made.seconds - without.seconds == pytest.approx(8 * 0.004)
        assert made.update_seconds == pytest.approx(8 * 0.005)
        for name in ("compute_seconds", "wait_seconds", "exchange_seconds"):
            assert getattr(made, name) == pytest.approx(getattr(without, name)), name


class Slow(SGD):
    """Takes 100 ms more a step."""

    def step(self, *arguments):
        time.sleep(0.1)
        super().step(*arguments)


@pytest.mark.ranks(1)
def test_the_loop_itself_says_what_updates_and_python_take(comm):
    from isthmus.measuring.loop import loop_seconds

    fast, slow = (loop_seconds(1000, kind(), 1.0, 5) for kind in (SGD, Slow))
    assert slow.update >= 0.1 > fast.update > 0
    assert 0 < slow.python < 0.1
    assert 0 < slow.compute < 0.1
