"""Optimisers: PyTorch's steps, the same bits on every rank and after every stop, and who decays."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resuming import go, pack
from test_resuming import settings as settings_in
from test_training import MODEL, RECIPE, poison, run, training_of

import isthmus
from isthmus.errors import SettingsError
from isthmus.jobs.settings import RunSettings
from isthmus.links.agreement import from_root
from isthmus.models import Convolutional
from isthmus.training.checkpoint import read_checkpoint, write_checkpoint
from isthmus.training.optimisers.adam import Adam, AdamW
from isthmus.training.optimisers.clipping import clipping_factor, global_norm
from isthmus.training.optimisers.sgd import SGD
from isthmus.training.recipe import half_cosine

LIKE_TORCH = {  # ours, the arguments of PyTorch's, and how many units in the last place a step is off
    "sgd": (SGD(momentum=0.0), "SGD", {}, 1),
    "momentum": (SGD(), "SGD", {"momentum": 0.9}, 1),
    "nesterov": (
        SGD(weight_decay=0.01, nesterov=True),
        "SGD",
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        3,
    ),
    "adam": (Adam(), "Adam", {}, 8),
    "adamw": (AdamW(weight_decay=0.1), "AdamW", {"weight_decay": 0.1}, 8),
}
EVERY = [
    SGD(momentum=0.0),
    SGD(weight_decay=0.01, nesterov=True),
    Adam(weight_decay=0.01),
    AdamW(weight_decay=0.1),
]


@pytest.mark.slow
@given(
    st.sampled_from(sorted(LIKE_TORCH)),
    st.integers(0, 2**32),
    st.integers(1, 300),
    st.integers(0, 12),
    st.floats(1e-4, 0.3),
)
@settings(deadline=None, max_examples=60)
def test_steps_are_those_of_pytorch(name, seed, size, decades, rate):
    """Each of 12 steps, from the same parameters, ends within a few units in the last place.

    The unit is that of the largest number in the sum that is the new parameter: PyTorch fuses products
    with sums where the processor can, and orders some otherwise. Moments are each program's own.
    """
    torch = pytest.importorskip("torch")
    ours, kind, arguments, units = LIKE_TORCH[name]
    draw = np.random.default_rng(seed)
    parameters = draw.normal(size=size).astype("f4")
    theirs = torch.nn.Parameter(torch.from_numpy(parameters.copy()))
    optimizer = getattr(torch.optim, kind)([theirs], lr=rate, **arguments)
    arrays, past = ours.begin(size, parameters), np.zeros(size)
    for _ in range(12):
        gradient = (draw.normal(size=size) * 10.0 ** -draw.integers(0, decades + 1, size)).astype("f4")
        theirs.grad = torch.from_numpy(gradient.copy())
        with torch.no_grad():
            theirs.copy_(torch.from_numpy(parameters))
        past = 0.9 * past + abs(gradient) + ours.weight_decay * abs(parameters)
        largest = rate * (2 * past if kind == "SGD" else 1.0)
        largest = np.maximum(abs(parameters), largest)
        optimizer.step()
        ours.step(parameters, gradient, arrays, rate)
        unit = np.spacing(np.maximum(abs(parameters), largest).astype("f4"))
        assert (abs(parameters - theirs.detach().numpy()) <= units * unit).all()


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_decay_that_is_not_adamw_s_is_a_part_of_the_gradient(kind):
    gradient, before = np.random.default_rng(0).normal(size=(2, 50)).astype("f4")
    decays, plain = before.copy(), before.copy()
    kind(weight_decay=0.3).step(decays, gradient, kind().begin(50, before), 0.1)
    kind().step(plain, gradient + np.float32(0.3) * before, kind().begin(50, before), 0.1)
    assert decays.tobytes() == plain.tobytes()


@pytest.mark.slow
@given(st.integers(0, 2**32), st.integers(1, 20_000), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=40)
def test_gradients_are_clipped_as_pytorch_clips_them(seed, size, largest):
    torch = pytest.importorskip("torch")
    gradient = np.random.default_rng(seed).normal(size=size).astype("f4")
    theirs = torch.nn.Parameter(torch.zeros(size))
    theirs.grad = torch.from_numpy(gradient.copy())
    norm = torch.nn.utils.clip_grad_norm_([theirs], largest).item()
    assert global_norm(gradient) == pytest.approx(norm, rel=1e-5)
    clipped = gradient * np.float32(clipping_factor(gradient, largest))
    np.testing.assert_allclose(clipped, theirs.grad.numpy(), rtol=1e-5)
    assert global_norm(clipped) <= largest * (1 + 1e-6)


def test_a_clipped_step_is_that_of_the_clipped_gradient():
    gradient = np.random.default_rng(0).normal(size=MODEL.size).astype("f4")
    for ours in EVERY:
        once, twice = MODEL.initial(0), MODEL.initial(0)
        ours.step(once, gradient, ours.begin(MODEL.size, once), 0.1, 0.3)
        ours.step(twice, gradient * np.float32(0.3), ours.begin(MODEL.size, twice), 0.1)
        assert once.tobytes() == twice.tobytes()
        assert (once != MODEL.initial(0)).any()


@pytest.mark.parametrize(
    ("exclude", "decaying"),
    [
        (None, {"layer0.weight", "layer1.weight"}),
        ((), {"layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias"}),
        (("*.bias", "layer1.*"), {"layer0.weight"}),
        ("layer0.weight", {"layer0.bias", "layer1.weight", "layer1.bias"}),
        (("*",), set()),
    ],
)
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_what_is_excluded_does_not_decay(kind, exclude, decaying):
    """With a gradient of zeros nothing moves but what decays."""
    ours = kind(weight_decay=0.5, exclude=exclude).on(MODEL)
    before = MODEL.initial(0) + np.float32(1)
    after = before.copy()
    ours.step(after, np.zeros(MODEL.size, "f4"), ours.begin(MODEL.size, after), 0.1)
    moved = {
        name for name, view in MODEL.views(after).items() if (view != MODEL.views(before)[name]).any()
    }
    assert moved == decaying


def test_tensors_that_decay_alike_make_one_step():
    model = Convolutional(channels=(4, 8))
    assert len(AdamW().on(model).spans) == len(model.shapes)
    assert len(AdamW(exclude=("linear.*",)).on(model).spans) == 2
    for whole in (AdamW(exclude=()), AdamW(weight_decay=0.0, exclude=("*.bias",))):
        assert len(whole.on(model).spans) == 1
    with pytest.raises(SettingsError, match=r"no tensor of the model is called '\*\.weights'; they are"):
        AdamW(weight_decay=0.0, exclude=("*.bias", "*.weights")).on(model)


@pytest.mark.parametrize(
    ("schedule", "warmup", "shares"),
    [
        ("constant", 0, [1] * 12),
        ("constant", 3, [1 / 3, 2 / 3, 1] + [1] * 9),
        ("linear", 2, [0.5, 1] + [1 - k / 10 for k in range(10)]),
        ("cosine", 0, [(1 + math.cos(math.pi * k / 12)) / 2 for k in range(12)]),
        ("cosine", 4, [0.25, 0.5, 0.75, 1] + [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]),
    ],
)
def test_the_learning_rate_warms_up_and_follows_its_schedule(schedule, warmup, shares):
    recipe = replace(RECIPE, schedule=schedule, warmup_steps=warmup)
    rates = [recipe.learning_rate_of(step) for step in range(12)]
    assert rates == pytest.approx([0.1 * share for share in shares], rel=1e-14)


@given(st.floats(0, 1))
def test_half_a_cosine_is_one(share):
    assert half_cosine(share) == pytest.approx((1 + math.cos(math.pi * share)) / 2, abs=4e-16)


@pytest.mark.slow
@pytest.mark.ranks(3)
@pytest.mark.parametrize("optimiser", EVERY, ids=repr)
def test_a_run_of_every_optimiser_is_resumed_to_the_same_bits(comm, shared_folder, optimiser):
    """In the middle of the warm-up, and after it; a step that is left out counts in no moment."""
    recipe = replace(
        RECIPE,
        learning_rate=0.01,
        optimiser=optimiser.on(MODEL),
        schedule="cosine",
        warmup_steps=4,
        clip_norm=0.5,
        on_non_finite="skip",
    )
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 2))) as tiers:

        def fresh():
            training = training_of(tiers, (17, 9, 4), recipe, isthmus.Int8(8))
            poison(training, 1, 2)
            return training

        whole = run(fresh())
        for stop in (3, 8):
            half = fresh()
            for _ in half.steps():
                if half.state.step == stop:
                    break
            path = shared_folder / "checkpoint.h5"
            write_checkpoint(path, half, {})
            again = fresh()
            read_checkpoint(path, again, {})
            assert again.arrays().keys() == half.arrays().keys()
            assert run(again) == whole
        if "powers" in half.state.optimiser:
            powers = np.cumprod(np.full(stop - 1, 0.9))[-1]  # of the steps that were made
            assert half.state.optimiser["powers"][0] == powers


def training(**table):
    """Return what [training] becomes in a run's settings."""
    run = {
        "cluster": {"file": "c.toml"},
        "data": {"train": "a", "test": "b"},
        "model": "perceptron",
        "training": table,
    }
    made = RunSettings.model_validate(run)
    assert RunSettings.from_json(made.to_json(), "run.json") == made
    return made


