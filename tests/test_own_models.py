"""Models of a user's own in the main job: found, trained, resumed, and refused in one line."""

import json
import sys

import numpy as np
import pytest
from test_resuming import RUN, go, settings

import isthmus
from isthmus.cluster.cluster import Cluster
from isthmus.errors import CheckpointError, ModelError
from isthmus.jobs.own_model import OwnModelSettings
from isthmus.jobs.settings import RunSettings
from isthmus.links.agreement import from_root
from isthmus.links.world import all_gather
from isthmus.measuring.calibrate import compute_fits
from isthmus.models.own import make_own
from isthmus.models.own_code import OwnCode

torch = pytest.importorskip("torch")

NETS = """
import torch
from torch import nn

def net(width=6, classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(),
                         nn.Dropout(0.3), nn.Linear(width, classes))

def mean_loss(scores, targets):
    return nn.functional.cross_entropy(scores, targets, label_smoothing=0.1)
"""


def learnable(folder, name, samples=120, seed=0):
    """Pack samples of 8 numbers and three classes, in 6 shards."""
    draw = np.random.default_rng(seed)
    targets = draw.integers(0, 3, samples, dtype="u1")
    features = draw.normal(size=(samples, 8)) + 2 * (np.arange(8) % 3 == targets[:, None])
    arrays = {"features": features.astype("f4"), "targets": targets}
    isthmus.pack_shards(arrays, folder / "data" / name, 6)


def own(folder, text=NETS, name="nets.py"):
    (folder / name).write_text(text)
    return OwnCode(folder)


def made(folder, kind="nets:net", text=NETS, **options):
    own(folder, text)
    arguments = options.pop("arguments", {})
    return make_own(kind, arguments, folder=folder, **options)


def batch(samples=5, shape=(8,), seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(samples, *shape)).astype("f4"), draw.integers(0, 3, samples)


def gradient_of(model, parameters, features, targets, ready=None):
    gradient = np.full(model.size, np.nan, "f4")
    loss = model.gradient(parameters, features, targets, gradient, ready)
    return loss, gradient


def test_gradients_are_torchs_own_and_ready_from_the_end(tmp_path):
    model = made(tmp_path)
    parameters, (features, targets) = model.initial(4), batch()
    model.begin_step(1, 0, 7)
    told = []
    loss, gradient = gradient_of(model, parameters, features, targets, told.append)
    torch.manual_seed(4)
    net = sys.modules["nets"].net()
    assert np.array_equal(
        np.concatenate([each.detach().numpy().ravel() for each in net.parameters()]), parameters
    )
    model.begin_step(1, 0, 7)
    total = torch.nn.functional.cross_entropy(
        net(torch.from_numpy(features)), torch.from_numpy(targets), reduction="sum"
    )
    total.backward()
    theirs = np.concatenate([each.grad.numpy().ravel() for each in net.parameters()])
    assert loss == pytest.approx(total.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, theirs, rtol=1e-5, atol=1e-6)
    assert told[-1] == 0
    assert told == sorted(told, reverse=True)
    assert len(told) > 2  # buckets leave while the rest is computed


def test_steps_draw_what_their_seed_rank_and_number_say(tmp_path):
    model = made(tmp_path)
    parameters, data = model.initial(0), batch(64)

    def gradient_at(*step):
        model.begin_step(*step)
        return gradient_of(model, parameters, *data)[1].tobytes()

    steps = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert len({gradient_at(*step) for step in steps}) == 4
    assert gradient_at(*steps[2]) == gradient_at(*steps[2])
    one, other = (model.scores(parameters, data[0]) for _ in range(2))
    assert np.array_equal(one, other)  # evaluation drops nothing


ODD = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.out = nn.Linear(4, 11, bias=False)
        self.out.weight = self.embedding.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.last = nn.Parameter(torch.ones(()))

    def forward(self, tokens):
        assert tokens.dtype == torch.int64
        return self.out(self.frozen(self.embedding(tokens).mean(dim=1))) * self.last

