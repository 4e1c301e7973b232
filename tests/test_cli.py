"""The command line as a user meets it: a run from start to report, and every mistake in one line."""

import html
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from patience import SECONDS, launched, until
from typer.main import get_command

import isthmus
from isthmus.cli import main as cli
from isthmus.errors import SettingsError
from isthmus.jobs.launch import mpirun, rank_environment
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.train import train
from isthmus.pages.report import write_report

pytestmark = pytest.mark.slow

ISTHMUS = [sys.executable, "-m", "isthmus"]
RUN = {
    "cluster": {"file": "cluster.toml"},
    "data": {"train": "data/train", "test": "data/test"},
    "model": {"kind": "perceptron", "inputs": 16, "hidden": [8], "classes": 3},
    "training": {"epochs": 4, "batch_size": 30, "learning_rate": 0.1, "seed": 3},
    "allreduce": {"compressor": {"kind": "int8", "block": 16}},
    "run": {"folder": "runs", "checkpoint_every": 15, "report_every": 7},
}


def command(ranks, *arguments):
    start = [mpirun(), "-n", str(ranks)] if ranks else []
    return [*start, *ISTHMUS, *map(str, arguments)]


def call(folder, ranks, *arguments):
    return launched(command(ranks, *arguments), cwd=folder, env=rank_environment(COLUMNS="200"))


def pack_lab(folder):
    """Put into `folder` a cluster of three ranks, 300 samples in 20 shards, and a run's settings."""
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, 360, dtype="u1")
    features = (draw.normal(size=(360, 16)) + 2 * (np.arange(16) % 3 == targets[:, None])).astype("f4")
    for part, rows, shards in (("train", slice(0, 300), 20), ("test", slice(300, 360), 3)):
        isthmus.pack_shards(
            {"features": features[rows], "targets": targets[rows]}, folder / "data" / part, shards
        )
    write(folder, cluster=cluster_of(1, 2), run=RUN)


@pytest.fixture
def lab(tmp_path):
    """A folder that `pack_lab` has filled."""
    pack_lab(tmp_path)
    return tmp_path


def write(folder, **tables):
    for name, table in tables.items():
        (folder / f"{name}.toml").write_text(tomli_w.dumps(table))


def with_changes(table, changes):
    """Return a copy of `table` with "section.key" set, or dropped where the value is None."""
    table = json.loads(json.dumps(table))
    for path, value in changes.items():
        *sections, key = path.split(".")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
        place.pop(key, None) if value is None else place.update({key: value})
    return table


def test_a_run_from_settings_to_report(lab):
    done = call(lab, 3, "train", "run.toml", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    folder = Path(summary["folder"])
    assert summary["outcome"] == "finished"
    assert summary["steps"] == 40
    assert summary["accuracy"] > 0.6
    assert {(link["source"], link["target"]) for link in summary["links"]} == {
        ("site0", "site1"),
        ("site1", "site0"),
    }
    model = isthmus.Int8(16).wire_nbytes(16 * 8 + 8 + 8 * 3 + 3)
    for link in summary["links"]:
        assert link["sent_nbytes"] == link["predicted_nbytes"] == 40 * model
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "cluster.toml",
        "plan.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoint.h5",
        "model.h5",
        "report.html",
        "logs",
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 41))
    assert sum(line["kind"] == "evaluation" for line in lines) == 4
    assert "accuracy" in done.stderr
    assert done.stderr.count("run folder") == 1
    run = json.loads((folder / "run.json").read_text())
    assert run["settings"]["training"]["epochs"] == 4
    assert len(run["hosts"]) == 3
    (folder / "report.html").unlink()
    again = call(lab, 0, "report", folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(lab):
    """Paced links make each step last long enough for the signal to come in time."""
    long = {"training.epochs": 20, "cluster.links": "paced"}
    cluster = cluster_of(1, 2, latency_seconds=0.03)
    write(lab, cluster=cluster, run=with_changes(RUN, long | {"cluster.links": "real"}))
    whole = json.loads(call(lab, 3, "train", "run.toml", "--json").stdout)
    shutil.rmtree(lab / "runs")
    write(lab, run=with_changes(RUN, long))
    process = subprocess.Popen(
        command(3, "train", "run.toml"),
        cwd=lab,
        env=rank_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: list(lab.glob("runs/*/checkpoint.h5")))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=SECONDS)
    (folder,) = lab.glob("runs/*")
    assert not (folder / "summary.json").exists(), "the run ended before it was stopped"
    checkpoint, leftover = folder / "checkpoint.h5", folder / "checkpoint.h5.4711.partial"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:1816] + bytes([content[1816] ^ 64]) + content[1817:])
    damaged = call(lab, 3, "train", "run.toml", "--resume", folder)
    assert damaged.returncode == 9
    assert damaged.stderr.count("checkpoint.h5: is damaged") == 1
    checkpoint.write_bytes(content)
    leftover.write_bytes(content[:100])
    resumed = call(lab, 3, "train", "run.toml", "--resume", folder, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert not leftover.exists()
    summary = json.loads(resumed.stdout)
    assert summary["parameter_hash"] == whole["parameter_hash"]
    assert summary["links"] == whole["links"]
    assert summary["accuracy"] == whole["accuracy"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 201))


