"""A run that goes on: with its own data, settings and cluster, or it is refused in words."""

import json

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of

import isthmus
from isthmus.errors import CheckpointError, IsthmusError, OutputError, SettingsError, ShardError
from isthmus.folders.lock import FolderLock
from isthmus.folders.status import describe_run
from isthmus.jobs import train as job
from isthmus.jobs.verifying import verify_steps
from isthmus.links.agreement import broadcast_json, from_root, gather_json
from isthmus.pages.report import write_report
from isthmus.training.identity import difference_in_words

RUN = {
    "cluster": {"file": "cluster.toml"},
    "data": {"train": "data/train", "test": "data/test"},
    "model": {"kind": "perceptron", "inputs": 8, "hidden": [4], "classes": 3},
    "training": {"epochs": 2, "batch_size": 24},
    "run": {"folder": "runs", "checkpoint_every": 5},
}


def pack(folder, name, seed=0, samples=120, shards=6):
    draw = np.random.default_rng(seed)
    arrays = {
        "features": np.arange(samples * 8, dtype="f4").reshape(samples, 8),
        "targets": draw.integers(0, 3, samples, dtype="u1"),
    }
    isthmus.pack_shards(arrays, folder / "data" / name, shards)


def settings(folder, table=RUN, name="run.toml", cluster=None, **sections):
    """Write settings with keys of sections changed, and a cluster file; return the settings' path."""
    table = {section: {**values, **sections.get(section, {})} for section, values in table.items()}
    table |= {section: values for section, values in sections.items() if section not in table}
    if cluster:
        table["cluster"] = {"file": f"{name}-cluster.toml"}
    (folder / table["cluster"]["file"]).write_text(tomli_w.dumps(cluster or cluster_of(1, 1)))
    (folder / name).write_text(tomli_w.dumps(table))
    return folder / name


def go(comm, path, **options):
    """Train; return the summary, or the error that every rank has raised alike."""
    try:
        return job.train(comm, path, lambda line, passing=False: None, **options)
    except IsthmusError as caught:
        problem = caught
    assert problem.everywhere
    assert len(set(gather_json(comm, str(problem)))) == 1
    return problem


@pytest.mark.ranks(2)
def test_a_run_goes_on_as_what_it_was_or_is_refused_in_words(comm, shared_folder):
    folder = shared_folder

    def prepare():
        for name, seed in (("train", 0), ("test", 0), ("other", 1)):
            pack(folder, name, seed)
        settings(folder)
        settings(folder, name="more.toml", training={"epochs": 3})
        settings(folder, name="fewer.toml", training={"epochs": 1})
        settings(folder, name="labels.toml", data={"train": "data/other"})
        settings(folder, name="tests.toml", data={"test": "data/other"})
        settings(folder, name="rate.toml", training={"learning_rate": 0.2})
        settings(folder, name="pinned.toml", plan={"pinned": {"0": "site1", "1": "site1"}})
        slower, hosts = cluster_of(1, 1), cluster_of(1, 1)
        slower["site"][1]["samples_per_second"] = 20.0
        hosts["site"][0]["name"], hosts["link"][0]["between"] = "here", ["here", "site1"]
        settings(folder, name="slower.toml", cluster=slower)
        settings(folder, name="renamed.toml", cluster=hosts)
        measured = cluster_of(1, 1)
        measured["link"][0]["latency_seconds"] = 0.0011
        settings(folder, name="measured.toml", cluster=measured)

    from_root(comm, prepare)
    first = go(comm, folder / "run.toml", name="mine")
    run = folder / "runs/mine"
    whole = go(comm, folder / "more.toml")
    before = from_root(
        comm, lambda: {path.name: path.read_bytes().hex() for path in run.iterdir() if path.is_file()}
    )
    for name, words in {
        "labels.toml": ["other data", "data.train ", f"{run}/run.json"],
        "tests.toml": ["other data", "data.test "],
        "rate.toml": ["training.learning_rate = 0.2, was 0.1", f"settings in {run}/run.json"],
        "pinned.toml": ["plan.pinned.0 = ", "was null"],
        "slower.toml": [f"another cluster: use --cluster {run}/cluster.toml"],
        "fewer.toml": ["is of step 10", "ends at step 5", "give 2 epochs or more"],
    }.items():
        refused = go(comm, folder / name, resume=run)
        assert isinstance(refused, CheckpointError), (name, refused)
        assert all(word in str(refused) for word in words), (name, str(refused))
        assert "\n" not in str(refused)
    after = from_root(
        comm, lambda: {path.name: path.read_bytes().hex() for path in run.iterdir() if path.is_file()}
    )
    assert before == after  # what is refused changes nothing
    for path in ("slower.toml", "measured.toml"):  # as the words say; and rates measured again
        again = go(
            comm,
            folder / path,
            resume=run,
            **({"cluster": run / "cluster.toml"} if path == "slower.toml" else {}),
        )
        assert again["parameter_hash"] == first["parameter_hash"], (path, again)
    longer = go(comm, folder / "more.toml", resume=run)
    assert longer["parameter_hash"] == whole["parameter_hash"]
    if comm.rank:
        return
    made = json.loads((run / "run.json").read_text())
    assert made["settings"]["training"]["epochs"] == 3
    assert [start["until_step"] for start in made["earlier"]] == [10, 10, 10]
    digest = isthmus.ShardSet.open(folder / "data/train").digest
    assert made["data"]["train"] == {"samples": 120, "shards": 6, "sha256": digest}
    assert json.loads((run / "plan.json").read_text())["data"] == digest
    row = describe_run(run)
    assert (row["state"], row["step"], row["steps"], row["problem"]) == ("finished", 15, 15, None)
    page = write_report(run).read_text()
    assert "began" in page
    assert digest[:16] in page
    assert not (run / "lock").exists()


