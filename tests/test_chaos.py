"""Deaths that are planned: from a file or at random, and the sheet that says what came of them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clusters import cluster_of
from test_resuming import pack, settings

from isthmus.errors import SettingsError
from isthmus.jobs.chaos import chaos_words, play_faults
from isthmus.jobs.fault_plans import planned_faults, random_faults

ROOT = Path(__file__).parents[1]


def test_deaths_are_planned_by_run(tmp_path):
    path = tmp_path / "faults.toml"
    path.write_text(
        '[[fault]]\nrank = 1\nstep = 3\nmoment = "send"\nnumber = 2\n'
        '[[fault]]\nrank = 0\nstep = 4\nmoment = "agree"\nrun = 5\n'
    )
    first, second = planned_faults(path)
    assert [*map(str, first)] == ["rank 1 in send 2 of step 3"]
    assert [*map(str, second)] == ["rank 0 in agree of step 4"]
    path.write_text('[[fault]]\nrank = 1\nstep = 0\nmoment = "send"\n')
    with pytest.raises(SettingsError, match="step"):
        planned_faults(path)
    path.write_text('[[fault]]\nrank = 1\nstep = 1\nmoment = "lunch"\n')
    with pytest.raises(SettingsError, match="moment"):
        planned_faults(path)


def test_deaths_at_random_depend_on_the_seed_alone_and_can_happen(tmp_path):
    for name in ("train", "test"):
        pack(tmp_path, name)
    path = settings(tmp_path, cluster=cluster_of(2, 1))
    made = random_faults(path, 60, seed=1)
    assert made == random_faults(path, 60, seed=1) != random_faults(path, 60, seed=2)
    faults = [fault for each in made for fault in each]
    assert {len(each) for each in made} == {1, 2}
    assert {fault.rank for fault in faults} == {0, 1, 2}
    assert all(1 <= fault.step <= 10 for fault in faults)
    assert all(fault.step % 5 == 0 for fault in faults if fault.moment in ("evaluation", "checkpoint"))
    with pytest.raises(SettingsError, match="has ranks 0 to 0"):
        play_faults(settings(tmp_path, cluster=cluster_of(1)), made, 1.0, print)


@pytest.mark.slow
def test_a_run_is_held_against_what_is_promised(tmp_path):
    for name in ("train", "test"):
        pack(tmp_path, name)
    survive = {"recovery": {"survive": True}, "run": {"folder": str(tmp_path / "runs")}}
    path = settings(tmp_path, cluster=cluster_of(1, 1), **survive)
    (tmp_path / "faults.toml").write_text('[[fault]]\nrank = 0\nstep = 7\nmoment = "allreduce"\n')
    made = play_faults(path, planned_faults(tmp_path / "faults.toml"), 300.0, lambda line: None)
    (row,) = made["runs"]
    assert (made["wrong"], row["outcome"], row["lost"]) == (0, "went on", [0]), row
    assert row["verified"] == "bits equal, each sample once in 2 epochs"
    assert "rank 0 gone, 1 go on" in row["said"]
    assert json.dumps(made)
    assert chaos_words(made)[1] == "1 runs: 0 wrong, 0 started once more"


@pytest.mark.slow
def test_a_small_campaign_of_kills_finds_nothing_wrong_and_goes_on_where_it_was(tmp_path):
    for _ in range(2):  # the second finds nothing left to do
        done = subprocess.run(
            [sys.executable, "experiments/chaos_campaign.py", "--seed", "3", "--kills", "5"]
            + ["-o", str(tmp_path / "rows.jsonl")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows] == [*range(len(rows))]
    assert sum(row["happened"] for row in rows) in (5, 6)
    assert all(row["verified"].startswith("bits equal, each sample once") for row in rows)


def test_what_was_started_ends_where_chaos_is_interrupted(tmp_path, monkeypatch):
    for name in ("train", "test"):
        pack(tmp_path, name)
    path = settings(tmp_path, cluster=cluster_of(1), run={"folder": str(tmp_path / "runs")})
    fault = tmp_path / "faults.toml"
    fault.write_text('[[fault]]\nrank = 0\nstep = 7\nmoment = "allreduce"\n')
    started, wait = [], subprocess.Popen.communicate

    def interrupted(process, *arguments, **named):
        started.append(process)
        if len(started) == 1:
            raise KeyboardInterrupt
        return wait(process, *arguments, **named)

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    forever = tmp_path / "mpirun"
    forever.write_text("#!/bin/sh\nexec sleep 60\n")
    forever.chmod(0o700)
    monkeypatch.setattr("isthmus.jobs.chaos.mpirun", lambda: str(forever))
    with pytest.raises(KeyboardInterrupt):
        play_faults(path, planned_faults(fault), 60.0, print)
    assert started[0].returncode == -signal.SIGTERM