@pytest.mark.slow
def test_ranks_in_another_order_leave_the_same_bits_and_the_same_folder(lab):
    """The job's rank 0 writes the results, whichever cluster rank it is."""
    hashes = []
    write(lab, run=with_changes(RUN, {"run.checkpoint_every": 20}))  # the last step has one too
    for places in ([0], [1, 2]), ([2], [0, 1]):
        table = cluster_of(1, 2)
        for site, ranks in zip(table["site"], places):
            site["world_ranks"] = ranks
        write(lab, cluster=table)
        done = call(lab, 3, "train", "run.toml", "--json")
        assert done.returncode == 0, done.stderr
        assert "accuracy" in done.stderr
        summary = json.loads(done.stdout)
        assert (Path(summary["folder"]) / "checkpoint.h5").exists()
        hashes.append(summary["parameter_hash"])
        resumed = call(lab, 3, "train", "run.toml", "--resume", summary["folder"], "--json")
        assert resumed.returncode == 0, resumed.stderr
        assert json.loads(resumed.stdout) == summary
    assert hashes[0] == hashes[1]


def test_a_compressor_that_asks_for_the_models_shapes_gets_them():
    for given, shapes in (({}, ((16, 8), (8,), (8, 3), (3,))), ({"shapes": [[163]]}, ((163,),))):
        table = RUN | {"allreduce": {"compressor": {"kind": "low_rank", "rank": 3, **given}}}
        settings = RunSettings.model_validate(table)
        assert settings.make_compressor() == isthmus.LowRank(3, shapes)
        assert RunSettings.from_json(settings.to_json(), "here") == settings


@pytest.mark.ranks(3)
@pytest.mark.parametrize(
    "changes",
    [
        {"allreduce": {"algorithm": "ring"}},
        {"allreduce": {"algorithm": "mpi"}},
        {"allreduce": {"algorithm": "tree"}},
        {"allreduce": {"algorithm": "recursive"}},
        {"allreduce": {"compressor": "int4", "buckets": 3}},
        {"allreduce": {"algorithm": "auto", "largest_error": 0.02}},
        {
            "model": {"kind": "convolutional", "height": 4, "width": 4, "channels": [3], "classes": 3},
            "allreduce": {"compressor": {"kind": "top_k", "ratio": 0.1, "selector": "threshold"}},
        },
        {
            "model": {"kind": "convolutional", "height": 4, "width": 4, "channels": [3], "classes": 3},
            "allreduce": {"compressor": {"kind": "low_rank", "rank": 1}},
        },
    ],
)
def test_other_algorithms_and_models_train_too(comm, shared_folder, changes):
    if comm.rank == 0:
        pack_lab(shared_folder)
        write(shared_folder, run=with_changes(RUN, {**changes, "training.epochs": 1}))
    comm.Barrier()
    told = []
    summary = train(comm, shared_folder / "run.toml", lambda line, passing=False: told.append(line))
    assert summary["outcome"] == "finished"
    for link in summary["links"]:
        assert link["sent_nbytes"] == link["predicted_nbytes"]
    if comm.rank == 0 and changes.get("allreduce", {}).get("algorithm") == "auto":
        why = json.loads(Path(summary["folder"], "run.json").read_text())["choice"]["reason"]
        assert why in html.unescape(write_report(summary["folder"]).read_text())
        assert f"allreduce: {why}" in told
    comm.Barrier()