@pytest.mark.parametrize(
    ("table", "rate", "optimiser"),
    [
        ({}, 0.1, SGD()),
        ({"momentum": 0.5}, 0.1, SGD(momentum=0.5)),
        ({"optimizer": {"kind": "sgd", "momentum": 0.5}}, 0.1, SGD(momentum=0.5)),
        (
            {"optimizer": {"kind": "sgd", "nesterov": True}, "momentum": 0.5},
            0.1,
            SGD(momentum=0.5, nesterov=True),
        ),
        ({"optimizer": "adamw"}, 0.001, AdamW()),
        ({"optimizer": "adam", "learning_rate": 0.3}, 0.3, Adam()),
        (
            {"optimizer": {"kind": "adamw", "weight_decay": 0.2, "exclude": ["*.bias"]}},
            0.001,
            AdamW(weight_decay=0.2, exclude=("*.bias",)),
        ),
    ],
)
def test_settings_name_an_optimizer(table, rate, optimiser):
    recipe = training(**table).recipe(steps=5)
    assert (recipe.learning_rate, recipe.optimiser) == (rate, optimiser)
    assert type(recipe.optimiser) is type(optimiser)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"optimizer": "adamx"}, "one of sgd, adam, adamw, not 'adamx'; did you mean 'adam"),
        ({"optimizer": {"kind": "adamw", "betas": [0.9, 0.99]}}, "beta2, epsilon; there is no 'betas'"),
        ({"optimizer": {"kind": "adamw", "spans": []}}, "there is no 'spans'"),
        ({"optimizer": {"kind": "adamw", "weight_decay": -1}}, "weight_decay must be 0 or more, not -1"),
        (
            {"optimizer": {"kind": "adam", "beta2": 1.0}},
            "beta2 must be 0 or more and less than 1, not 1",
        ),
        ({"optimizer": {"kind": "adam", "epsilon": 1e-50}}, "epsilon must be 1e-37 or more, not 1e-50"),
        ({"optimizer": {"kind": "sgd", "nesterov": 1}}, "look at the types of nesterov = 1"),
        ({"optimizer": {"kind": "sgd", "exclude": 3}}, "look at the types of exclude = 3"),
        ({"optimizer": {"kind": "sgd", "nesterov": True}, "momentum": 0}, "needs a momentum above 0"),
        (
            {"optimizer": "adam", "momentum": 0.9},
            "is of optimizer = \"sgd\", not of 'adam'; leave it out",
        ),
        (
            {"optimizer": {"kind": "sgd", "momentum": 0.5}, "momentum": 0.9},
            "momentum: is given twice, 0.9 here and 0.5",
        ),
        ({"schedule": "step"}, "schedule: must be 'constant', 'linear' or 'cosine', not 'step'"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"clip_norm": 0}, "clip_norm"),
        ({"warmup_steps": 10, "epochs": 2}, "warmup_steps = 10 must be less than the run's 10 steps"),
        ({"optimizer": {"kind": "adamw", "exclude": ["*.scale"]}}, "no tensor of the model is called"),
    ],
)
def test_what_is_wrong_with_an_optimizer_is_one_line(tmp_path, table, words):
    path = settings_in(tmp_path, training=table)
    with pytest.raises(SettingsError) as told:
        RunSettings.from_toml(path).recipe(steps=5)
    assert words in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.ranks(2)
