"""The model that a run keeps: what is loaded is what was trained, and what it says depends on nobody."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of
from test_cli import RUN, call, with_changes, write
from test_resuming import go

import isthmus
from isthmus.checked_files import BLOCK_NBYTES
from isthmus.cli.main import CommandLineError, app
from isthmus.errors import (
    IsthmusError,
    NoDeviceError,
    OutputError,
    SettingsError,
    ShardError,
    StoppedError,
)
from isthmus.files import write_text
from isthmus.folders.exporting import export_model
from isthmus.folders.model_file import MODEL_FILE, NAME, Kept, write_model
from isthmus.folders.reading import read_run
from isthmus.folders.status import describe_run
from isthmus.jobs.settings import RunSettings
from isthmus.models import Convolutional, Perceptron
from isthmus.pages.report import write_report
from isthmus.training.validation import Validation

EARLY = with_changes(
    RUN,
    {
        "data.validation": "data/validation",
        "training": {"epochs": 30, "batch_size": 30, "learning_rate": 0.2, "stop_after": 3},
        "run.checkpoint_every": 5,
    },
)


def pack_noisy(folder, cluster=None):
    """Put three sets into `folder` whose labels are half noise: a model soon learns too much."""
    draw = np.random.default_rng(4)
    targets = draw.integers(0, 3, 600, dtype="u1")
    features = draw.normal(size=(600, 16)) + (np.arange(16) % 3 == targets[:, None])
    noisy = np.where(draw.random(600) < 0.4, draw.integers(0, 3, 600, dtype="u1"), targets)
    sets = {"train": slice(0, 150), "validation": slice(150, 270), "test": slice(270, 600)}
    for name, rows in sets.items():
        isthmus.pack_shards(
            {"features": features[rows].astype("f4"), "targets": noisy[rows]}, folder / "data" / name, 5
        )
    write(folder, run=EARLY, cluster=cluster or cluster_of(1, 2))


def kept(folder, model=None, dtype="f4", shape=None, scale=None):
    """Make a folder of a run in which nothing but a model is: the last, and no best."""
    model = model or Perceptron(16, (8,), 3)
    write_text(folder / "run.json", "{}\n")
    kind = "perceptron" if isinstance(model, Perceptron) else "convolutional"
    table = {
        "version": "0.0.0",
        "model": {"kind": kind, "arguments": {}},
        "features": {"shape": list(shape or model.inputs_shape), "dtype": dtype},
        "targets": {"shape": [], "dtype": "uint8"},
        "settings_sha256": "ab" * 32,
        "data": {"test": {"samples": 1, "sha256": "cd" * 32}},
        "folders": {"test": "data/test"},
        "threads": 1,
    }
    names = ("inputs", "hidden") if kind == "perceptron" else ("inputs", "channels")
    table["model"]["arguments"] = {name: getattr(model, name) for name in (*names, "classes")}
    moment = Kept(40, 4, {"test": {"loss": 0.5, "accuracy": 0.75}}, model.views(model.initial(3)))
    write_model(folder / NAME, table, {"last": moment}, scale)
    return folder


@pytest.mark.slow
@pytest.mark.ranks(3)
def test_what_is_loaded_is_what_was_trained_and_best_and_end_survive_a_stop(comm, shared_folder):
    from mpi4py import MPI

    from isthmus.jobs.train import train
    from isthmus.jobs.using import evaluate_run, predict_run

    folder = shared_folder
    if comm.rank == 0:
        pack_noisy(folder)
    comm.Barrier()
    whole = go(comm, folder / "run.toml", name="whole")
    assert whole["steps"] < 30 * 5
    assert whole["stopped_early"] == (
        f"stopped after epoch {whole['steps'] // 5}: no improvement for 3; "
        f"the best was epoch {whole['best']['epoch']}"
    )
    assert whole["best"]["epoch"] == whole["steps"] // 5 - 3

    def stop_in_the_best_epoch(line, passing=False):
        if line.startswith(f"epoch {whole['best']['epoch']}:"):
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(StoppedError):
        train(comm, folder / "run.toml", stop_in_the_best_epoch, name="half")
    half, _ = isthmus.load_model(folder / "runs/half")
    assert whole["best"]["step"] <= half.step < whole["steps"]
    again = go(comm, folder / "run.toml", name="half")
    assert again["steps"] == whole["steps"]
    assert again["parameter_hash"] == whole["parameter_hash"]
    assert again["best"] == whole["best"]
    once_more = go(comm, folder / "run.toml", resume=folder / "runs/half")  # it ended there: at once
    assert once_more["parameter_hash"] == whole["parameter_hash"]
    assert once_more["stopped_early"] == whole["stopped_early"]
    assert once_more["metrics"] == whole["metrics"]
    for best in (False, True):
        one, parameters = isthmus.load_model(folder / "runs/whole", best)
        other, others = isthmus.load_model(folder / "runs/half", best)
        assert parameters.tobytes() == others.tobytes()
        assert one.metrics == other.metrics
        assert one.metrics["test"] == (whole["best"]["metrics"]["test"] if best else whole["metrics"])
        told = evaluate_run(comm, folder / "runs/whole", best=best)
        alone = evaluate_run(MPI.COMM_SELF, folder / "runs/whole", best=best)
        assert told == alone  # for any number of ranks: also the loss, to its last bit
        assert told["metrics"]["accuracy"] == one.metrics["test"]["accuracy"]
        assert told["metrics"]["loss"] == pytest.approx(one.metrics["test"]["loss"], rel=1e-12)
    if comm.rank == 0:
        features = np.concatenate(
            [isthmus.ShardSet.open(folder / "data/test").read(number)["features"] for number in range(5)]
        )
        np.savez(folder / "features.npz", x=features)
        model, parameters = isthmus.load_model(folder / "runs/whole")
        expected = model.scores(parameters, features)
        sevens = [model.scores(parameters, features[first : first + 7]) for first in range(0, 330, 7)]
        assert np.concatenate(sevens).tobytes() == expected.tobytes()
    predict_run(comm, folder / "runs/whole", str(folder / "features.npz"), folder / "all.npz")
    if comm.rank == 0:
        predict_run(MPI.COMM_SELF, folder / "runs/whole", folder / "data/test", folder / "one.npz")
        for name in ("all.npz", "one.npz"):
            made = np.load(folder / name)
            assert made["scores"].tobytes() == expected.tobytes()
            assert made["predictions"].tolist() == expected.argmax(axis=1).tolist()
        run = read_run(folder / "runs/half")
        assert [line["best"] for line in run.validations][-4:] == [True, False, False, False]
        assert describe_run(folder / "runs/half")["state"] == "finished"
        page = write_report(folder / "runs/half").read_text()
        assert whole["stopped_early"] in page
        fresh = subprocess.run(
            [
                sys.executable,
                "-c",
                "import hashlib, isthmus, sys; model, learnt = isthmus.load_model(sys.argv[1])\n"
                "print(model.evaluate(sys.argv[2])['accuracy'], hashlib.sha256(learnt).hexdigest())\n"
                "assert 'mpi4py.MPI' not in sys.modules and 'torch' not in sys.modules",
                folder / "runs/whole",
                folder / "data/test",
            ],
            capture_output=True,
            text=True,
        )
        assert fresh.stdout.split() == [repr(whole["accuracy"]), whole["parameter_hash"]], fresh.stderr
    comm.Barrier()


@pytest.mark.slow
def test_the_verbs_say_what_was_learnt_and_what_is_wrong_in_one_line(tmp_path):
    pack_noisy(tmp_path, cluster_of(1))
    done = call(tmp_path, 0, "train", "run.toml", "--name", "mine", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["stopped_early"] in done.stderr
    done = call(tmp_path, 0, "evaluate", "runs/mine", "data/train", "--best")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss ")
    step = summary["best"]["step"]
    assert done.stdout.endswith(f"of 150 samples in data/train (best parameters, of step {step})\n")
    assert done.stderr == "data/train: other samples than the run was tested on\n"
    done = call(tmp_path, 2, "predict", "runs/mine", "data/test", "-o", "out.csv")
    assert (done.returncode, done.stdout) == (0, "out.csv: predictions of 330 samples\n"), done.stderr
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "class,score0,score1,score2"
    model, _ = isthmus.load_model(tmp_path / "runs/mine")
    first = isthmus.ShardSet.open(tmp_path / "data/test").read(0)["features"]
    assert [int(line[0]) for line in lines[1 : 1 + len(first)]] == model.predict(first).tolist()
    np.savez(tmp_path / "wide.npz", x=np.zeros((3, 17), "f4"))
    (tmp_path / "runs/mine/model.h5").rename(tmp_path / "model.h5")
    done = call(tmp_path, 2, "evaluate", "runs/mine")
    assert done.returncode == 3
    assert "was killed before it kept a model; go on with `isthmus train" in done.stderr
    assert done.stderr.count("isthmus:") == 1, done.stderr
    (tmp_path / "model.h5").rename(tmp_path / "runs/mine/model.h5")
    done = call(tmp_path, 2, "predict", "runs/mine", "wide.npz", "-o", "out.npy")
    assert done.returncode == 5
    assert "wide.npz: features are of shape [3, 17], the model takes [samples, 16]" in done.stderr
    assert done.stderr.count("isthmus:") == 1, done.stderr
    assert not (tmp_path / "out.npy").exists()


def test_a_file_is_written_as_its_ending_says_or_refused(tmp_path):
    for arguments in (["export", "runs/mine", "-o", "a.txt"], ["predict", "runs/mine", "x", "-o", "a"]):
        with pytest.raises(CommandLineError) as caught:
            app(arguments, standalone_mode=False)
        assert "must end with .np" in caught.value.format_message()
        assert caught.value.exit_code == 2


def test_a_model_that_is_not_what_was_written_is_refused_in_one_line(tmp_path):
    path = kept(tmp_path) / NAME
    whole = path.read_bytes()
    image = whole[BLOCK_NBYTES:]
    model, parameters = isthmus.load_model(tmp_path)
    assert parameters.tobytes() == Perceptron(16, (8,), 3).initial(3).tobytes()
    assert (model.step, model.metrics["test"]["accuracy"]) == (40, 0.75)
    assert model.views(parameters)["layer0.weight"].shape == (16, 8)

    def written(arrays=(), **changes):
        found, table = MODEL_FILE.unpacked(path, whole)
        MODEL_FILE.write(path, {**found, **dict(arrays)}, table | changes)

    for spoil, words in (
        (lambda: path.write_bytes(whole[:-1]), "is damaged"),
        (lambda: path.write_bytes(image), "is damaged"),
        (lambda: path.write_bytes(b"".join(replace(MODEL_FILE, version=2).sealed(image))), "version 2"),
        (lambda: written(model={"kind": "oracle", "arguments": {}}), "of kind 'oracle'"),
        (lambda: written(model={"kind": "perceptron", "arguments": {"inputs": 0}}), "cannot be made"),
        (lambda: written(model={"kind": "perceptron", "arguments": {"inputs": 9}}), "layer0.weight"),
        (lambda: written(threads="two"), "gives threads = 'two'"),
        (lambda: written({"last/parameters/layer0.bias": np.zeros((2, 2), "f4")}), r"shape \[2, 2\]"),
        (lambda: None, "killed before it kept a model; it has no checkpoint"),
        (lambda: os.mkfifo(path), "is a pipe"),
    ):
        path.unlink(missing_ok=True)
        spoil()
        with pytest.raises(SettingsError, match=words) as caught:
            isthmus.load_model(tmp_path)
        assert len(str(caught.value).splitlines()) == 1
    path.unlink()
    path.write_bytes(whole)
    with pytest.raises(SettingsError, match="no best parameters"):
        isthmus.load_model(tmp_path, best=True)


def test_features_that_the_model_cannot_take_are_refused(tmp_path):
    model, _ = isthmus.load_model(kept(tmp_path))
    draw = np.random.default_rng(0)
    features = draw.normal(size=(5, 4, 4)).astype("f4")
    assert model.predict(features).tolist() == model.predict(features.reshape(5, 16)).tolist()
    assert model.predict(features[:0]).shape == (0,)
    features[3, 0, 0] = np.nan
    for wrong, words in (
        (features, r"scores of 1 samples are not finite \(rows 3\)"),
        (np.zeros(16, "f4"), r"of shape \[16\]"),
        (np.zeros((2, 16), "u1"), "learnt from float32, and uint8 means other numbers"),
        (np.array([["a"] * 16]), "give integers or floats"),
    ):
        with pytest.raises(ValueError, match=words):
            model.predict(wrong)
    for targets, words in (
        (np.full(6, 3), "go beyond 0 ... 2"),
        (np.zeros(6), "must be a whole number"),
    ):
        isthmus.pack_shards(
            {"x": np.zeros((6, 16), "f4"), "y": targets}, tmp_path / "bad", 2, overwrite=True
        )
        with pytest.raises(ShardError, match=words):
            model.evaluate(tmp_path / "bad")


@pytest.mark.parametrize(
    ("model", "dtype", "shape"),
    [
        (Perceptron(16, (8, 5), 3), "f4", (4, 4)),
        (Convolutional(14, 15, (3, 5), 4), "u1", (14, 15)),
        (Convolutional(10, 10, (4,), 3), "f8", (100,)),
        (Convolutional(inputs=(3, 9, 12), channels=(4,), classes=3), "f4", (9, 12, 3)),
        (Convolutional(inputs=(2, 9, 12), channels=(4,), classes=3), "u1", (2, 9, 12)),
    ],
)
def test_what_is_exported_says_what_the_model_says(tmp_path, model, dtype, shape):
    trained, parameters = isthmus.load_model(kept(tmp_path, model, np.dtype(dtype).name, shape))
    export_model(tmp_path, tmp_path / "out.npz")
    arrays = np.load(tmp_path / "out.npz")
    assert {name: arrays[name].tobytes() for name in arrays} == {
        name: view.tobytes() for name, view in model.views(parameters).items()
    }
    safetensors = pytest.importorskip("safetensors.numpy")
    export_model(tmp_path, tmp_path / "out.safetensors")
    tensors = safetensors.load_file(tmp_path / "out.safetensors")
    assert {name: array.tobytes() for name, array in tensors.items()} == {
        name: arrays[name].tobytes() for name in arrays
    }
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    told = export_model(tmp_path, tmp_path / "out.onnx")
    assert told["what"].endswith("compared with the model")
    samples = np.random.default_rng(1).integers(0, 255, (300, *shape)).astype(dtype)
    graph = runtime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    given = graph.run(None, {"features": samples})[0]
    expected = trained.scores(parameters, samples)
    np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_an_export_that_cannot_be_made_says_what_is_missing(tmp_path, monkeypatch):
    kept(tmp_path)
    for module, extra in (("safetensors.numpy", "safetensors"), ("onnx", "onnx")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(NoDeviceError, match=rf"isthmus\[{extra}\]; pip install"):
            export_model(tmp_path, tmp_path / f"out.{extra}")
    with pytest.raises(OutputError, match="cannot be written"):
        export_model(tmp_path, Path("/proc/out.npz"))
    assert not list(tmp_path.glob("out*"))


def test_the_best_epoch_is_that_which_the_loss_calls_better():
    validation, ends = Validation(Perceptron(2, (), 2), keeps=True, stop_after=2), []
    losses = [(0.5, 0.6), (0.4, 0.7), (np.nan, 0.7), (0.45, 0.7), (0.3, 0.9), (0.2, 0.8), (0.3, 0.9)]
    for epoch, (loss, accuracy) in enumerate(losses, 1):
        metrics = {"validation": {"loss": loss, "accuracy": accuracy}}
        validation.take(10 * epoch, epoch, metrics, np.full(6, epoch, "f4"), {})
        ends.append(validation.ends)
        if validation.ends and epoch == 4:
            assert (validation.best["epoch"], validation.parameters[0]) == (2, 2)
    assert ends == [False, False, False, True, False, False, True]
    assert (validation.best["step"], validation.parameters[0]) == (50, 5)
    assert validation.why_it_ends == "stopped after epoch 7: no improvement for 2; the best was epoch 5"


def test_stopping_early_needs_a_validation_set(tmp_path):
    write(tmp_path, run=with_changes(RUN, {"training.stop_after": 2}))
    with pytest.raises(SettingsError, match=r"stop_after needs data\.validation"):
        RunSettings.from_toml(tmp_path / "run.toml")
    write(tmp_path, run=EARLY)
    settings = RunSettings.from_toml(tmp_path / "run.toml")
    assert settings.data.validation == tmp_path / "data/validation"
    assert settings.recipe(5).stop_after == 3


NET = """
from torch import nn