@pytest.mark.ranks(2)
def test_a_plan_for_other_samples_is_refused(comm, shared_folder):
    from_root(comm, lambda: [pack(shared_folder, name, seed) for seed, name in enumerate("ab")] and None)
    shards = [isthmus.ShardSet.open(shared_folder / "data" / name) for name in "ab"]
    cluster = isthmus.Cluster(cluster_of(1, 1))
    plan = isthmus.plan_shards(cluster, shards[0], isthmus.Workload(100, 24))
    with isthmus.split_tiers(comm, cluster) as tiers:
        isthmus.scatter_shards(tiers, shards[0], plan)
        with pytest.raises(ShardError, match="made for other samples"):
            isthmus.scatter_shards(tiers, shards[1], plan)


@pytest.mark.ranks(2)
def test_what_a_damaged_line_told_is_set_aside_and_the_run_goes_on(comm, shared_folder):
    folder, lines = shared_folder, []
    from_root(comm, lambda: [pack(folder, name) for name in ("train", "test")] and None)
    path, short = from_root(
        comm,
        lambda: [str(settings(folder, name="long.toml", training={"epochs": 3})), str(settings(folder))],
    )
    first = go(comm, short, name="mine")
    metrics = folder / "runs/mine/metrics.jsonl"

    def damage():
        lines.extend(metrics.read_bytes().splitlines(keepends=True))
        spoilt = lines[3].replace(b'"loss": ', b'"lo\xffs": ')
        metrics.write_bytes(b"".join([*lines[:3], spoilt, *lines[4:], b'{"kind": "st']))

    from_root(comm, damage)
    told = []
    longer = job.train(comm, path, lambda line, passing=False: told.append(line), resume=first["folder"])
    assert longer["steps"] == 15
    if comm.rank == 0:
        assert any("lines 4 could not be read" in line and "damaged-lines" in line for line in told)
        assert (metrics.with_name("damaged-lines")).read_bytes().count(b"\n") == 1
        kept = metrics.read_bytes().splitlines(keepends=True)
        assert kept[: len(lines) - 1] == lines[:3] + lines[4:]
        write_report(metrics.parent)
    from_root(comm, lambda: metrics.write_text("") and None)
    lost = go(comm, path, resume=first["folder"])
    assert "does not tell what the steps came to" in str(lost)
    from_root(comm, lambda: (metrics.parent / "run.json").write_text("[]") and None)
    path = from_root(comm, lambda: str(settings(folder, training={"epochs": 4})))
    assert isinstance(go(comm, path, resume=first["folder"]), SettingsError)


@pytest.mark.ranks(2)
def test_a_finished_run_is_not_written_over_by_another_of_its_name(comm, shared_folder):
    folder = shared_folder
    from_root(comm, lambda: [pack(folder, name) for name in ("train", "test")] and None)
    path = from_root(comm, lambda: str(settings(folder, run={"checkpoint_every": 1000})))
    assert go(comm, path, name="mine")["steps"] == 10
    refused = go(comm, path, name="mine")
    assert isinstance(refused, OutputError)
    assert "holds a finished run" in str(refused)


IDENTITY = {
    "ranks": 4,
    "data": {"train": "a", "test": "b"},
    "model": {"kind": "perceptron"},
    "training": {"seed": 0, "learning_rate": 0.1},
    "allreduce": {"compressor": {"kind": "int8"}},
    "sites": [0, [["cloud", "cloud", 4]]],
    "plan": {"hash": "h", "cluster": "c", "settings": {"alpha": 1.0}, "version": "0.1"},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"ranks": 2}, "2 ranks, was 4; start as many: mpirun -n 4"),
        ({"data": {"train": "x", "test": "y"}}, "other data: the samples of data.train and data.test"),
        (
            {"training": {"seed": 0, "learning_rate": 1}},
            "training.learning_rate = 1, was 0.1; resume with",
        ),
        ({"allreduce": {"compressor": None}}, 'allreduce.compressor = null, was {"kind": "int8"}'),
        ({"sites": [0, [["cloud", "cloud", 2]]]}, "another cluster: use --cluster runs/a/cluster.toml"),
        ({"plan": {"cluster": "d"}}, None),
        ({"plan": {"hash": "g", "cluster": "d"}}, "another cluster: use --cluster runs/a/cluster.toml"),
        ({"allreduce": {}, "plan": {"cluster": "d"}}, "another cluster: use --cluster"),
        ({"plan": {"hash": "g", "settings": {"alpha": 2}}}, "plan.alpha = 2, was 1.0; resume with"),
        (
            {"plan": {"hash": "g", "version": "0.2"}},
            "than that of isthmus 0.1, which wrote the checkpoint",
        ),
        ({"plan": {"version": "0.2"}}, None),
    ],
)
def test_what_differs_is_told_in_words(changes, words):
    now = {**IDENTITY, **changes, "plan": IDENTITY["plan"] | changes.get("plan", {})}
    told = difference_in_words(IDENTITY, now, "runs/a")
    assert (told is None) == (words is None)
    assert words is None or words in told


