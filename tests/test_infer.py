"""`isthmus infer`: a stream of requests from a file, planned, predicted, answered and told."""

import http.client
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from patience import SECONDS, launched
from test_trained_model import kept
from typer.testing import CliRunner

import isthmus
from isthmus.cli.main import app
from isthmus.errors import SettingsError
from isthmus.folders.model_file import MODEL_FILE, NAME
from isthmus.jobs.infer import run_inference
from isthmus.jobs.infer_settings import InferSettings
from isthmus.jobs.launch import rank_command, rank_environment
from isthmus.links.agreement import from_root
from isthmus.links.sealed import TAG_NBYTES
from isthmus.models import Perceptron
from isthmus.security.key_files import make_keys

ENDS = Perceptron(16, (), 3), Perceptron(16, (24,), 3)


@pytest.fixture
def folder(tmp_path):
    """Two models, of which the cloud's is always right, a validation set, requests and a cluster."""
    draw = np.random.default_rng(0)
    kept(tmp_path / "cloud", ENDS[1])
    kept(tmp_path / "edge", ENDS[0])
    cloud = isthmus.load_model(tmp_path / "cloud")[0]
    for name, count in (("validation", 3000), ("requests", 500)):
        features = draw.normal(size=(count, 16)).astype("f4")
        targets = cloud.predict(features).astype("u1")
        isthmus.pack_shards({"x": features, "y": targets}, tmp_path / name, 4)
    arrays, table = MODEL_FILE.read(tmp_path / "edge" / NAME)  # least squares to what the cloud says
    x, y = (
        np.concatenate([isthmus.ShardSet.open(tmp_path / "validation").read(k)[n] for k in range(4)])
        for n in "xy"
    )
    weights = np.linalg.lstsq(x[:500], 4 * np.eye(3)[y[:500]], rcond=None)[0]
    arrays["last/parameters/layer0.weight"] = weights.astype("f4")
    MODEL_FILE.write(tmp_path / "edge" / NAME, arrays, table)
    (tmp_path / "cluster.toml").write_text(
        tomli_w.dumps(cluster_of(2, 1, latency_seconds=0.002, bytes_per_second=1e6))
    )
    return tmp_path


def write(folder, **changes):
    table = {
        "cluster": {"file": "cluster.toml", "links": "paced"},
        "models": {"edge": "edge", "cloud": "cloud"},
        "requests": {"data": "requests", "per_second": 400.0, "count": 600},
        "answers": {"validation": "validation", "accuracy_loss": 0.1, "mode": "cascade"},
        "output": "out",
    }
    for name, change in changes.items():
        table[name] = table.get(name, {}) | change if isinstance(change, dict) else change
    (folder / "infer.toml").write_text(tomli_w.dumps(table))
    return folder / "infer.toml"


@pytest.mark.slow
def test_a_stream_is_answered_as_planned_and_told_with_each_rule(folder):
    rules = ["least_pending", "round_robin"]
    for site in ("site0", "site1"):
        make_keys(folder / "keys", site)
    answers = {"dispatch": rules, "queue_seconds": math.inf}
    path = write(folder, answers=answers, security={"link": "sealed", "keys": "keys"})
    command = rank_command(3, "-m", "isthmus", "infer", path, "--json")
    done = launched(command, env=rank_environment())
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["mode"] == "cascade"
    assert 0.1 < made["plan"]["share"] < 1
    for rule in rules:
        run = made["runs"][rule]
        assert run["requests"] == 600
        assert run["differing"] == 0 < run["checked"]
        wanted = 64 * run["from_cloud"] + (32 + 2 * TAG_NBYTES) * run["batches"]  # head and content
        assert run["sent_nbytes"] == run["predicted_nbytes"] == wanted
        assert run["from_cloud"] / 600 == pytest.approx(1 - made["plan"]["share"], abs=0.1)
        assert run["accuracy"] >= made["plan"]["accuracy"] - 0.1
        assert run["predicted"]["mean"] > 0
        assert sum(run["asked"][:2]) == run["from_cloud"]
        assert run["asked"][2] == 0
    page = Path(made["report"])
    told = page.read_text()
    page.unlink()
    for word in (*rules, "Rules of dispatch", "asked site0, rank 1", made["plan"]["sentences"][0]):
        assert word in told
    result = CliRunner().invoke(app, ["report", str(folder / "out")])
    assert result.exit_code == 0
    assert page.read_text() == told
    arrays = np.load(folder / "out/answers.npz")
    kept_here = ~arrays["from_cloud"]
    assert np.isnan(arrays["send"][kept_here]).all()
    assert (arrays["send"][~kept_here] >= 0.002).all()
    trained = isthmus.load_model(folder / "cloud")[0]
    features = np.concatenate(
        [isthmus.ShardSet.open(folder / "requests").read(k)["x"] for k in range(4)]
    )
    wanted = trained.predict(features[np.arange(600) % 500])
    np.testing.assert_array_equal(arrays["answers"][~kept_here], wanted[~kept_here])