def odd():
    return Odd()

def half():
    return nn.Linear(8, 3).bfloat16()

def regression():
    return nn.Sequential(nn.Linear(8, 1), nn.Flatten(0))
"""


def test_tied_frozen_and_unused_parameters_are_as_they_should(tmp_path):
    model = made(tmp_path, "nets:odd", ODD)
    assert model.shapes == {"unused": (3,), "last": (), "embedding.weight": (11, 4)}
    assert set(model.buffers()) == {"frozen.weight", "frozen.bias"}
    tokens, targets = np.array([[1, 2], [3, 3], [0, 10]]), np.array([1, 2, 3])
    model.try_out(tokens, targets)
    parameters = model.initial(0)
    told = []
    _, gradient = gradient_of(model, parameters, tokens, targets, told.append)
    parts = model.views(gradient)
    assert not parts["unused"].any()
    assert parts["embedding.weight"].all(axis=1).sum() == 11  # used as an output too
    assert told[-1] == 0
    numeric, moved = 1e-3, parameters.copy()
    model.views(moved)["embedding.weight"][3, 1] += numeric
    before, after = (gradient_of(model, each, tokens, targets)[0] for each in (parameters, moved))
    assert (after - before) / numeric == pytest.approx(parts["embedding.weight"][3, 1], abs=2e-2)
    empty = gradient_of(model, parameters, tokens[:0], targets[:0])
    assert empty[0] == 0
    assert not empty[1].any()


def test_numbers_of_16_bits_have_a_master_copy_and_regressions_their_loss(tmp_path):
    model = made(tmp_path, "nets:half", ODD)
    parameters, (features, targets) = model.initial(0), batch()
    parameters += np.float32(1e-4)  # less than bfloat16 holds
    kept = parameters.copy()
    _, gradient = gradient_of(model, parameters, features, targets)
    assert np.array_equal(parameters, kept)
    assert np.isfinite(gradient).all()
    assert gradient.any()
    model = made(tmp_path, "nets:regression", ODD, loss="mse")
    model.try_out(features, features[:, 0])
    parameters = model.initial(0)
    _, gradient = gradient_of(model, parameters, features, features[:, 0])
    scores = model.scores(parameters, features)
    assert scores.shape == (5, 1)
    expected = 2 * ((scores - features[:, :1]) * features).sum(axis=0)
    np.testing.assert_allclose(model.views(gradient)["0.weight"][0], expected, rtol=1e-4)


def test_an_own_loss_is_a_mean_and_is_told_with_metrics(tmp_path):
    model = made(tmp_path, loss="nets:mean_loss", metrics=["accuracy"])
    parameters, (features, targets) = model.initial(0), batch()
    model.begin_step(0, 0, 0)
    loss, gradient = gradient_of(model, parameters, features, targets)
    model.begin_step(0, 0, 0)
    twice = np.tile(features, (2, 1)), np.tile(targets, 2)
    assert loss > 0
    assert gradient.any()
    scores = model.scores(parameters, twice[0])
    told = model.loss.metrics_of(
        model.loss.add(
            model.loss.sums(scores[:3], twice[1][:3]), model.loss.sums(scores[3:], twice[1][3:])
        )
    )
    smoothed = torch.nn.functional.cross_entropy(
        torch.from_numpy(scores), torch.from_numpy(twice[1]), label_smoothing=0.1
    )
    assert told["loss"] == pytest.approx(smoothed.item(), rel=1e-5)
    assert told["accuracy"] == (scores.argmax(axis=1) == twice[1]).mean()


PREFIX = "import torch\nfrom torch import nn\n"
WRONG = {
    # name: (text of nets.py, options, words)
    "no module": (NETS, {"kind": "nots:net"}, ["nots: no module of that name", "beside the settings"]),
    "no function": (NETS, {"kind": "nets:nett"}, ["there is no 'nett'", "did you mean 'net'?"]),
    "no name": (NETS, {"kind": "nets:"}, ["'nets:'", '"module:function"']),
    "no function but a module": (NETS, {"kind": "nets:torch"}, ["'torch' is of type module"]),
    "a syntax error": ("def net(:\n", {}, ["SyntaxError", "nets.py:1"]),
    "an import that fails": ("import no_such_thing\n", {}, ["'no_such_thing'", "nets.py:1"]),
    "an exit": ("import sys\nsys.exit(3)\n", {}, ["SystemExit: 3", "nets.py:2"]),
    "a function that raises": (
        PREFIX + "def net():\n    return 1 / 0\n",
        {},
        ["nets:net raises ZeroDivisionError: division by zero at", "nets.py:4 (net)"],
    ),
    "a misspelt argument": (NETS, {"arguments": {"widht": 3}}, ["no 'widht', did you mean 'width'?"]),
    "no module of torch": (PREFIX + "def net():\n    return {}\n", {}, ["gives a dict", "nn.Module"]),
    "no parameters": (PREFIX + "def net():\n    return nn.ReLU()\n", {}, ["has no parameters"]),
    "all frozen": (
        PREFIX + "def net():\n    return nn.Linear(8, 3).requires_grad_(False)\n",
        {},
        ["all parameters are frozen", "requires_grad"],
    ),
    "whole numbers": (
        PREFIX
        + "def net():\n    net = nn.Linear(8, 3)\n"
        + "    net.table = nn.Parameter(torch.ones(3, dtype=torch.int32), requires_grad=False)\n"
        + "    return net\n",
        {},
        ["the parameter table is of int32", "register_buffer"],
    ),
    "complex ones": (
        PREFIX + "def net():\n    return nn.Linear(8, 3).to(torch.complex64)\n",
        {},
        ["weight is of complex64"],
    ),
    "no sizes": (PREFIX + "def net():\n    return nn.LazyLinear(3)\n", {}, ["has no shape yet"]),
    "features of another shape": (
        PREFIX + "def net():\n    return nn.Linear(7, 3)\n",
        {},
        ["trying the module with features float32[2, 8] raises RuntimeError", "cannot be multiplied"],
    ),
    "inputs of another size": (NETS, {"inputs": [3, 3]}, ["inputs = [3, 3] are 9", "data has [8]"]),
    "a vector as loss": (
        NETS + "def each(scores, targets):\n"
        "    return nn.functional.cross_entropy(scores, targets, reduction='none')\n",
        {"loss": "nets:each"},
        ["nets:each: the loss is a tensor of shape [2]", "loss.mean()"],
    ),
    "a loss that raises": (
        NETS + "def bad(scores, targets):\n    raise KeyError('weights')\n",
        {"loss": "nets:bad"},
        ["nets:bad: the loss raises KeyError: 'weights' at", "nets.py:12 (bad)"],
    ),
    "a loss of nothing": (
        NETS + "def still(scores, targets):\n    return scores.detach().mean()\n",
        {"loss": "nets:still"},
        ["does not depend on the trained parameters"],
    ),
    "a loss that is not there": (NETS, {"loss": "crossentropy"}, ["one of cross_entropy, mse or"]),
    "several tensors": (
        PREFIX + "class Two(nn.Linear):\n    def forward(self, x):\n        return x, x\n"
        "def net():\n    return Two(8, 3)\n",
        {},
        ["gives tuple for 2 samples", "[batch, outputs]"],
    ),
    "the mean of the batch": (
        PREFIX + "class One(nn.Linear):\n    def forward(self, x):\n        return x.mean()\n"
        "def net():\n    return One(8, 3)\n",
        {},
        ["gives [] for 2 samples"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_before_the_first_step(name, tmp_path):
    text, options, words = WRONG[name]
    with pytest.raises(ModelError) as told:
        made(tmp_path, text=text, **options).try_out(*batch())
    line = str(told.value)
    assert all(word in line for word in words), line
    assert "\n" not in line
    assert told.value.exit_code == 16


def test_trying_a_module_out_leaves_nothing_behind(tmp_path):
    model = made(tmp_path)
    parameters, state = model.initial(0), torch.get_rng_state()
    before = {name: array.copy() for name, array in model.buffers().items()}
    model.try_out(*batch())
    assert all(np.array_equal(array, before[name]) for name, array in model.buffers().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(model.initial(0), parameters)
    assert model.outputs == 3


def test_without_torch_the_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(ModelError, match=r"needs PyTorch, the extra isthmus\[torch\].*pip install"):
        made(tmp_path, text="import torch\n")


FLAT = """
import numpy as np

