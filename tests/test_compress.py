"""Smaller models: what is stored is what answers, what goes matters least, and losses are told."""

import json

import numpy as np
import pytest
from scipy import stats
from test_trained_model import kept

import isthmus
from isthmus.checked_files import BLOCK_NBYTES
from isthmus.errors import OutputError, SettingsError, ShardError
from isthmus.folders.exporting import export_model
from isthmus.folders.model_file import MODEL_FILE, NAME, was_sealed
from isthmus.folders.stored_weights import FORMS, StoredWeights
from isthmus.inference.compressing import _judged, judge
from isthmus.inference.ladder import Rung, Student, paired_change
from isthmus.inference.narrowing import narrowed
from isthmus.inference.tuning import Distilled, tuned
from isthmus.jobs.compressing import compress_run, compression_words
from isthmus.models import Convolutional, Perceptron
from isthmus.models.scoring import scores_of

MODEL = Perceptron(16, (24,), 3)


def samples(size, seed):
    """Return features in which three classes can be told apart, but not all, and their classes."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, 3, size).astype("u1")
    return (draw.normal(size=(size, 16)) + 1.2 * (np.arange(16) % 3 == targets[:, None])).astype(
        "f4"
    ), targets


TRAINING, VALIDATION, TEST = samples(600, 1), samples(2000, 2), samples(1000, 3)


@pytest.fixture(scope="module")
def learnt():
    return tuned(MODEL, MODEL.initial(0), *TRAINING, epochs=8, seed=0)


@pytest.fixture
def run(tmp_path, learnt):
    """The folder of a run that has learnt, with its sets."""
    for name, (features, targets) in (("train", TRAINING), ("validation", VALIDATION), ("test", TEST)):
        isthmus.pack_shards({"x": features, "y": targets}, tmp_path / "data" / name, 4)
    kept(tmp_path / "run", MODEL)
    arrays, table = MODEL_FILE.read(tmp_path / "run" / NAME)
    arrays |= {f"last/parameters/{name}": view for name, view in MODEL.views(learnt).items()}
    table["folders"] = {name: str(tmp_path / "data" / name) for name in ("train", "validation", "test")}
    table["data"] = {
        name: {"samples": 1, "sha256": isthmus.ShardSet.open(folder).digest}
        for name, folder in table["folders"].items()
    }
    MODEL_FILE.write(tmp_path / "run" / NAME, arrays, table)
    settings = {
        "cluster": {"links": "real", "compute": "real"},
        "model": {"kind": "perceptron"},
        "allreduce": {"algorithm": "auto", "compressor": None},
        "security": {"link": "sealed"},
    }
    told = {"settings": settings, "hosts": ["here"], "started": "today", "model_size": MODEL.size}
    (tmp_path / "run/run.json").write_text(json.dumps(told))
    return tmp_path / "run"


@pytest.mark.parametrize("shape", [(40, 12), (3, 3, 5, 8), (64, 3, 5, 5), (1, 9)])
@pytest.mark.parametrize("outputs_last", [True, False])
def test_what_is_stored_is_close_and_has_the_bytes_that_it_should(shape, outputs_last):
    tensor = np.random.default_rng(0).normal(size=shape).astype("f4")
    outputs = shape[-1 if outputs_last else 0]
    tensor[np.abs(tensor) < 0.5] = 0
    size, kept_entries = tensor.size, np.count_nonzero(tensor)
    nbytes = {
        "int8": size + 4 * outputs,
        "int4": -(-size // 2) + 2 * -(-size // 64) + 4 * -(-size // 1024),
        "pruned": kept_entries + -(-size // 8) + 4 * outputs,
    }
    rows = np.abs(np.moveaxis(tensor, -1 if outputs_last else 0, 0).reshape(outputs, -1)).max(axis=1)
    limit = rows if outputs_last else rows.reshape(-1, *[1] * (tensor.ndim - 1))
    for form in FORMS:
        stored = StoredWeights.of(form, tensor, outputs_last)
        if nbytes[form] >= 4 * size:
            assert stored is None
            continue
        again = stored.tensor()
        assert stored.wire.nbytes == nbytes[form]
        error = np.abs(again - tensor)
        assert (error <= (np.abs(tensor).max() / 13 if form == "int4" else limit / 253)).all()
        assert (again[tensor == 0] == 0).all()
        once_more = StoredWeights.of(form, again, outputs_last).tensor()
        np.testing.assert_allclose(once_more, again, rtol=1e-4, atol=1e-4)
    assert StoredWeights.of("int8", tensor.reshape(-1), outputs_last) is None


def test_units_that_say_nothing_are_those_that_go():
    """Half the units of each layer are dead: without them the scores are the same."""
    draw = np.random.default_rng(0)
    for model, widths in (
        (Perceptron(9, (8, 6), 4), {"hidden": (4, 3)}),
        (Convolutional(inputs=(2, 10, 11), channels=(4, 6), classes=3), {"channels": (2, 3)}),
    ):
        parameters = draw.normal(size=model.size).astype("f4")
        views = model.views(parameters)
        layers = [name for name in views if name.endswith("weight")][:-1]
        for layer in layers:
            units = views[layer].shape[-1]
            dead = draw.permutation(units)[: units // 2]
            views[layer][..., dead] = 0
            views[layer.replace("weight", "bias")][dead] = 0
        smaller, vector, told = narrowed(model, parameters, 0.5)
        assert told == widths
        assert (smaller.size, smaller.loss) == (vector.size, model.loss)
        features = draw.normal(size=(20, *model.inputs_shape)).astype("f4")
        np.testing.assert_allclose(
            scores_of(smaller, vector, features),
            scores_of(model, parameters, features),
            rtol=1e-4,
            atol=1e-4,
        )
    with pytest.raises(ValueError, match="no inner layer"):
        narrowed(Perceptron(4, (), 2), np.zeros(10, "f4"), 0.5)


def test_the_interval_of_a_change_holds_what_it_says():
    before = np.repeat([True, False, True, False], [60, 20, 15, 5])
    after = np.repeat([True, False, False, True], [60, 20, 15, 5])
    change, low, high = paired_change(before, after)  # b = 5.5, c = 15.5, of 102
    assert change == -0.10
    half = 1.959964 * np.sqrt((5.5 + 15.5) - 10**2 / 102) / 102
    assert (low, high) == pytest.approx((-10 / 102 - half, -10 / 102 + half))
    _, low, high = paired_change(before, before)
    assert -0.03 < low < 0 < high < 0.03
    draw, held = np.random.default_rng(0), 0
    for _ in range(1000):  # gains 3 %, loses 5 %
        kind = draw.choice(3, 400, p=[0.92, 0.03, 0.05])
        _, low, high = paired_change(kind != 1, kind != 2)
        held += low <= -0.02 <= high
    assert held > 930


def test_after_one_that_does_not_pass_no_narrower_one_of_its_kind_does():
    """What comes later is right on all samples: the chain alone holds it back."""
    right = np.ones(4000, bool)
    worse = right.copy()
    worse[:30] = False  # 0.75 points, where 0.5 may be lost
    rungs = [
        _rung(*each) for each in (("float32", 1.0, right), ("int8", 1.0, right), ("int8", 0.5, worse))
    ]
    rungs += [_rung("int8", 0.25, right), _rung("int4", 0.5, right), _rung("int4", 0.25, right)]
    judged = _judged(rungs, [0.0] * 6, 0.005)
    assert [rung.verdict for rung in judged] == [
        "as it was",
        "passes",
        "open",
        "open",
        "passes",
        "passes",
    ]
    assert judged[1].low == paired_change(right, right, 0.025)[1]  # two chains share 5 %


def _rung(weights, keep, right):
    return Rung(weights, Student(MODEL, np.zeros(1, "f4"), {}, keep), {}, 1, right)


def test_a_lesson_is_half_the_targets_and_half_the_teacher():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(4, 3))
    targets = np.column_stack([[0, 2, 1, 1], draw.normal(size=(4, 3))])
    for temperature in (1.0, 4.0):
        loss = Distilled(temperature)
        value, slope = loss.value_and_slope(scores, targets)
        for place in np.ndindex(scores.shape):
            moved = scores.copy()
            moved[place] += 1e-6
            assert (loss.value_and_slope(moved, targets)[0] - value) / 1e-6 == pytest.approx(
                slope[place], abs=1e-5
            )


def test_the_ladder_says_what_is_lost_and_the_smallest_that_passes_is_what_loads(run):
    told = []
    made = compress_run(
        run, accuracy_loss=0.02, keep=(1, 0.25, 0.05), epochs=2, teacher=run, tell=told.append
    )
    rungs = {each["name"]: each for each in made["rungs"]}
    assert len(rungs) == 1 + 3 * 2 * 3 == len(told)
    assert rungs["float32"]["verdict"] == "as it was"
    assert rungs["int8"]["verdict"] == "passes"
    assert rungs["5 % of the units, int8"]["verdict"] == "loses"  # one unit cannot tell three classes
    assert rungs["25 % of the units, pruned, taught"]["keep"] == 0.25
    whole, narrow = rungs["float32"]["nbytes"], rungs["25 % of the units, int8"]["nbytes"]
    assert (whole, narrow) == (4 * (16 * 24 + 24 + 24 * 3 + 3), 16 * 6 + 6 * 3 + 4 * (6 + 3) * 2)
    passing = [each for each in made["rungs"] if each["verdict"] in ("passes", "as it was")]
    assert all(each["low"] >= -0.02 for each in passing)
    assert rungs[made["best"]]["nbytes"] == min(each["nbytes"] for each in passing) < whole / 3
    assert made["test"]["change"] > -0.05
    model, parameters = isthmus.load_model(made["folder"])
    assert (model.table["compressed"]["name"], model.hidden) == (made["best"], model.model.hidden)
    assert model.evaluate(run.parent / "data/test") == made["test"]["metrics"] == model.metrics["test"]
    assert model.evaluate(run.parent / "data/validation")["accuracy"] == rungs[made["best"]]["accuracy"]
    export_model(made["folder"], run / "out.npz")
    assert sum(array.size for array in np.load(run / "out.npz").values()) == parameters.size
    assert was_sealed(run)
    assert was_sealed(made["folder"])
    words = compression_words(made)
    assert [str(cell) for cell in words[0].columns[0].cells] == list(rungs)
    assert words[-1].startswith(f"{made['folder']}: {made['best']}; a file of ")
    again = compress_run(
        run, overwrite=True, accuracy_loss=0.02, keep=(1, 0.25, 0.05), epochs=2, teacher=run
    )
    assert isthmus.load_model(again["folder"])[1].tobytes() == parameters.tobytes()
    assert again["test"] == made["test"]


def test_a_program_compresses_without_a_run(learnt):
    ladder = isthmus.compress(
        MODEL, learnt, validation=VALIDATION, weights="int8", keep=1, accuracy_loss=0.05
    )
    (original, int8), best = ladder.rungs, ladder.best
    assert best is int8
    assert original.change == 0.0
    assert (int8.student.parameters != learnt).any()
    assert int8.merits.sum() == 2000 * int8.accuracy
    assert judge(ladder, MODEL, TEST)["samples"] == 1000
    with pytest.raises(ValueError, match="what load_model gives"):
        ladder.write("nowhere")
    pruned = isthmus.compress(
        MODEL, learnt, validation=VALIDATION, training=TRAINING, weights="pruned", keep=1, epochs=1
    ).rungs[1]
    for name, view in MODEL.views(pruned.student.parameters).items():
        assert np.count_nonzero(view) <= (0.25 if name.endswith("weight") else 1) * view.size
    assert (
        MODEL.views(pruned.student.parameters)["layer0.bias"] != MODEL.views(learnt)["layer0.bias"]
    ).any()


def test_what_cannot_be_compressed_is_one_line(run, learnt):
    def asked(**changed):
        given = {"model": MODEL, "parameters": learnt, "validation": VALIDATION} | changed
        return isthmus.compress(given.pop("model"), given.pop("parameters"), **given)

    regression, alike = Perceptron(16, (4,), loss="mse"), np.ones(len(VALIDATION[1]))
    one = {"model": regression, "parameters": regression.initial(0)}
    for wrong, error, words in (
        ({"weights": "int3"}, ValueError, "float32, int8, int4, pruned, not 'int3'"),
        ({"weights": ()}, ValueError, "weights must be one or several"),
        ({"keep": 1.5}, ValueError, "at most 1, not 1.5"),
        ({"keep": [0.5, np.nan]}, ValueError, "keep must be finite"),
        ({"accuracy_loss": -1}, ValueError, "must not be negative"),
        ({"temperature": 0}, ValueError, "temperature must be more than 0"),
        ({"training": TRAINING, "epochs": 0}, ValueError, "epochs must be at least 1"),
        (one | {"validation": (VALIDATION[0], alike)}, ShardError, "r2 says nothing"),
        ({"parameters": learnt[:-1]}, SettingsError, f"not {MODEL.size} finite numbers"),
        ({"parameters": learnt * np.nan}, SettingsError, "finite numbers"),
        ({"teacher": (MODEL, learnt)}, SettingsError, "needs training samples"),
        ({"validation": (VALIDATION[0][:0], VALIDATION[1][:0])}, ShardError, "no targets to features"),
        ({"validation": (VALIDATION[0], VALIDATION[1] + 9)}, ShardError, "go beyond"),
    ):
        with pytest.raises(error, match=words) as caught:
            asked(**wrong)
        assert len(str(caught.value).splitlines()) == 1
    other = Perceptron(16, (), 4)
    with pytest.raises(SettingsError, match="the teacher has 4 outputs, the model 3"):
        asked(training=TRAINING, teacher=(other, other.initial(0)))
    data = run.parent / "data"
    for given, error, words in (
        ({"output": run}, OutputError, "is the folder of a run"),
        ({"validation": data / "train"}, SettingsError, "has learnt from these samples"),
        ({"validation": data / "none"}, ShardError, "none"),
        ({"output": "/proc/x"}, OutputError, "cannot be written"),
    ):
        with pytest.raises(error, match=words):
            compress_run(run, **given)
    kept(run.parent / "small", MODEL)
    (run.parent / "small/run.json").unlink()
    with pytest.raises(OutputError, match="exists; name another folder, or give --overwrite"):
        compress_run(run, run.parent / "small")
    kept(run.parent / "bare", MODEL)
    with pytest.raises(SettingsError, match="had no validation set; name samples"):
        (run.parent / "bare/run.json").write_text((run / "run.json").read_text())
        compress_run(run.parent / "bare")


def test_stored_weights_that_are_not_what_was_written_are_refused(run, tmp_path):
    made = compress_run(run, accuracy_loss=1, weights="pruned", keep=1, epochs=1)
    path = tmp_path / "run/compressed" / NAME
    assert path.parent == tmp_path / made["folder"]
    whole = path.read_bytes()
    arrays, table = MODEL_FILE.read(path)
    name = "last/parameters/layer0.weight"
    stored = {"form": "pruned", "shape": [16, 24], "outputs_last": True}
    assert table["kept"]["last"]["stored"]["layer0.weight"] == stored

    def written(wire=arrays[name], tensor="layer0.weight", **how):
        moment = table["kept"]["last"]
        held = moment["stored"] | {tensor: stored | how}
        changed = table | {"kept": {"last": moment | {"stored": held}}}
        MODEL_FILE.write(path, arrays | {name: wire}, changed)

    for spoil, words in (
        (lambda: written(arrays[name][:-1]), "are not the 480 bytes"),
        (lambda: written(arrays[name][:9]), "are not the 480 bytes"),
        (lambda: written(np.zeros((16, 24), "f4")), "are not the 480 bytes"),
        (lambda: written(form="[red]oracle"), r"stored as '\[red\]oracle'"),
        (lambda: written(form="int8"), "are not the 480 bytes"),
        (lambda: written(shape=[1 << 40, 1 << 40]), "are not the"),
        (lambda: written(shape=[16, 0]), r"no tensor of shape \[16, 0\]"),
        (lambda: written(shape=[24, 16]), "are not the"),
        (lambda: written(shape="wide"), "gives kept.last.stored.layer0.weight.shape"),
        (lambda: written(tensor="layer9.weight"), "holds no array 'layer9.weight'"),
        (lambda: path.write_bytes(whole[:BLOCK_NBYTES] + whole[BLOCK_NBYTES + 1 :]), "is damaged"),
    ):
        spoil()
        with pytest.raises(SettingsError, match=words) as caught:
            isthmus.load_model(path.parent)
        assert len(str(caught.value).splitlines()) == 1


def test_the_verb_answers_as_a_table_and_as_one_object(run, capsys, monkeypatch):
    from isthmus.cli.main import CommandLineError, app

    asked = ["compress", str(run), "--accuracy-loss", "0.03", "--weights", "int8", "--keep", "1"]
    app(asked, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "on the test set, which chose nothing: accuracy" in printed
    app([*asked, "--overwrite", "--json"], standalone_mode=False)
    made = json.loads(capsys.readouterr().out)
    assert (made["best"], made["accuracy_loss"]) == ("int8", 0.03)
    with pytest.raises(CommandLineError) as caught:
        app(["compress", str(run), "--weights", "int3", "--overwrite"], standalone_mode=False)
    assert caught.value.exit_code == 2
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    app([*asked, "--output", str(run / "second")], standalone_mode=False)
    assert not (run / "second").exists()  # the first rank works alone
    assert capsys.readouterr().out == ""


def test_a_regression_is_judged_by_what_it_explains_of_each_sample():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(900, 6)).astype("f4")
    targets = 2 * np.tanh(features @ draw.normal(size=6)) + 0.1 * draw.normal(size=900)
    parts = {"training": slice(0, 500), "validation": slice(500, 700)}
    sets = {name: (features[rows], targets[rows]) for name, rows in parts.items()}
    model = Perceptron(6, (32,), loss="mse")
    parameters = tuned(model, model.initial(0), *sets["training"], epochs=150, seed=0)
    ladder = isthmus.compress(
        model,
        parameters,
        **sets,
        keep=(1, 0.1),
        teacher=(model, parameters),
        accuracy_loss=0.02,
        epochs=8,
    )
    told = {rung.name: rung.to_json() for rung in ladder.rungs}
    for name, rung in zip(told, ladder.rungs):
        scores = scores_of(rung.student.model, rung.student.parameters, sets["validation"][0])
        metrics = model.loss.metrics_of(model.loss.sums(scores, sets["validation"][1]))
        assert told[name]["r2"] == pytest.approx(metrics["r2"]), name
        assert rung.low <= rung.change <= rung.high
        assert rung.change == pytest.approx(rung.accuracy - ladder.rungs[0].accuracy)
    assert ladder.rungs[0].accuracy > 0.8
    assert told["int8"]["verdict"] == "passes"
    assert told["10 % of the units, pruned"]["verdict"] == "loses"
    assert told["int8, taught"]["r2"] != told["int8"]["r2"]
    rest = (features[700:], targets[700:])
    assert judge(ladder, model, rest)["metrics"]["r2"] > 0.7
    before, after = draw.normal(size=(2, 50))
    low, high = stats.ttest_rel(after, before).confidence_interval()
    assert paired_change(before, after)[1:] == pytest.approx((low, high))


@pytest.mark.slow
def test_a_module_of_ones_own_keeps_its_units_and_its_statistics(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from isthmus.models.own import make_own

    (tmp_path / "compress_net.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Linear(16, 20), "
        "nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))\n"
    )
    model = make_own("compress_net:make", {}, folder=tmp_path)
    model.try_out(VALIDATION[0][:0], VALIDATION[1][:0])
    parameters = tuned(model, model.initial(0), *TRAINING, epochs=4, seed=0)
    before = model.buffers()
    ladder = isthmus.compress(
        model, parameters, validation=VALIDATION, training=TRAINING, epochs=1, accuracy_loss=0.03
    )
    assert ladder.notes == (
        "narrower models are left out: which units of a model of your own may go is not known",
    )
    assert [rung.name for rung in ladder.rungs] == ["float32", *FORMS]
    int8, pruned = ladder.rungs[1], ladder.rungs[3]
    assert int8.stored["0.weight"].wire.nbytes == 20 * 16 + 4 * 20  # a scale for each of 20 outputs
    statistics = [rung.student.buffers["1.running_mean"].tobytes() for rung in (int8, pruned)]
    assert statistics[0] == before["1.running_mean"].tobytes() != statistics[1]
    assert model.buffers()["1.running_mean"].tobytes() == before["1.running_mean"].tobytes()
    assert int8.passes
    with pytest.raises(SettingsError, match="a teacher is for built-in models"):
        isthmus.compress(
            model, parameters, validation=VALIDATION, training=TRAINING, teacher=(model, parameters)
        )
