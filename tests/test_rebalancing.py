"""A run whose ranks change their pace: shards move, and the run is the same whoever holds what."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of

import isthmus
from isthmus.jobs import train as job
from isthmus.jobs.settings import PlanSettings
from isthmus.links.agreement import gather_json
from isthmus.pages.report import write_report
from isthmus.planning.replanning import Replanner
from isthmus.shards.scattering import scatter_shards
from isthmus.training.loop import Training

STEPS, EPOCHS = 10, 6
RATE = 500.0  # samples per second of a rank that is not slow


def lab(comm, folder, sites=(2, 2), link=(), **changes):
    """Write a cluster of like ranks, 600 samples in 60 shards, and a run's settings."""
    cluster = cluster_of(*sites, **{"bytes_per_second": 2e7} | dict(link))
    for site in cluster["site"]:
        site["samples_per_second"] = RATE
    run = {
        "cluster": {"file": "cluster.toml", "compute": "paced"},
        "data": {"train": "data/train", "test": "data/test"},
        "model": {"kind": "perceptron", "inputs": 16, "hidden": [8], "classes": 3},
        "training": {"epochs": EPOCHS, "batch_size": 60, "seed": 3},
        "allreduce": {"compressor": {"kind": "int8", "block": 16}},
        "plan": {"replan": True},
        "run": {"folder": "runs", "report_every": 7, "checkpoint_every": 3 * STEPS + 5},
    }
    for section, values in changes.items():
        run[section] |= values
    if comm.rank == 0:
        draw = np.random.default_rng(0)
        targets = draw.integers(0, 3, 660, dtype="u1")
        features = (draw.normal(size=(660, 16)) + (np.arange(16) % 3 == targets[:, None])).astype("f4")
        for part, rows, shards in (("train", slice(0, 600), 60), ("test", slice(600, 660), 4)):
            isthmus.pack_shards(
                {"features": features[rows], "targets": targets[rows]}, folder / "data" / part, shards
            )
        for name, table in (("cluster", cluster), ("run", run)):
            (folder / f"{name}.toml").write_text(tomli_w.dumps(table))
    comm.Barrier()
    return folder / "run.toml"


def pace(monkeypatch, rank, slow_from, noise=0.0):
    """Hold ranks to RATE; `rank` to a third of it from step `slow_from` of the run on."""

    def hold_seconds(tiers, settings):
        made, draw = [0], np.random.default_rng(tiers.world.rank)

        def hold(samples):
            made[0] += 1
            slow = tiers.world.rank == rank and made[0] > slow_from
            return samples / RATE * (3 if slow else 1) * max(0.2, draw.normal(1, noise))

        return hold

    monkeypatch.setattr("isthmus.jobs.making.hold_seconds", hold_seconds)