@pytest.mark.ranks(2)
def test_a_second_job_of_the_same_name_is_refused_while_the_first_goes_on(comm, shared_folder):
    folder = shared_folder
    from_root(comm, lambda: [pack(folder, name) for name in ("train", "test")] and None)
    path = from_root(comm, lambda: str(settings(folder)))
    with FolderLock() as other:
        from_root(comm, lambda: other.take(folder / "runs/mine"))
        refused = go(comm, path, name="mine")
        assert isinstance(refused, OutputError)
        assert "has this folder since" in str(refused)
    first = go(comm, path, name="mine")
    with FolderLock() as other:
        from_root(comm, lambda: other.take(folder / "runs/mine"))
        assert "has this folder since" in str(go(comm, path, resume=first["folder"]))
    assert go(comm, path, name="mine") == first


@pytest.mark.slow
@pytest.mark.ranks(4)
def test_fewer_and_more_ranks_go_on_in_the_middle_of_an_epoch(comm, shared_folder):
    folder, told = shared_folder, []
    int8 = {"compressor": {"kind": "int8", "block": 8}}
    sections = {"allreduce": int8, "run": {"checkpoint_every": 3}}

    def prepare():
        for name in ("train", "test"):
            pack(folder, name)
        for epochs in (2, 3, 4):
            three = cluster_of(2, 1, 1)
            settings(
                folder, name=f"{epochs}.toml", cluster=three, training={"epochs": epochs}, **sections
            )
        for name, often in (("midst", 3), ("ends", 4)):
            every_2 = {"kind": "local_steps", "every": 2}
            run = {"checkpoint_every": often}
            settings(folder, name=f"{name}.toml", cluster=cluster_of(1, 1), strategy=every_2, run=run)
        (folder / "more.toml").write_text(tomli_w.dumps(cluster_of(1, 2)))
        fewer = cluster_of(1, 1)
        fewer["site"][1]["name"], fewer["link"][0]["between"] = "site2", ["site0", "site2"]
        (folder / "fewer.toml").write_text(tomli_w.dumps(fewer))

    from_root(comm, prepare)

    def start(ranks, file, **options):
        """Go on with some of the ranks; the others wait."""
        part = comm.Split(0 if comm.rank < ranks else 1, comm.rank)
        summary = None
        if comm.rank < ranks:
            try:
                summary = job.train(
                    part, folder / file, lambda line, passing=False: told.append(line), **options
                )
            except CheckpointError as problem:
                summary = str(problem)
        return broadcast_json(comm, summary, 0)

    run = folder / "runs/mine"
    hashes = [start(4, "2.toml", name="mine")["parameter_hash"]]  # its checkpoint is of step 9 of 10
    hashes.append(start(2, "3.toml", resume=run, cluster=folder / "fewer.toml")["parameter_hash"])
    hashes.append(start(2, "3.toml", resume=run, cluster=folder / "fewer.toml")["parameter_hash"])
    last = start(4, "4.toml", resume=run)  # from step 15, the end of an epoch: two sites, then three
    assert hashes[1] == hashes[2] != hashes[0]
    rounds = {}
    for name in ("midst", "ends"):  # checkpoints of steps 9 and 8
        start(2, f"{name}.toml", name=name)
        others = {"resume": folder / f"runs/{name}", "cluster": folder / "more.toml"}
        rounds[name] = start(3, f"{name}.toml", **others)
    if comm.rank:
        return
    assert "checkpoint.h5: step 9 is in the midst of a round" in rounds["midst"]
    found = verify_steps(folder / "runs/ends")
    assert (found["parameter_hash"], found["epochs"]) == (rounds["ends"]["parameter_hash"], [1, 2])
    words = [line for line in told if "ranks go on" in line]
    assert words[0].startswith("2 ranks go on, 0 of them new: what is left of the epoch is shared anew")
    assert words[0].endswith("; the residuals of site1 are lost")
    assert words[1].startswith("4 ranks go on, 2 of them new")
    found = verify_steps(run)
    assert found["parameter_hash"] == last["parameter_hash"]
    assert (found["epochs"], found["lost"], found["last"]) == ([1, 2, 3, 4], 0, 20)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "members"] == [0, 9, 15]
    assert all(line["once"] == 120 for line in lines if line["kind"] == "samples")
    sent = [line["sent_nbytes"]["link"] for line in lines if line["kind"] == "step"]
    assert sent == sorted(sent)
    for link in last["links"]:
        assert link["sent_nbytes"] == link["predicted_nbytes"] > 0