def make_net(wide):
    inner = nn.Linear(wide, wide)
    return nn.Sequential(
        nn.Linear(16, wide), nn.BatchNorm1d(wide), nn.ReLU(), inner, nn.ReLU(), inner, nn.Linear(wide, 3)
    )
"""
FRESH = """
import hashlib, sys, isthmus, torch
model, parameters = isthmus.load_model(sys.argv[1], best=True)
print(model.evaluate(sys.argv[2])["accuracy"], hashlib.sha256(parameters).hexdigest())
from safetensors.torch import load_file
from my_net import make_net
for state in (load_file("net.safetensors"), torch.load("net.pt", weights_only=True)):
    module = make_net(12)
    module.load_state_dict(state)
    features = isthmus.ShardSet.open(sys.argv[2]).read(0)["features"]
    scores = module.eval()(torch.from_numpy(features)).detach().numpy()
    assert abs(scores - model.scores(parameters, features)).max() < 1e-4
"""


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_a_module_of_ones_own_is_kept_with_its_statistics(comm, shared_folder):
    pytest.importorskip("torch")
    from isthmus.jobs.using import evaluate_run

    folder = shared_folder
    if comm.rank == 0:
        (folder / "my_net.py").write_text(NET)
        pack_noisy(folder, cluster_of(1, 1))
        model = {"kind": "my_net:make_net", "wide": 12}
        write(folder, run=with_changes(EARLY, {"model": model, "allreduce": None, "training.epochs": 8}))
        more = with_changes(EARLY, {"model": model, "allreduce": None, "training.epochs": 3})
        write(folder, part=with_changes(more, {"training.stop_after": None}))
    comm.Barrier()
    whole = go(comm, folder / "run.toml", name="whole")
    part = go(comm, folder / "part.toml", name="half")
    assert part["steps"] == 15
    again = go(comm, folder / "run.toml", resume=folder / "runs/half")
    assert again["best"] == whole["best"]
    comm.Barrier()
    for best in (False, True):
        one, parameters = isthmus.load_model(folder / "runs/whole", best)
        other, others = isthmus.load_model(folder / "runs/half", best)
        assert parameters.tobytes() == others.tobytes()
        assert one.kept.buffers.keys() == {
            f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
        }
        for name, array in one.kept.buffers.items():
            assert array.tobytes() == other.kept.buffers[name].tobytes()
        assert one.kept.buffers["1.num_batches_tracked"] == one.step
        told = evaluate_run(comm, folder / "runs/whole", best=best)
        assert told["metrics"]["accuracy"] == one.metrics["test"]["accuracy"]
    comm.Barrier()
    if comm.rank == 0:
        for name in ("net.safetensors", "net.pt"):
            export_model(folder / "runs/whole", folder / name, best=True)
        with pytest.raises(SettingsError, match=r"no ONNX graph here; export \.safetensors"):
            export_model(folder / "runs/whole", folder / "net.onnx")
        fresh = subprocess.run(
            [sys.executable, "-c", FRESH, folder / "runs/whole", folder / "data/test"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        digest = hashlib.sha256(isthmus.load_model(folder / "runs/whole", best=True)[1]).hexdigest()
        accuracy = whole["best"]["metrics"]["test"]["accuracy"]
        assert fresh.stdout.split() == [repr(accuracy), digest], fresh.stderr
        (folder / "my_net.py").rename(folder / "other.py")
        with pytest.raises(IsthmusError, match="my_net: no module of that name is in") as caught:
            isthmus.load_model(folder / "runs/whole")
        assert len(str(caught.value).splitlines()) == 1
    comm.Barrier()
