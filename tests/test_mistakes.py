"""What users do wrong: each ends with one line that says what, where and how to mend it, and its code.

The verbs run in this process, as `isthmus` would run them; those that need ranks, in the ranks of
`@pytest.mark.ranks`. Lines that are marked `*` are the examples on the pages in docs/errors.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of
from test_cli import RUN, call, pack_lab, write

import isthmus
from isthmus.cli import main as cli
from isthmus.links.agreement import gather_json

PAGES = Path(__file__).resolve().parent.parent / "docs/errors"


def changed(table, changes):
    """Return a copy of `table` with "section.key" or "list.0.key" set, or dropped where it is None."""
    table = json.loads(json.dumps(table))
    for path, value in changes.items():
        *sections, key = path.split(".")
        place = table
        for section in sections:
            place = place[int(section)] if isinstance(place, list) else place.setdefault(section, {})
        place.pop(key, None) if value is None else place.update({key: value})
    return table


def told(capsys, folder, *arguments):
    """Run `isthmus ARGUMENTS` here; return its exit code and the lines on standard error."""
    before, here = signal.getsignal(signal.SIGTERM), Path.cwd()
    argv, sys.argv = sys.argv, ["isthmus", *map(str, arguments)]
    environment = dict(os.environ)
    capsys.readouterr()
    try:
        os.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        os.chdir(here)
        sys.argv = argv
        signal.signal(signal.SIGTERM, before)
    assert dict(os.environ) == environment  # or it would reach what this process starts later
    return ended.value.code, capsys.readouterr().err.splitlines()


def check_line(name, folder, code, line, words):
    """The line is one for people, has the words, and is on the page of its code if it is an example."""
    line = line.replace(f"{folder}/", "")
    assert line.startswith("isthmus: ")
    assert "unexpected" not in line
    assert all(word in line for word in words), line
    if name.startswith("*"):
        assert f"\n{line}\n" in (PAGES / f"{code}.md").read_text(), line


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    pack_lab(folder)
    np.savez(
        folder / "images.npz",
        x=np.zeros((10, 4), "u1"),
        y=np.arange(10),
        z=np.arange(9),
        one=np.float32(3),
        words=np.array(["a"] * 10),
        objects=np.array([None] * 10, object),
    )
    (folder / "empty.idx").write_bytes(b"")
    (folder / "cut.gz").write_bytes(b"\x1f\x8b\x08xx")
    return folder


@pytest.fixture
def lab(packed, tmp_path):
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    return tmp_path


PLAN = "plan run.toml"
SETTINGS = {
    # name: (changes of the settings, code, words)
    "* an unknown key": ({"training.batchsize": 3}, 3, ["did you mean 'batch_size'?"]),
    "an unknown section": ({"trainings": {}}, 3, ["trainings: no key", "'training'"]),
    "* an unknown section for one that is missing": (
        {"traning": {}, "cluster": None, "data": None},
        3,
        ["traning: no key is called 'traning'; did you mean 'training'? (2 more faults in this file)"],
    ),
    "an unknown key beside a fraction": (
        {"training.epochs": 1.5, "training.batchsize": 3},
        3,
        ["'batch_size'? (1 more fault in this file)"],
    ),
    "a layer of a half": ({"model.hidden": [16.5]}, 3, ["model: hidden must be a whole", "not 16.5"]),
    "a block of a half": (
        {"allreduce.compressor": {"kind": "int8", "block": 64.5}},
        3,
        ["allreduce.compressor: block must be a whole number, not 64.5"],
    ),
    "a ratio in words": (
        {"allreduce.compressor": {"kind": "top_k", "ratio": "half"}},
        3,
        ["ratio must be a number, not 'half'"],
    ),
    "a misspelt kind": ({"model.kind": "perceptrn"}, 3, ["did you mean 'perceptron'?"]),
    "a misspelt argument": ({"model.hiden": [3]}, 3, ["no 'hiden', did you mean 'hidden'?"]),
    "a limit that is no number": (
        {"plan.least_samples": "x"},
        3,
        ["plan.least_samples: must be a number or a table, not 'x'"],
    ),
    "a limit below zero at one site": (
        {"plan.least_samples": {"site0": -1}},
        3,
        ["plan.least_samples.site0: must be greater than", "not -1"],
    ),
    "a negative rate of learning": ({"training.learning_rate": -1}, 3, ["learning_rate", "0, not -1"]),
    "a rate in words": ({"training.learning_rate": "fast"}, 3, ["must be a number, not 'fast'"]),
    "half an epoch": ({"training.epochs": 1.5}, 3, ["epochs: must be a whole number"]),
    "an unknown schedule": ({"training.schedule": "step"}, 3, ["'constant', 'linear' or 'cosine'"]),
    "an impossible policy": ({"training.on_non_finite": "hope"}, 3, ["'stop' or 'skip'"]),
    "no model": ({"model": None}, 3, ["model: this key is missing"]),
    "an unknown model": ({"model": "transformer"}, 3, ["perceptron", "'transformer'"]),
    "a model with dropout": ({"model.dropout": 0.1}, 3, ["takes inputs", "no 'dropout'"]),
    "a model's width in words": ({"model.inputs": "many"}, 3, ["inputs must be a whole", "'many'"]),
    "a layer of nothing": ({"model.hidden": [0]}, 3, ["at least 1 wide"]),
    "an unknown compressor": ({"allreduce.compressor": "zip"}, 3, ["int8", "'zip'"]),
    "a compressor that is a number": ({"allreduce.compressor": 3}, 3, ["compressor: kind", "not 3"]),
    "a ratio of 2": ({"allreduce.compressor": {"kind": "top_k", "ratio": 2}}, 3, ["(0, 1], not 2"]),
    "three bits": (
        {"allreduce.compressor": {"kind": "top_k", "ratio": 0.02, "bits": 3}},
        3,
        ["allreduce.compressor", "bits must be 2, 4 or 8", "not 3"],
    ),
    "bits for int8": ({"allreduce.compressor": {"kind": "int8", "bits": 4}}, 3, ["block, rounding"]),
    "a ring that compresses": ({"allreduce.algorithm": "ring"}, 3, ['"ring"', "hierarchical"]),
    "an unknown algorithm": ({"allreduce.algorithm": "star"}, 3, ["'recursive'", "not 'star'"]),
    "no buckets": ({"allreduce.buckets": 0}, 3, ["buckets", "equal to 1"]),
    "paced MPI": ({"allreduce": {"algorithm": "mpi"}, "cluster.links": "paced"}, 3, ["cannot be paced"]),
    "paced trees": (
        {"allreduce": {"algorithm": "tree"}, "cluster.links": "paced"},
        3,
        ['"tree" cannot be paced', "several ranks"],
    ),
    "a section that is text": ({"cluster": "cluster.toml"}, 3, ["cluster: must be a table"]),
    "no cluster file": ({"cluster.file": "no.toml"}, 4, ["no.toml: no such file", "check the name"]),
    "a folder that is a number": ({"run.folder": 3}, 3, ["run.folder: must be a path"]),
    "a mode that is not octal": ({"run.mode": 700}, 3, ["run.mode: must", "in octal, as in 0o700"]),
    "a mode that locks its owner out": ({"run.mode": 0o77}, 3, ["run.mode: must let the owner in"]),
    "no time before a stall": ({"run.stall_seconds": 0}, 3, ["stall_seconds", "greater than 0"]),
    "a time for Slurm in words": ({"slurm.time": "soon"}, 3, ["slurm.time", "01:30:00", "'soon'"]),
    "* a site that does not exist": ({"plan.pinned": {"0": "moon"}}, 6, ["known sites"]),
    "a shard that does not exist": ({"plan.pinned": {"99": "site0"}}, 6, ["shards 0 to 19"]),
    "a shard in words": ({"plan.pinned": {"first": "site0"}}, 3, ["plan.pinned.first"]),
    "data at a site that does not exist": ({"data.site": "moon"}, 6, ["'moon'", "known sites"]),
    "an unknown objective": ({"plan.objective": "beauty"}, 3, ["plan.objective", "'makespan'"]),
    "a negative budget": ({"plan.budget": -1}, 3, ["plan.budget"]),
    "a budget for plans made again": ({"plan.replan": True, "plan.budget": 3.0}, 3, ["no budget"]),
    "more samples than there are": ({"plan.least_samples": 1000}, 6, ["demand fewer"]),
    "a shard that may be nowhere": ({"plan.forbidden": {"0": ["site0", "site1"]}}, 6, ["shard 0"]),
    "staging from nowhere": ({"plan.staged_epochs": 2}, 6, ["data.site"]),
    "no training data": ({"data.train": "nowhere"}, 5, ["nowhere/manifest.json", "isthmus pack"]),
}
CLUSTERS = {
    # name: (changes of the cluster file, code, words)
    "no site": ({"site": []}, 4, ["cluster.toml: site: must have an entry"]),
    "* an unknown tier": ({"site.0.tier": "fog"}, 4, ["not 'fog'"]),
    "a site without ranks": ({"site.0.ranks": 0}, 4, ["site[0].ranks", "equal to 1"]),
    "two sites of one name": ({"site.0.name": "site1"}, 4, ["two sites", "its own name"]),
    "a misspelt key": ({"site.0.rank": 3}, 4, ["did you mean 'ranks'?"]),
    "a rate for one of two ranks": ({"site.1.samples_per_second": [1.0, 2.0, 3.0]}, 4, ["3 numbers"]),
    "sites without a link": ({"link": []}, 4, ["no link leads", "add a [[link]]"]),
    "a link to nowhere": ({"link.0.between": ["site0", "moon"]}, 4, ["'moon'", "known sites"]),
    "a link to itself": ({"link.0.between": ["site0", "site0"]}, 4, ["itself", "[site.network]"]),
    "a link with one end": ({"link.0.between": ["site0"]}, 4, ["link[0].between[1]"]),
    "a link of no rate": ({"link.0.bytes_per_second": 0}, 4, ["bytes_per_second", "not 0"]),
    "a link from the future": ({"link.0.latency_seconds": -1}, 4, ["latency_seconds", "not -1"]),
    "a host of two sites": ({"site.0.hosts": ["a"], "site.1.hosts": ["a"]}, 4, ["host 'a' is listed"]),
    "hosts and ranks": ({"site.0.hosts": ["a"], "site.0.world_ranks": [0]}, 4, ["not both"]),
    "an unknown device": ({"site.0.device": "tpu"}, 4, ["site[0].device", "'cpu' or 'gpu'"]),
    "no room": (
        {"site.0.storage_nbytes": 100.0, "site.1.storage_nbytes": 100.0},
        6,
        ["storage", "smaller shards"],
    ),
}
PACK = "pack set --shards 2 -a "
COMMANDS = {
    # name: (arguments, code, words)
    "a misspelt verb": ("frain", 2, ["Did you mean 'train'?", "isthmus --help"]),
    "no settings": ("plan", 2, ["missing argument 'RUN.toml'"]),
    "* an unknown option": ("plan run.toml --colour", 2, ["--colour"]),
    "an option without a value": ("train run.toml --resume", 2, ["'--resume' requires"]),
    "no shards": ("pack set -a x=images.npz:x --shards 0", 2, ["'--shards'", "at least 1, not 0"]),
    "* an array without a file": ("pack set -a features", 2, ["NAME=FILE"]),
    "a file without a name": ("pack set -a =images.npz:x", 2, ["NAME=FILE"]),
    "fewer clients than none": (PACK + "x=images.npz:x --clients -3", 2, ["at least 1, not -3"]),
    "clients of no file": (PACK + "x=images.npz:x --clients=", 2, ["--clients", "a file, not ''"]),
    "readers of no name": (PACK + "x=images.npz:x --origin a --readers=", 2, ["names of sites", "''"]),
    "readers without an origin": (PACK + "x=images.npz:x --readers=", 2, ["goes with --origin SITE"]),
    "steps in words": ("verify nowhere --steps x", 2, ["--steps", "0:100, not 'x'"]),
    "failures that never come": ("simulate cluster.toml --rank-mtbf 1e300", 2, ["at most 1e+09"]),
    "failures at each moment": ("simulate cluster.toml --site-mtbf 1e-310", 2, ["at least 1e-09"]),
    "a restart for ever": ("simulate cluster.toml --restart-seconds inf", 2, ["at most 1e+09"]),
    "a hang for ever": ("chaos run.toml --random 1 --seconds 1e10", 2, ["at most 1e+06, not 1e+10"]),
    "an algorithm of bench": ("bench collectives cluster.toml --algorithm star", 2, ["'star'", "ring"]),
    "no such file": ("plan nothing.toml", 3, ["nothing.toml: no such file", "check the name"]),
    "a folder for a file": ("plan data", 3, ["data: cannot be read", "name a TOML file"]),
    "a cluster for a run": ("plan cluster.toml", 3, ["is a cluster file", "[cluster] file"]),
    "a run for a cluster": ("plan run.toml --cluster run.toml", 4, ["is a run's settings", "[[site]]"]),
    "no array file": (PACK + "x=no.npz:x", 5, ["no.npz: no such file"]),
    "a folder of arrays": (PACK + "x=data", 5, ["data/test: holds no images", "name a file"]),
    "an array of several": (PACK + "x=images.npz", 5, ["write images.npz:NAME", "x, y"]),
    "no such array": (PACK + "x=images.npz:q", 5, ["no array 'q'", "x, y"]),
    "arrays of other lengths": (PACK + "x=images.npz:x -a z=images.npz:z", 5, ["x has 10, z has 9"]),
    "* more shards than samples": ("pack set -a x=images.npz:x --shards 11", 5, ["ask for 1 to 10"]),
    "an unknown compression": (PACK + "x=images.npz:x --compression rar", 5, ["lz4", "'rar'"]),
    "a single number": (PACK + "x=images.npz:one", 5, ["array 'x'", "one row a sample"]),
    "words": (PACK + "x=images.npz:words", 5, ["dtype <U1", "numbers"]),
    "objects": (PACK + "x=images.npz:objects", 5, ["Python objects", "write numbers"]),
    "text for an array": (PACK + "x=run.toml", 5, ["run.toml: is not an IDX", "5b"]),
    "an empty file": (PACK + "x=empty.idx", 5, ["starts with nothing"]),
    "a cut file": (PACK + "x=cut.gz", 5, ["cut.gz: cannot be read", "damaged"]),
    "a set that is there": ("pack data/train --shards 2 -a x=images.npz:x", 5, ["--overwrite"]),
    "a set in a file": ("pack run.toml/set --shards 2 -a x=images.npz:x", 8, ["cannot be written"]),
    "* a report of nothing": ("report nowhere", 3, ["run.json: no such file", "runs/NAME-DATE"]),
    "runs of nobody": ("status nowhere", 3, ["nowhere: no such folder"]),
    "stragglers in words": ("simulate cluster.toml --stragglers many", 3, ["a number such as 0.1"]),
    "a cluster for a cluster": ("simulate cluster.toml --cluster cluster.toml", 3, ["already"]),
    "results in a file": ("simulate cluster.toml --edge-sites 0 -o run.toml/x", 8, ["run.toml/x/"]),
    "* a testbed without a program": ("testbed run cluster.toml -- nosuchprogram", 12, ["after `--`"]),
    "a testbed with a bad name": ("testbed down --name X", 12, ["letters a-z and digits", "'X'"]),
}


def test_there_are_many():
    assert len({**SETTINGS, **CLUSTERS, **COMMANDS, **IN_RANKS}) >= 100


@pytest.mark.parametrize("name", [*SETTINGS, *CLUSTERS, *COMMANDS])
def test_a_mistake_is_told_in_one_line(lab, capsys, name):
    change, code, words = {**SETTINGS, **CLUSTERS, **COMMANDS}[name]
    write(
        lab,
        run=changed(RUN, change) if name in SETTINGS else RUN,
        cluster=changed(cluster_of(1, 2), change) if name in CLUSTERS else cluster_of(1, 2),
    )
    arguments = change if name in COMMANDS else PLAN
    before = {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()}
    ended, lines = told(capsys, lab, *arguments.split())
    assert len(lines) == 1, lines
    check_line(name, lab, code, lines[0], words)
    assert ended == code
    assert {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run.toml", b"x = = 3\n", ["run.toml: is not valid TOML", "line 1, column 5"]),
        ("run.toml", b"\xff\xfe", ["run.toml: is not text in UTF-8"]),
        ("cluster.toml", b"[[site]\n", ["cluster.toml: is not valid TOML", "line 1"]),
        ("cluster.toml", b"a = " + b"[" * 200_000, ["cluster.toml: has brackets in brackets"]),
        ("data/train/manifest.json", b"[" * 200_000, ["manifest.json: cannot be read", "again"]),
        (
            "data/train/manifest.json",
            b'{"arrays": ' + b"[" * 600 + b"]" * 600 + b"}",
            ["manifest.json: arrays: must be a", ", not [[[[[[[...]]]]]]]"],
        ),
        ("data/train/manifest.json", b"{", ["manifest.json: cannot be read", "pack the data again"]),
        ("data/train/manifest.json", b"[]", ["manifest.json: the whole: must be a table"]),
        ("data/train/manifest.json", b"{}", ["manifest.json: arrays: this key is missing"]),
    ],
)
def test_a_damaged_file_is_named(lab, capsys, file, content, words):
    (lab / file).write_bytes(content)
    ended, lines = told(capsys, lab, "plan", "run.toml")
    assert len(lines) == 1, lines
    check_line(file, lab, ended, lines[0], words)
    assert ended == {"run.toml": 3, "cluster.toml": 4}.get(file, 5)


def test_slurms_absence_is_told(lab, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(lab))
    ended, lines = told(capsys, lab, "submit", "run.toml")
    assert ended == 13
    check_line("* no Slurm", lab, 13, lines[-1], ["run this where"])


def damage(kind, lab):
    """Do to a lab what a mistake of this kind does."""
    path = lab / "data/train/shard-00003.h5"
    if kind == "a cut shard":
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "a flipped byte":
        import h5py

        with h5py.File(path) as file:
            chunk = file["features"].id.get_chunk_info(0)
        content = bytearray(path.read_bytes())
        content[chunk.byte_offset + chunk.size // 2] ^= 4
        path.write_bytes(content)
    elif kind == "a missing shard":
        path.unlink()
    elif kind == "* no data":
        shutil.rmtree(lab / "data/train")
    elif kind == "a manifest of objects":
        manifest = lab / "data/train/manifest.json"
        manifest.write_text(manifest.read_text().replace('"|u1"', '"O"'))
    elif kind == "* a file for the folder of runs":
        (lab / "runs").write_text("")
    elif kind == "a damaged checkpoint":
        (lab / "runs/old").mkdir(parents=True)
        (lab / "runs/old/checkpoint.h5").write_bytes(b"hello")
    elif kind in PACKED_OTHERWISE:
        draw = np.random.default_rng(1)
        arrays = {"features": draw.normal(size=(300, 16)), "targets": draw.integers(0, 3, 300)}
        isthmus.pack_shards(PACKED_OTHERWISE[kind](arrays), lab / "data/train", 20, overwrite=True)


PACKED_OTHERWISE = {
    "targets with fractions": lambda arrays: arrays | {"targets": arrays["targets"] + 0.5},
    "classes beyond the model's": lambda arrays: arrays | {"targets": arrays["targets"] + 2},
    "an array too many": lambda arrays: arrays | {"weights": arrays["targets"]},
}
TRAIN = "train run.toml"
IN_RANKS = {
    # name: (changes of the settings, changes of the cluster, arguments, code, words)
    "* too few ranks": ({}, {"site.1.ranks": 3}, TRAIN, 4, ["4 ranks, this job has 3"]),
    "an unknown key in ranks": ({"training.batchsize": 3}, {}, TRAIN, 3, ["'batch_size'"]),
    "no room in ranks": (
        {},
        {"site.0.storage_nbytes": 9.0, "site.1.storage_nbytes": 9.0},
        TRAIN,
        6,
        ["storage"],
    ),
    "a GPU": ({}, {"site.0.device": "gpu", "site.1.device": "gpu"}, TRAIN, 10, ['device = "cpu"']),
    "* no data": ({}, {}, TRAIN, 5, ["data/train", "isthmus pack"]),
    "a missing shard": ({}, {}, TRAIN, 5, ["shard-00003.h5", "again"]),
    "a cut shard": ({}, {}, TRAIN, 5, ["shard-00003.h5", "again"]),
    "a flipped byte": ({}, {}, TRAIN, 5, ["shard-00003.h5: its SHA-256 is not the manifest's"]),
    "a manifest of objects": ({}, {}, TRAIN, 5, ["manifest.json", "dtype"]),
    "targets with fractions": ({}, {}, TRAIN, 5, ["data/train", "whole number", "float64"]),
    "classes beyond the model's": ({}, {}, TRAIN, 5, ["data/train", "0 ... 2", "classes"]),
    "an array too many": ({}, {}, TRAIN, 5, ["features, targets, weights", "two"]),
    "a model of other inputs": ({"model.inputs": 17}, {}, TRAIN, 5, ["16 numbers a sample", "17"]),
    "* a file for the folder of runs": ({}, {}, TRAIN, 8, ["runs: cannot be written", "run.folder"]),
    "* nothing to resume": ({}, {}, f"{TRAIN} --resume nowhere", 9, ["no such checkpoint"]),
    "a checkpoint for its folder": (
        {},
        {},
        f"{TRAIN} --resume nowhere/checkpoint.h5",
        9,
        ["isthmus: nowhere/checkpoint.h5: no such checkpoint"],
    ),
    "a damaged checkpoint": ({}, {}, f"{TRAIN} --resume runs/old", 9, ["checkpoint.h5: is damaged"]),
    "a name of two folders": ({}, {}, f"{TRAIN} --name a/b", 8, ["--name 'a/b'", "one word"]),
    "a measurement into a file": (
        {},
        {},
        "calibrate run.toml -o run.toml/x",
        8,
        ["run.toml: cannot be written", "--output"],
    ),
}


@pytest.mark.ranks(3)
@pytest.mark.parametrize("name", IN_RANKS)
def test_a_mistake_is_told_once_by_a_job_of_three_ranks(comm, shared_folder, monkeypatch, capsys, name):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a GPU that is there is no mistake
    settings, cluster, arguments, code, words = IN_RANKS[name]
    if comm.rank == 0:
        pack_lab(shared_folder)
        write(shared_folder, run=changed(RUN, settings), cluster=changed(cluster_of(1, 2), cluster))
        damage(name, shared_folder)
    comm.Barrier()
    ended, lines = told(capsys, shared_folder, *arguments.split())
    assert ended == code
    told_by_rank = gather_json(comm, [line for line in lines if not line.startswith("plan:")])
    assert told_by_rank[1:] == [[], []]
    assert len(told_by_rank[0]) == 1, told_by_rank
    check_line(name, shared_folder, code, told_by_rank[0][0], words)
    assert not list(shared_folder.glob("runs/*/run.json"))
    assert not list(shared_folder.rglob("*.partial"))
    comm.Barrier()


def explode(monkeypatch, rank):
    return {"training.learning_rate": 1e38}


def flip(monkeypatch, rank):
    from isthmus.training.loop import Training

    update = Training._update

    def other(self, mean):
        update(self, mean)
        if rank == 2 and self.state.step == 20:
            self.state.parameters[0] += 1

    monkeypatch.setattr(Training, "_update", other)
    return {}


def stop(monkeypatch, rank):
    from isthmus.models import Perceptron

    gradient = Perceptron.gradient

    def signalled(*given):
        if rank == 0:
            signal.raise_signal(signal.SIGUSR1)
        return gradient(*given)

    monkeypatch.setattr(Perceptron, "gradient", signalled)
    return {}


@pytest.mark.ranks(3)
@pytest.mark.parametrize(
    ("act", "code", "words"),
    [
        (
            explode,
            7,
            [
                "rank   rank 0 (site site0, ",
                "), ranks 1-2 (site site1, ",
                "step   2, phase update",
                "cause  NonFiniteError at",
                "job    ended on all ranks; it has written no checkpoint",
                "to do  ",
                "more   docs/errors/7.md, and the traceback in ",
            ],
        ),
        (
            flip,
            11,
            [
                "rank   rank 2 (site site1, tier edge, host ",
                "step   40, phase end",
                "step 30, is ",
                "--resume ",
                "docs/errors/11.md",
                "rank0002.log",
            ],
        ),
        (stop, 14, []),
    ],
)
def test_a_run_that_ends_early_is_told_once_with_what_became_of_it(
    comm, shared_folder, monkeypatch, capsys, act, code, words
):
    if comm.rank == 0:
        pack_lab(shared_folder)
        write(shared_folder, cluster=cluster_of(1, 2))
    settings = changed(RUN, act(monkeypatch, comm.rank))
    if comm.rank == 0:
        write(shared_folder, run=settings)
    comm.Barrier()
    ended, lines = told(capsys, shared_folder, "train", "run.toml")
    assert ended == code
    errors = gather_json(comm, [line for line in lines if line.startswith(("isthmus:", "  "))])
    assert errors[1:] == [[], []]
    first, *block = errors[0]
    assert len(block) == (6 if words else 0)
    assert all(word in "\n".join(block) for word in words), block
    (folder,) = shared_folder.glob("runs/*")
    line = first.replace(str(folder), "runs/NAME")
    for step in range(1, 41):  # when a signal is looked for depends on the machine
        line = line.replace(f"after step {step};", "after step 5;")
    check_line("* ended early", shared_folder, code, line, [])
    log = (folder / "logs" / f"rank{comm.rank:04}.log").read_text()
    assert ("Traceback" in log) == (code != 14)
    assert ("stopped by a signal" in log) == (code == 14)
    comm.Barrier()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "arguments", "code", "words"),
    [
        (2, "train run.toml", 4, "3 ranks, this job has 2"),
        (0, "train run.toml", 4, "this job has 1"),
        (2, "train run.toml --colour", 2, "isthmus train --help"),
    ],
)
def test_mpirun_ends_with_the_code_of_the_mistake(lab, ranks, arguments, code, words):
    """For real: from two ranks, and from a process that was not started by mpirun."""
    done = call(lab, ranks, *arguments.split())
    assert done.returncode == code, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("isthmus:"))
    assert words in line
    assert "Traceback" not in done.stderr
