"""PyTorch's own optimisers by name: their steps, what resumes, and what is refused."""

import sys

import numpy as np
import pytest

from isthmus.errors import IsthmusError, NoDeviceError, SettingsError
from isthmus.jobs.training_settings import TrainingSettings
from isthmus.models.perceptron import Perceptron
from isthmus.toml_files import check_table
from isthmus.training.optimisers.of_torch import OfTorch

torch = pytest.importorskip("torch")
MODEL = Perceptron(6, (5,), 3)
RATES = (0.1, 0.05, 0.2, 0.01, 0.1)


def gradients():
    draw = np.random.Generator(np.random.PCG64(3))
    return [draw.normal(size=MODEL.size).astype("f4") for _ in RATES]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("AdamW", {"weight_decay": 0.1, "betas": [0.8, 0.95]}),
        ("NAdam", {}),
        ("RMSprop", {"momentum": 0.5, "centered": True}),
        ("Adagrad", {"initial_accumulator_value": 0.1}),
        ("Rprop", {}),
        ("ASGD", {}),
        ("Adafactor", {}),
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_a_step_is_pytorchs_and_goes_on_from_arrays(name, arguments):
    """The oracle is a plain loop; after two steps another goes on, as after a resume."""
    given = MODEL.initial(0)
    plain = [torch.from_numpy(view.copy()).requires_grad_() for view in MODEL.views(given).values()]
    oracle = getattr(torch.optim, name)(plain, lr=1.0, **arguments)
    parameters, optimiser = given.copy(), OfTorch(f"torch.optim.{name}", arguments).on(MODEL)
    arrays = optimiser.begin(MODEL.size, parameters)
    for number, (gradient, rate) in enumerate(zip(gradients(), RATES)):
        if number == 2:
            kept = {key: array.copy() for key, array in arrays.items()}
            parameters = parameters.copy()
            optimiser = OfTorch(f"torch.optim.{name}", arguments).on(MODEL)
            arrays = optimiser.begin(MODEL.size, parameters)
            assert {key: array.shape for key, array in arrays.items()} == {
                key: array.shape for key, array in kept.items()
            }
            for key, array in arrays.items():
                array[:] = kept[key]
        for tensor, view in zip(plain, MODEL.views(gradient).values()):
            tensor.grad = torch.from_numpy(view * np.float32(0.5))
        oracle.param_groups[0]["lr"] = rate
        oracle.step()
        optimiser.step(parameters, gradient, arrays, rate, scale=0.5)
    for tensor, view in zip(plain, MODEL.views(parameters).values()):
        np.testing.assert_array_equal(tensor.detach().numpy(), view)
    assert not np.array_equal(parameters, given)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("torch.optim.AdmaW", "torch.optim has no 'AdmaW'; did you mean 'AdamW'?"),
        ("torch.optim.Optimizer", "torch.optim has no 'Optimizer'"),
        ("torch.optim.LBFGS", "torch.optim.LBFGS cannot be used: it computes the loss several times"),
        ({"kind": "torch.optim.Adam", "lr": 0.1}, "give learning_rate under [training]"),
        ({"kind": "torch.optim.Adam", "momentum": 0.1}, "unexpected keyword argument 'momentum'"),
        ({"kind": "torch.optim.Adam", "eps": -1.0}, "Invalid epsilon value: -1.0"),
    ],
)
def test_what_pytorch_refuses_is_one_line(optimizer, words):
    with pytest.raises(SettingsError) as caught:
        check_table(TrainingSettings, {"optimizer": optimizer}, "run.toml", SettingsError)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_learning_rate_is_pytorchs_where_none_is_named():
    settings = check_table(
        TrainingSettings, {"optimizer": "torch.optim.NAdam"}, "run.toml", SettingsError
    )
    assert settings.learning_rate == 0.002
    assert settings.make_optimiser().kind == "torch.optim.NAdam"
    assert settings.momentum is None


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_tensors_that_an_optimiser_does_not_take_are_told():
    """Muon takes matrices alone, and a perceptron has biases."""
    with pytest.raises(IsthmusError, match=r"torch\.optim\.Muon"):
        OfTorch("torch.optim.Muon", {}).on(MODEL)


def test_without_pytorch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(NoDeviceError, match=r"isthmus\[torch\].*pip install"):
        OfTorch("torch.optim.AdamW", {})
