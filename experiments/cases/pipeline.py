"""What the tasks of pipeline.toml do, with the network that case 3 has trained.

Images come from the test set of data/fashion_mnist: two cameras have 400 each, on which the dense layers
learn on; `evaluate` judges them on 400 others.
"""

import json
from pathlib import Path

import numpy as np
import torch

import isthmus

ROOT = Path(__file__).resolve().parent.parent.parent
RUNS = ROOT / "runs/cases/case_3_cnn_and_task_graph"
IMAGES, EPOCHS, BATCH_SIZE, LEARNING_RATE, MOMENTUM = 400, 4, 100, 0.01, 0.9

torch.set_num_threads(1)
TRAINED, PARAMETERS = isthmus.load_model(RUNS / "cnn")
NETWORK = type(TRAINED.model.module)()
NETWORK.load_state_dict({name: torch.tensor(each) for name, each in TRAINED.views(PARAMETERS).items()})
NETWORK(torch.zeros(1, 1, 28, 28))  # the first pass takes longer, and would be on the clock
SHARDS = isthmus.ShardSet.open(ROOT / "data/fashion_mnist/test")
PIXELS, CLASSES = (
    np.concatenate([SHARDS.read(shard)[name] for shard in range(len(SHARDS.samples))])
    for name in ("features", "targets")
)


def _dense():
    return [*NETWORK.fc1.parameters(), *NETWORK.fc2.parameters()]


LEARNT = torch.nn.utils.parameters_to_vector(_dense()).detach()


def images_of_camera_1(inputs):
    return _joined(PIXELS[:IMAGES], CLASSES[:IMAGES])


def images_of_camera_2(inputs):
    return _joined(PIXELS[IMAGES : 2 * IMAGES], CLASSES[IMAGES : 2 * IMAGES])


def preprocess(inputs):
    pixels, classes = _parted(inputs, np.uint8)
    return _joined((pixels / 255 - 0.5).astype(np.float16), classes)


@torch.no_grad()
def features(inputs):
    pixels, classes = _parted(inputs, np.float16)
    found = NETWORK.features(torch.from_numpy(pixels.astype(np.float32)).reshape(-1, 1, 28, 28))
    return _joined(found.numpy().astype(np.float16), classes)


def train(inputs):
    both = [_parted({name: part}, np.float16) for name, part in inputs.items()]
    found, classes = (torch.from_numpy(np.concatenate(each)) for each in zip(*both))
    torch.nn.utils.vector_to_parameters(LEARNT, _dense())
    momenta = [torch.zeros_like(each) for each in _dense()]
    for _ in range(EPOCHS):
        for rows in torch.arange(len(classes)).split(BATCH_SIZE):
            scores = NETWORK.classes(found[rows].float())
            loss = torch.nn.functional.cross_entropy(scores, classes[rows].long())
            slopes = torch.autograd.grad(loss, _dense())
            with torch.no_grad():
                for parameters, momentum, slope in zip(_dense(), momenta, slopes):
                    parameters -= LEARNING_RATE * momentum.mul_(MOMENTUM).add_(slope)
    return torch.nn.utils.parameters_to_vector(_dense()).detach().numpy()


@torch.no_grad()
def evaluate(inputs):
    torch.nn.utils.vector_to_parameters(torch.from_numpy(inputs["train"].view(np.float32)), _dense())
    others = slice(2 * IMAGES, 3 * IMAGES)
    pixels = torch.from_numpy(PIXELS[others]).reshape(-1, 1, 28, 28).float() / 255 - 0.5
    right = NETWORK(pixels).argmax(1).numpy() == CLASSES[others]
    (RUNS / "evaluated.json").write_text(json.dumps({"accuracy": float(right.mean())}))
    return b""


def _joined(values, classes):
    """Return bytes: all values, and then a byte an image that tells its class."""
    return values.tobytes() + classes.astype(np.uint8).tobytes()


def _parted(inputs, dtype):
    """Return what `_joined` was given, [images, values] and [images], of a task's one input."""
    (passed,) = inputs.values()
    return passed[:-IMAGES].view(dtype).reshape(IMAGES, -1), passed[-IMAGES:]