def test_a_run_resumes_with_its_own_optimizer_alone(comm, shared_folder):
    folder = shared_folder
    adamw = {"optimizer": {"kind": "adamw", "weight_decay": 0.1}, "schedule": "cosine", "clip_norm": 1.0}

    def paths():
        for name in ("train", "test"):
            pack(folder, name)
        other = {**adamw, "optimizer": "adamw"}
        wrong = {**adamw, "optimizer": {"kind": "adamw", "exclude": ["*.scale"]}}
        return [
            str(settings_in(folder, training=table, name=f"{number}.toml"))
            for number, table in enumerate((adamw, other, {**adamw, "clip_norm": 2.0}, wrong))
        ]

    mine, decays, clips, wrong = from_root(comm, paths)
    whole = go(comm, mine)
    told = [str(go(comm, path, resume=whole["folder"])) for path in (decays, clips)]
    assert "training.optimizer.weight_decay = 0.01, was 0.1; resume with" in told[0]
    assert "training.clip_norm = 2.0, was 1.0; resume with" in told[1]
    assert go(comm, mine, resume=whole["folder"])["parameter_hash"] == whole["parameter_hash"]
    refused = go(comm, wrong)
    assert isinstance(refused, SettingsError)
    assert "no tensor of the model is called '*.scale'; they are layer0.weight" in str(refused)
    if comm.rank == 0:
        made = json.loads((folder / "runs").glob("*/run.json").__next__().read_text())
        assert made["settings"]["training"]["optimizer"]["kind"] == "adamw"