def lines_of(summary, kind):
    text = Path(summary["folder"], "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


@pytest.mark.ranks(4)
@pytest.mark.parametrize("slow_from", [STEPS, STEPS + 3, STEPS + 8])
def test_a_rank_that_slows_to_a_third_has_less_to_do_within_two_epochs(
    comm, shared_folder, monkeypatch, slow_from
):
    path = lab(comm, shared_folder)
    pace(monkeypatch, 3, slow_from)
    summary = job.train(comm, path, lambda line, passing=False: None)
    if comm.rank == 0:
        moved = [
            line
            for line in lines_of(summary, "replanned")
            if 3 in [each["rank"] for each in line["changed"]]
        ]
        assert moved[0]["step"] <= slow_from + 2 * STEPS
        assert moved[-1]["samples_of_rank"][3] < 90  # 60 are best, 150 were planned
        computing = [line["terms"]["compute"] for line in lines_of(summary, "step")]
        slow, after = (
            np.median(computing[slow_from : moved[0]["step"]]),
            np.median(computing[4 * STEPS :]),
        )
        assert after < 0.6 * slow  # 1/2.5 of it where shards are divisible
        page = write_report(summary["folder"]).read_text()
        assert "rank 3 computes" in page
        assert "shards (" in page


@pytest.mark.ranks(4)
def test_constant_ranks_keep_what_they_have_under_noise(comm, shared_folder, monkeypatch):
    path = lab(comm, shared_folder)
    pace(monkeypatch, 3, 10**9, noise=0.1)
    summary = job.train(comm, path, lambda line, passing=False: None)
    if comm.rank == 0:
        assert lines_of(summary, "replanned") == []


@pytest.mark.ranks(4)
def test_a_run_that_resumes_after_a_move_ends_with_the_bits_of_one_that_was_not_stopped(
    comm, shared_folder, monkeypatch
):
    """And both with those of a run whose shards were scattered to where they are now."""
    path = lab(comm, shared_folder)
    pace(monkeypatch, 3, 5)
    whole = job.train(comm, path, lambda line, passing=False: None)
    moves = [line["step"] for line in lines_of(whole, "replanned") if line["shards"]]
    assert moves[0] <= 2 * STEPS
    assert moves[-1] <= 3 * STEPS  # before the only checkpoint
    held = []
    real = scatter_shards
    monkeypatch.setattr(
        "isthmus.jobs.preparation.scatter_shards",
        lambda *args, **named: held.append(real(*args, **named)) or held[-1],
    )
    pace(monkeypatch, 3, 0)
    again = job.train(comm, path, lambda line, passing=False: None, resume=whole["folder"])
    assert again["parameter_hash"] == whole["parameter_hash"]
    assert again["folder"] == whole["folder"]
    assert [line["step"] for line in lines_of(again, "replanned") if line["shards"]] == moves
    assert held[0].samples == 150  # by the plan; then it moved


@pytest.mark.ranks(4)
def test_batches_and_weights_follow_the_shards(comm, shared_folder, monkeypatch):
    path = lab(comm, shared_folder, run={"checkpoint_every": 10**6})
    pace(monkeypatch, 0, STEPS)
    seen = []
    original = job.Job.finish

    def finish(self):
        training = self.training
        sizes = [len(targets) for _, targets in training.local.batches(steps=STEPS, epoch=0)]
        seen.append(
            [
                training.local.samples,
                min(sizes),
                max(sizes),
                float(training.member.gradients.share),
                sorted(self.rebalancing.rank_of_shard.tolist()).count(comm.rank),
            ]
        )
        return original(self)

    monkeypatch.setattr(job.Job, "finish", finish)
    job.train(comm, path, lambda line, passing=False: None)
    everyone = np.array(gather_json(comm, seen[0]))
    samples, least, most, share, shards = everyone.T
    assert samples.sum() == 600
    assert samples[0] < 90
    np.testing.assert_array_equal(shards * 10, samples)
    np.testing.assert_array_equal(least, samples // STEPS)
    np.testing.assert_array_equal(most, -(-samples // STEPS))
    np.testing.assert_allclose(share, samples / 600, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_a_rank_with_a_third_of_a_processor_is_relieved(comm, shared_folder, monkeypatch):
    """For real: from the third epoch on rank 1 is stopped for 10 of every 15 ms."""
    path = lab(comm, shared_folder, (1, 1), training={"epochs": 6}, run={"checkpoint_every": 10**6})
    limit = (
        "import os, signal, time\n"
        "while os.getppid() == {0}:\n"
        "    os.kill({0}, signal.SIGSTOP); time.sleep(0.01)\n"
        "    os.kill({0}, signal.SIGCONT); time.sleep(0.005)\n"
    )
    limiter = []

    def hold_seconds(tiers, settings):
        made = [0]

        def hold(samples):
            made[0] += 1
            if tiers.world.rank == 1 and made[0] == 2 * STEPS + 1:
                limiter.append(subprocess.Popen([sys.executable, "-c", limit.format(os.getpid())]))
            return 0.0

        return hold

    monkeypatch.setattr("isthmus.jobs.making.hold_seconds", hold_seconds)
    # Computing that takes the processor's time, in proportion to its samples, on any machine: RATE. A
    # step must be long beside the stops, or a rank may have all of them while it waits.
    compute = Training._compute

    def heavy(self, features, targets, start):
        end = time.process_time() + len(targets) / RATE
        while time.process_time() < end:
            pass
        return compute(self, features, targets, start)

    monkeypatch.setattr(Training, "_compute", heavy)
    try:
        summary = job.train(comm, path, lambda line, passing=False: None)
    finally:
        for process in limiter:
            process.kill()
            process.wait()
            os.kill(os.getpid(), signal.SIGCONT)
    if comm.rank == 0:
        moved = [line for line in lines_of(summary, "replanned") if line["shards"]]
        before = [line["samples_of_rank"][1] for line in moved if line["step"] <= 2 * STEPS] or [300]
        after = [line["samples_of_rank"][1] for line in moved if 2 * STEPS < line["step"] <= 4 * STEPS]
        assert after, moved
        assert after[-1] < 0.75 * before[-1], moved


@pytest.mark.slow
@pytest.mark.ranks(3)
def test_a_run_whose_steps_follow_one_another_is_planned_again_for_that(
    comm, shared_folder, monkeypatch
):
    """The hub stays ahead by the wires' way while a rank slows down."""
    path = lab(
        comm,
        shared_folder,
        (1, 2),
        link={"latency_seconds": 0.02},
        plan={"objective": "period"},
        training={"epochs": 4},
        run={"checkpoint_every": 10**6},
    )
    pace(monkeypatch, 2, 5)
    found, real = [], Replanner.plan_again

    def plan_again(self, rank_of_shard, rates, left):
        made = real(self, rank_of_shard, rates, left)
        if made.moved:
            found.append((self, rates.copy(), left, rank_of_shard.copy()))
        return made

    monkeypatch.setattr(Replanner, "plan_again", plan_again)
    summary = job.train(comm, path, lambda line, passing=False: None)
    if comm.rank == 0:
        plan = json.loads(Path(summary["folder"], "plan.json").read_text())
        assert plan["objective"] == "period"
        moves = [line for line in lines_of(summary, "replanned") if line["shards"]]
        assert moves[0]["step"] <= 2 * STEPS
        planner, rates, left, old = found[0]
        counts = [10] * 60
        again, other = (
            Replanner(planner.cluster, counts, planner.workload, objective=name).plan_again(
                old, rates, left
            )
            for name in ("period", "makespan")
        )
        assert moves[0]["samples_of_rank"] == list(again.samples_of_rank) != list(other.samples_of_rank)


@pytest.mark.parametrize(
    "limits",
    [
        {"objective": "total_time"},
        {"objective": "weighted", "alpha": 0.0},
        {"budget": 3.0},
        {"objective": "period", "budget": 3.0},
    ],
)
def test_replanning_for_anything_but_time_is_refused(limits):
    with pytest.raises(ValueError, match='replan = true needs objective = "makespan" or "period"'):
        PlanSettings(replan=True, **limits)


@pytest.mark.parametrize("objective", ["makespan", "period"])
def test_plans_for_time_may_be_made_again(objective):
    assert "replan" not in PlanSettings(replan=True, objective=objective).limits()