@pytest.mark.slow
def test_a_split_sends_coded_activations_and_tells_what_they_change(folder):
    cluster = cluster_of(1, 1, latency_seconds=0.002, bytes_per_second=1e4)
    (folder / "cluster.toml").write_text(tomli_w.dumps(cluster))
    narrow = Perceptron(16, (4, 8), 3)  # its first layer gives less than it takes
    kept(folder / "cloud", narrow)
    sizes = {}
    for activations in ({"kind": "int8", "block": 4}, "int4"):
        answers = {"mode": "split", "activations": activations, "split_after": "layer0"}
        answers |= {"accuracy_loss": 0.2}
        path = write(folder, answers=answers, requests={"per_second": 50.0, "count": 100})
        command = rank_command(2, "-m", "isthmus", "infer", path, "--json")
        done = launched(command, env=rank_environment())
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        run, told = made["runs"]["least_pending"], made["activations"]
        assert run["differing"] == 0 < run["checked"]
        sizes[told["kind"]] = made["plan"]["nbytes"]
        assert run["sent_nbytes"] == made["plan"]["nbytes"] * 100 + 32 * run["batches"]
        assert told["samples"] == 3000
        assert told["low"] <= told["change"] <= told["high"]
        assert told["change"] == pytest.approx(told["accuracy"] - told["float32_accuracy"])
        assert f"activations in {told['kind']}" in (folder / "out/report.html").read_text()
    assert sizes == {"int8": 4 + 4, "int4": 4 + 2 + 2}

    text = path.read_text().replace('split_after = "layer0"', "recent_seconds = 30.0")
    path.write_text(text)
    done = launched(command, env=rank_environment())
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)["runs"]["least_pending"]
    assert run["differing"] == 0 < run["checked"]
    assert run["by_split"] == [0, 0, 0, 100]  # nothing is as slow here as the link


@pytest.mark.slow
def test_programs_beside_an_edge_rank_ask_it_over_http(folder):
    path = write(folder)
    path.write_text(
        path.read_text().partition("[requests]")[0]
        + path.read_text()[path.read_text().index("[answers]") :]
    )
    command = rank_command(3, "-m", "isthmus", "infer", path, "--serve", 0, "--seconds", 10, "--json")
    job = subprocess.Popen(
        command, env=rank_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = next(line for line in job.stderr if line.startswith("listening"))
        address = line.split("http://")[1].split("/")[0]
        x = np.random.default_rng(5).normal(size=(40, 16)).astype("f4")
        table = {"name": "x", "shape": [40, 16], "datatype": "FP32", "data": x.ravel().tolist()}
        connection = http.client.HTTPConnection(address, timeout=SECONDS)
        connection.request("POST", "/v2/models/model/infer", json.dumps({"inputs": [table]}))
        classes, from_cloud = (
            each["data"] for each in json.loads(connection.getresponse().read())["outputs"]
        )
        out, said = job.communicate(timeout=SECONDS)
    finally:
        job.kill()
    assert job.returncode == 0, said
    assert json.loads(out)["requests"] == {"answered": 40, "refused": 0, "full": 0, "gone": 0}
    both = [isthmus.load_model(folder / name)[0].predict(x) for name in ("edge", "cloud")]
    np.testing.assert_array_equal(classes, np.where(from_cloud, both[1], both[0]))
    assert any(from_cloud)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"answers": {"mode": "both"}}, "answers.mode"),
        ({"requests": {"per_second": 0.0}}, "requests.per_second"),
        ({"requests": {"count": 0}}, "requests.count"),
        ({"answers": {"deadline_seconds": -1.0}}, "answers.deadline_seconds"),
        ({"answers": {"dispatch": "any"}}, "answers.dispatch"),
        ({"answers": {"window": 0}}, "answers.window"),
        ({"colour": "red"}, "colour"),
        ({"security": {"link": "sealed"}}, "security.*needs keys"),
        (
            {"answers": {"mode": "split", "split_after": "layer0", "recent_seconds": 9.0}},
            "answers.recent_seconds.*leave one out",
        ),
        ({"answers": {"mode": "split", "activations": "int9"}}, "answers.activations.*int8"),
        ({"answers": {"mode": "split", "activations": {"kind": "int8", "block": 0}}}, "block"),
        ({"answers": {"activations": "int8"}}, "answers.activations.*mode 'split' alone"),
        ({"answers": {"split_after": "layer0"}}, "answers.split_after.*mode 'split' alone"),
    ],
)
def test_wrong_settings_are_one_line_with_the_key(folder, changes, told):
    with pytest.raises(SettingsError, match=told) as caught:
        InferSettings.from_toml(write(folder, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.ranks(2)
def test_a_regression_is_not_asked_for_classes(comm, shared_folder):
    def make():
        kept(shared_folder / "model", Perceptron(16, (4,), 1))
        arrays, table = MODEL_FILE.read(shared_folder / "model" / NAME)
        table["model"]["arguments"] = {"inputs": 16, "hidden": [4], "loss": "mse"}
        MODEL_FILE.write(shared_folder / "model" / NAME, arrays, table)
        isthmus.pack_shards({"x": np.zeros((4, 16), "f4")}, shared_folder / "requests", 1)
        (shared_folder / "cluster.toml").write_text(tomli_w.dumps(cluster_of(1, 1)))
        models, answers = {"edge": "model", "cloud": "model"}, {"mode": "edge"}
        write(shared_folder, models=models, answers=answers)

    from_root(comm, make)
    with pytest.raises(SettingsError, match="model: is a regression, and answers are classes"):
        run_inference(comm, shared_folder / "infer.toml")


@pytest.mark.parametrize(
    "options",
    [["--seconds", "5"], ["--host", "0.0.0.0"], ["--serve", "0", "--seconds", "nan"]],
    ids=" ".join,
)
def test_how_it_is_served_is_no_option_that_does_nothing(options):
    assert CliRunner().invoke(app, ["infer", "none.toml", *options]).exit_code == 2


def test_a_cascade_without_a_validation_set_is_told(folder):
    path = write(folder)
    path.write_text(path.read_text().replace('validation = "validation"\n', ""))
    with pytest.raises(SettingsError, match=r"answers\.validation"):
        InferSettings.from_toml(path)