class Line:
    '''Scores are features times a matrix: a model without torch.'''
    size, outputs, shapes, tensor_slices = 24, 3, {"matrix": (8, 3)}, [slice(0, 24)]

    def initial(self, seed):
        return np.zeros(24, np.float32)

    def scores(self, parameters, features):
        return features @ parameters.reshape(8, 3)

    def gradient(self, parameters, features, targets, gradient, ready=None):
        scores = self.scores(parameters, features)
        chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        loss = -np.log(chances[np.arange(len(targets)), targets]).sum()
        chances[np.arange(len(targets)), targets] -= 1
        gradient[:] = (features.T @ chances).reshape(-1)
        if ready:
            ready(0)
        return float(loss)

def line():
    return Line()

def short():
    return object()
"""


def test_a_model_may_be_without_torch(tmp_path):
    model = made(tmp_path, "nets:line", FLAT)
    loss, gradient = gradient_of(model, model.initial(0), *batch())
    assert loss == pytest.approx(5 * np.log(3), rel=1e-6)
    assert gradient.any()
    assert model.buffers() == {}
    assert model.loss.metrics == ("loss", "accuracy")
    with pytest.raises(ModelError, match="gives a object; .* size, shapes"):
        made(tmp_path, "nets:short", FLAT)


def test_sources_are_the_modules_beside_and_what_they_import(tmp_path):
    (tmp_path / "package").mkdir()
    for name, text in {
        "nets.py": "import torch, package.inner\nfrom layers import *\n",
        "layers.py": "import nets, os\n",
        "unused.py": "",
        "package/__init__.py": "from . import other\n",
        "package/inner.py": "",
        "package/other.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    code = OwnCode(tmp_path)
    assert list(code.sources("nets:net")) == [
        "layers.py",
        "nets.py",
        "package/__init__.py",
        "package/inner.py",
        "package/other.py",
    ]
    before = code.sources("nets:net")
    (tmp_path / "package/other.py").write_text("x = 1\n")
    after = code.sources("nets:net")
    assert [name for name in before if before[name] != after[name]] == ["package/other.py"]


def test_a_module_that_changed_or_lies_elsewhere_is_read_again(tmp_path):
    places = [tmp_path / name for name in "ab"]
    for place in places:
        place.mkdir()
        own(place, f"from layers import value\ndef net():\n    return {place.name!r} + value\n")
        (place / "layers.py").write_text(f"value = {place.name * 3!r}\n")
    assert [OwnCode(place).find("nets:net")() for place in [*places, places[0]]] == [
        "aaaa",
        "bbbb",
        "aaaa",
    ]
    (places[0] / "layers.py").write_text("value = 'changed'\n")
    assert OwnCode(places[0]).find("nets:net")() == "achanged"


@pytest.mark.ranks(2)
def test_a_run_with_an_own_model_goes_on_to_the_same_bits(comm, shared_folder):
    folder = shared_folder
    model = {"kind": "nets:net", "width": 6}
    table = {**RUN, "model": model}
    training = {"epochs": 2, "batch_size": 24, "learning_rate": 0.1, "compare_replicas_every": 3}
    allreduce = {"buckets": 3, "compressor": {"kind": "int8", "block": 16}}

    def prepare():
        for seed, name in enumerate(("train", "test")):
            learnable(folder, name, seed=seed)
        own(folder)
        for name, epochs in (("run", 2), ("more", 3)):
            settings(
                folder,
                table,
                name=f"{name}.toml",
                training={**training, "epochs": epochs},
                allreduce=allreduce,
                run={"trace": True},
            )
        settings(folder, table, name="loss.toml", training=training, model={"loss": "nets:mean_loss"})

    from_root(comm, prepare)
    made = RunSettings.from_toml(folder / "run.toml")
    with isthmus.split_tiers(comm, made.read_cluster()) as tiers:
        of_ranks = compute_fits(tiers, made, made.make_model(), 1, np)
    assert all(fit.bytes_per_second > 0 for fit in of_ranks)  # as `calibrate` measures them
    go(comm, folder / "run.toml", name="mine")
    whole = go(comm, folder / "more.toml")
    longer = go(comm, folder / "more.toml", resume=folder / "runs/mine")
    assert longer["parameter_hash"] == whole["parameter_hash"]
    assert longer["accuracy"] == whole["accuracy"]  # of the mean of BatchNorm's statistics
    assert longer["loss"] == whole["loss"]
    smooth = go(comm, folder / "loss.toml")
    assert smooth["loss"] > 0
    from_root(comm, lambda: own(folder, NETS + "\n# changed\n") and None)
    refused = go(comm, folder / "more.toml", resume=folder / "runs/mine")
    assert isinstance(refused, CheckpointError)
    assert "nets.py has changed since" in str(refused)
    if comm.rank == 0:
        (folder / "nets.py").unlink()
        from isthmus.folders.status import describe_run
        from isthmus.pages.report import write_report

        assert "nets:net" in write_report(folder / "runs/mine").read_text()
        assert describe_run(folder / "runs/mine")["state"] == "finished"
        assert json.loads((folder / "runs/mine/run.json").read_text())["settings"]["model"]["sources"]


DIFFERENT = {
    # on rank 1, the words of the line that both ranks raise
    "classes=3": ("classes=3 + RANK", ["the model differs between ranks", "[4, 6] on rank 1"]),
    "nn.ReLU()": ("nn.ReLU(*(1 / 0 for _ in range(RANK)))", ["ZeroDivisionError", "rank 1"]),
    "label_smoothing=0.1": ("label_smoothing=int('x' * RANK or 1)", ["ValueError", "rank 1"]),
}


@pytest.mark.ranks(2)
def test_what_goes_wrong_on_one_rank_is_told_by_all(comm, shared_folder):
    folder = shared_folder
    text = NETS.replace(
        "import torch\n", "import torch\nfrom mpi4py import MPI\nRANK = MPI.COMM_WORLD.rank\n"
    )

    def prepare():
        for seed, name in enumerate(("train", "test")):
            learnable(folder, name, seed=seed)
        settings(folder, {**RUN, "model": {"kind": "nets:net", "loss": "nets:mean_loss"}})

    from_root(comm, prepare)
    for old, (new, words) in DIFFERENT.items():
        from_root(comm, lambda old=old, new=new: own(folder, text.replace(old, new)) and None)
        told = go(comm, folder / "run.toml")
        assert isinstance(told, ModelError), (old, told)
        assert all(word in str(told) for word in words), str(told)
    # Parameters that differ although the seed is the same: all take rank 0's.
    from_root(
        comm,
        lambda: (
            own(folder, text.replace("return nn.Seq", "torch.rand(RANK)\n    return nn.Seq")) and None
        ),
    )
    assert "parameter_hash" in go(comm, folder / "run.toml")
    # Labels beyond the module's outputs.
    from_root(comm, lambda: own(folder) and None)
    from_root(comm, lambda: str(settings(folder, {**RUN, "model": {"kind": "nets:net", "classes": 2}})))
    told = go(comm, folder / "run.toml")
    assert "go beyond 0 ... 1" in str(told), told


def test_the_models_of_the_page_and_of_the_experiment_are_models(repository, tmp_path):
    import re
    import tomllib

    page = (repository / "docs/bring_your_model.md").read_text()
    nets = re.search(r"```python nets.py\n(.*?)```", page, re.S)[1]
    table = tomllib.loads(re.search(r"```toml\n(.*?)```", page, re.S)[1])["model"]
    own(tmp_path, nets)
    model = OwnModelSettings.of(table).located(tmp_path).make(threads=1)
    model.try_out(*batch(shape=(4, 4)))
    assert model.loss.metrics == ("loss", "accuracy")
    assert model.shapes["1.weight"] == (64, 16)
    quickstart = RunSettings.from_toml(repository / "experiments/own_torch_model.toml")
    model = quickstart.make_model()
    model.try_out(np.zeros((0, 28, 28), "u1"), np.zeros(0, "u1"))
    assert (model.outputs, model.size) == (10, 207018)
    again = RunSettings.from_json(quickstart.to_json(), "run.json")
    assert again.to_json() == quickstart.to_json()
    assert sum(bool(line.strip()) for line in (repository / "experiments/my_models.py").open()) <= 30


FAILS = """
import torch
from torch import nn