@pytest.mark.slow
def test_calibration_finds_the_paced_links_and_the_plan_uses_them(lab):
    table = cluster_of(1, 2, latency_seconds=0.005, bytes_per_second=2e7)
    write(lab, cluster=table, run=with_changes(RUN, {"cluster.links": "paced"}))
    done = call(lab, 3, "calibrate", "run.toml", "-o", "measured.toml", "--repetitions", 3, "--json")
    assert done.returncode == 0, done.stderr
    cluster = isthmus.Cluster.from_toml(lab / "measured.toml")
    assert json.loads(done.stdout) == cluster.to_table()
    assert cluster.rates != (1000.0, 500.0, 500.0)
    assert cluster.sites[0].encode_bytes_per_second < float("inf")
    assert cluster.sites[0].memory_bytes_per_second > 1e8
    assert cluster.calibration.version == 1
    assert set(cluster.calibration.overhead_seconds) == {"ring", "hierarchical"}  # of what can be paced
    for way in (*cluster.links, cluster.sites[1].network):
        assert way.messages.nbytes[0] == 4
    for link in cluster.links:
        for nbytes in link.streams.nbytes:  # never early; a busy machine may be late
            latency, rate = link.line(nbytes)
            assert latency + nbytes / rate >= 0.999 * (0.005 + nbytes / 2e7)
    for kind in ("Int8(block=16", "Int8(block=256", "Int4(", "OneBit(", "TopK(", "LowRank(", "Dense("):
        assert any(coding.compressor.startswith(kind) for coding in cluster.sites[0].coding), kind
    planned = call(lab, 0, "plan", "run.toml", "--cluster", "measured.toml", "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert sum(plan["samples_of_rank"]) == 300
    assert plan["terms"]["links"] >= 0.0049


def test_the_plan_is_printed_as_a_table(lab):
    done = call(lab, 0, "plan", "run.toml", "--launch")
    assert done.returncode == 0
    for text in ("site0", "site1", "150", "75", "waits", "gap", "a step", "mpirun -n 3", "slow_start"):
        assert text in done.stdout
    assert done.stderr == ""


def test_the_plan_takes_its_objective_and_limits_from_the_settings(lab, capsys):
    """And says in sentences what more of each would save."""

    def planned(**limits):
        write(lab, run=with_changes(RUN, {"plan": limits, "data.site": "site1"}))
        told = []
        for form in (["--json"], []):
            cli.app(["plan", str(lab / "run.toml"), *form], standalone_mode=False)
            told.append(capsys.readouterr().out)
        return json.loads(told[0]), " ".join(told[1].split())

    plan, told = planned()
    assert "10 % more computing on every rank of site0 saves" in told
    assert "if it was meant in bits per second, write 1.25e+07" in told
    assert plan["staging_seconds"] > 0
    total, told = planned(objective="total_time", least_samples=30, forbidden={"0": ["site0"]})
    assert "total_time:" in told
    assert total["samples_of_rank"] == [240, 30, 30]
    assert 0 not in total["shards_of_rank"][0]
    limits = {"objective": "weighted", "alpha": 1e6, "staged_epochs": 2, "pinned": {"1": "site0"}}
    weighted, _ = planned(**limits)
    assert weighted["shards_of_rank"][0] == [1]
    write(lab, cluster=cluster_of(2, 1, latency_seconds=0.005))
    plan, told = planned()
    (advice,) = plan["advice"]
    assert advice.startswith('objective = "period" under [plan] would take ')
    assert 'objective = "period" under [plan]' in told
    period, told = planned(objective="period")
    assert f"{period['epoch_seconds']:.3f} s an epoch" in advice
    assert period["advice"] == []
    assert "period:" in told
    for name, value in (("objective", "beauty"), ("alpha", -1), ("least_samples", "many")):
        write(lab, run=with_changes(RUN, {f"plan.{name}": value}))
        with pytest.raises(SettingsError, match=f"plan.{name}"):
            RunSettings.from_toml(lab / "run.toml")


def test_files_are_packed_from_the_command_line(lab):
    np.savez(lab / "images.npz", x=np.zeros((10, 4), "u1"), y=np.arange(10))
    done = call(
        lab,
        0,
        "pack",
        "set",
        "-a",
        "features=images.npz:x",
        "-a",
        "targets=images.npz:y",
        "--shards",
        3,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 10
    shards = isthmus.ShardSet.open(lab / "set")
    shards.verify()
    assert list(shards.arrays) == ["features", "targets"]
    assert call(lab, 0, "pack", "set", "-a", "a=images.npz:x").returncode == 5


def verbs_of(group, *names):
    """Yield the names that lead to each command below a group of commands, and to the group."""
    yield names
    for name, command in getattr(group, "commands", {}).items():
        yield from verbs_of(command, *names, name)


@pytest.mark.parametrize("verb", list(verbs_of(get_command(cli.app))), ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(verb, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.app([*verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "Usage: " in text
    assert max(map(len, text.splitlines())) <= 80
    assert "<bool>" not in text
    assert " range" not in text  # a number is a NUMBER; its least is told where it is refused


def test_help_is_shown_by_one_rank(tmp_path):
    done = call(tmp_path, 3, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == 1
    assert done.stdout.count("\n\n\n") == 0