class Fails(nn.Linear):
    steps = 0

    def forward(self, values):
        self.steps += self.training
        if self.steps > 4:
            raise IndexError("no such row")
        return super().forward(values)

def net():
    return Fails(8, 3)
"""


@pytest.mark.slow
def test_code_that_raises_in_a_step_ends_the_job_in_one_block(tmp_path):
    from test_cli import call

    for seed, name in enumerate(("train", "test")):
        learnable(tmp_path, name, seed=seed)
    own(tmp_path, FAILS)
    settings(tmp_path, {**RUN, "model": {"kind": "nets:net"}})
    checked = call(tmp_path, None, "check", "run.toml")
    assert "nets:net, 27 parameters" in checked.stdout, checked
    done = call(tmp_path, 2, "train", "run.toml")
    assert done.returncode == 16, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("isthmus:")]
    assert len(told) == 1, done.stderr
    assert "nets:net: a step of the module raises IndexError: no such row at" in told[0]
    assert "nets.py:11 (forward)" in told[0]
    assert "docs/errors/16.md" in done.stderr
    own(tmp_path, FAILS.replace("Fails(8, 3)", "Fails(7, 3)"))
    planned = call(tmp_path, None, "check", "run.toml")
    assert planned.returncode == 16, planned
    assert "float32[2, 8] raises RuntimeError" in planned.stdout


@pytest.mark.slow
@pytest.mark.ranks(4)
def test_the_quickstart_learns_in_a_tenth_of_its_steps(comm, shared_folder, repository):
    import tomllib

    experiments = repository / "experiments"
    table = tomllib.loads((experiments / "own_torch_model.toml").read_text())
    table["cluster"]["links"] = "real"
    table["data"] = {
        name: str((experiments / folder).resolve()) for name, folder in table["data"].items()
    }
    table["training"]["epochs"] = 1
    table["run"]["folder"] = str(shared_folder)
    cluster = Cluster.from_toml(experiments / "two_sites.toml").to_table()

    def prepare():
        own(shared_folder, (experiments / "my_models.py").read_text(), "my_models.py")
        return str(settings(shared_folder, table, cluster=cluster))

    done = go(comm, from_root(comm, prepare))
    assert done["accuracy"] > 0.75, done
    assert done["step"]["measured_seconds"] > 0


@pytest.mark.ranks(2)
def test_mean_buffers_are_those_of_all_samples(comm, shared_folder):
    from isthmus.training.buffers import averaged, mean_buffers, stored, take_stored

    from_root(comm, lambda: own(shared_folder) and None)
    model = make_own("nets:net", {}, folder=shared_folder)
    own_buffers = {
        "2.running_mean": np.full(6, 1.0 + comm.rank, "f4"),
        "2.running_var": np.full(6, 4.0, "f4"),
        "2.num_batches_tracked": np.array(3 + comm.rank),
    }
    model.set_buffers(own_buffers)
    means = mean_buffers(comm, model, weight=3.0 if comm.rank else 1.0)
    assert means["2.running_mean"].tolist() == [1.75] * 6
    assert means["2.running_var"].tolist() == [4.0] * 6
    assert means["2.num_batches_tracked"] == 4
    assert len({each.tobytes() for each in all_gather(comm, means["2.running_mean"])}) == 1
    with averaged(comm, model, weight=1.0):
        assert model.buffers()["2.running_mean"].tolist() == [1.5] * 6
    assert model.buffers()["2.running_mean"].tolist() == own_buffers["2.running_mean"].tolist()
    kept = {name: array.copy() for name, array in stored(model).items()}
    assert sorted(kept) == ["buffers/float32", "buffers/int64"]
    model.set_buffers(means)
    take_stored(model, kept)
    assert model.buffers()["2.num_batches_tracked"] == 3 + comm.rank


SAMPLED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 12), nn.GroupNorm(3, 12), nn.Linear(12, classes)
        self.never = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.ones(12), requires_grad=False)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x)))) * self.frozen[:1]

def half(scores, targets):
    return nn.functional.cross_entropy(scores, targets, label_smoothing=0.1)

def branches(scores, targets):
    return scores.mean() if float(scores.sum()) > 0 else scores.sum()

def tokens():
    return nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(10, 3))
"""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "nets:half"])
def test_gradients_of_samples_are_clipped_as_if_each_were_alone(tmp_path, loss, monkeypatch):
    arguments = {"classes": 1} if loss == "mse" else {}
    model = made(tmp_path, "nets:Net", SAMPLED, loss=loss, arguments=arguments)
    features, targets = batch(9)
    features *= np.arange(1, 10)[:, None]
    if loss == "mse":
        targets = targets.astype("f4")
    model.try_out(features, targets)
    parameters, each = model.initial(1), np.empty((9, model.size), "f4")
    for number in range(9):
        model.gradient(parameters, features[[number]], targets[[number]], each[number])
    norms = np.linalg.norm(each.astype("f8"), axis=1)
    clip = float(np.median(norms))
    expected = (each * np.minimum(1, clip / norms)[:, None]).sum(axis=0)
    found = np.empty(model.size, "f4")
    monkeypatch.setattr("isthmus.models.torch_samples.NBYTES", 4 * 4 * model.size)  # 4, 4 and 1
    model.clipped_gradient(parameters, features, targets, clip, found)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max() + 1e-6
    broken = features.copy()
    broken[3, 5] = np.nan
    with_it, others = np.empty_like(found), np.arange(9) != 3
    model.clipped_gradient(parameters, broken, targets, clip, with_it)
    model.clipped_gradient(parameters, features[others], targets[others], clip, found)
    assert with_it == pytest.approx(found, abs=1e-5 * float(np.abs(found).max()))
    model.clipped_gradient(parameters, features[:0], targets[:0], clip, found)
    assert not found.any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_where_samples_meet_none_is_clipped_alone(tmp_path):
    found = np.empty(1000, "f4")
    model = made(tmp_path)
    with pytest.raises(ModelError, match="is a BatchNorm1d: .* take GroupNorm"):
        model.clipped_gradient(model.initial(0), *batch(3), 1.0, found[: model.size])
    model = made(tmp_path, "nets:Net", SAMPLED, loss="nets:branches")
    with pytest.raises(ModelError, match=r"nets:branches: .*data-dependent control flow"):
        model.clipped_gradient(model.initial(0), *batch(3), 1.0, found[: model.size])
    model = made(tmp_path, "nets:tokens", SAMPLED)
    tokens = np.arange(8).reshape(4, 2)
    model.clipped_gradient(model.initial(0), tokens, np.zeros(4, int), 0.1, found[: model.size])
    assert 0 < np.linalg.norm(found[: model.size]) < 0.4
