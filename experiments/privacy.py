"""What is read back from a gradient, and what privacy costs: images, accuracy, masks.

    python experiments/privacy.py [SEEDS [PART ...]]

One process, the shipped images, and the parts that jobs use: `clipped_gradient`, `Draws`, `FixedPoint`
and masks. Prints what it finds, and writes it to data/measurements/privacy.jsonl; with parts named
(recovery, costs, private, masked, torch, passes) the lines of others stay as they are.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

import isthmus
from isthmus import kernels
from isthmus.compression.fixed_point import FIRST_RANGE, FixedPoint
from isthmus.measuring.passes import pass_table
from isthmus.models import Perceptron
from isthmus.privacy.accounting import noise_for
from isthmus.privacy.draws import NOISE, SAMPLE, Draws
from isthmus.security.masks import Masking

ROOT = Path(__file__).resolve().parents[1]
MODEL = Perceptron()
DELTA, CLIP = 1e-5, 1.0
EPSILONS = ((3.0, 15, 1.0), (8.0, 20, 0.5))  # epsilon, epochs, learning rate
STEPS_AN_EPOCH = 24
ALIKE = 0.95  # a correlation beyond which an image is read back


def loaded(name):
    """Return features and targets of the packed set `name`."""
    shards = isthmus.ShardSet.open(ROOT / "data/fashion_mnist" / name)
    return [
        np.concatenate([piece for i in range(len(shards.names)) for piece in shards.pieces(i, array)])
        for array in shards.arrays
    ]


def images_read(gradient, images):
    """Return how many of `images` are in the first layer's gradient.

    A unit that one image alone has made active has a weights' gradient that is this image times the
    bias's (Phong et al. 2018, doi:10.1109/TIFS.2017.2787987).
    """
    parts = MODEL.views(gradient)
    weights, bias = parts["layer0.weight"], parts["layer0.bias"]
    candidates = (weights[:, bias != 0] / bias[bias != 0]).T
    candidates -= candidates.mean(axis=1, keepdims=True)
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True) + 1e-30
    flat = images.reshape(len(images), -1).astype("f4")
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return int((np.abs(flat @ candidates.T).max(axis=1) > ALIKE).sum())


def wires(gradient, sites=4):
    """Return what is read of a site's gradient: name -> float32 vector."""
    int8, found = isthmus.Int8(), {}
    for name, noise in (("int8", None), ("int8 of noise 1.6 x clip 1", 1.6)):
        told = (
            gradient
            if noise is None
            else gradient + Draws(os.urandom(32), 0, NOISE).noise(0, gradient.size) * np.float32(noise)
        )
        wire = np.empty(int8.wire_nbytes(told.size), np.uint8)
        int8.encode(told, wire)
        found[name] = np.empty_like(told)
        int8.decode(wire, found[name])
    fixed = FixedPoint(8, sites)
    ranges = np.full(fixed.state_entries(gradient.size), np.abs(gradient).max(), "f4")
    codes = np.empty(gradient.size, fixed.dtype)
    for name in ("fixed point in clear", "masked fixed point"):
        fixed.encode_codes(gradient, None, ranges, codes)
        if name.startswith("masked"):
            pairs = {other: os.urandom(32) for other in range(2, sites)}
            for mask in Masking(1, pairs, False).begin(0, range(sites)):
                mask.mask(codes)
        found[name] = np.empty_like(gradient)
        fixed.decode_codes(codes, ranges.copy(), found[name])
    return found


def recovery(features, targets):
    """Yield what is read back of batches of 8 and 64 from each wire."""
    parameters, gradient = MODEL.initial(0), np.empty(MODEL.size, "f4")
    for size in (8, 64):
        MODEL.gradient(parameters, features[:size], targets[:size], gradient)
        clipped = np.empty_like(gradient)
        MODEL.clipped_gradient(parameters, features[:size], targets[:size], CLIP, clipped)
        for name, told in wires(gradient).items():
            if "noise" in name:
                told = wires(clipped)[name]
            yield {
                "what": "images read",
                "batch": size,
                "wire": name,
                "images": images_read(told, features[:size]),
            }


def trained(train, test, seed, noise, epochs, rate, sites=1):
    """Return the accuracy of SGD with momentum, private where `noise` is a number."""
    (features, targets), total = train, epochs * STEPS_AN_EPOCH
    parameters = MODEL.initial(seed)
    speed, gradient = np.zeros_like(parameters), np.empty_like(parameters)
    secret = os.urandom(32)
    sampling, noises = Draws(secret, 0, SAMPLE), [Draws(secret, site, NOISE) for site in range(sites)]
    for step in range(total):
        rows = sampling.sampled(step, len(features), 1 / STEPS_AN_EPOCH)
        if noise is None:
            MODEL.gradient(parameters, features[rows], targets[rows], gradient)
        else:
            MODEL.clipped_gradient(parameters, features[rows], targets[rows], CLIP, gradient)
            for each in noises:
                gradient += each.noise(step, gradient.size) * np.float32(noise * CLIP)
        gradient *= np.float32(STEPS_AN_EPOCH / len(features))
        speed = np.float32(0.9) * speed + gradient
        parameters -= np.float32(rate * (1 - step / total)) * speed
    return float((MODEL.scores(parameters, test[0]).argmax(1) == test[1]).mean())


def private(train, test, seeds):
    """Yield accuracy against epsilon, for one site and for two that add noise each."""
    yield accuracy(None, 0, 1, [trained(train, test, seed, None, 15, 0.1) for seed in range(seeds)])
    for epsilon, epochs, rate in EPSILONS:
        noise = noise_for(
            epsilon, sampling=1 / STEPS_AN_EPOCH, steps=epochs * STEPS_AN_EPOCH, delta=DELTA
        )
        for sites in (1, 2):
            found = [trained(train, test, seed, noise, epochs, rate, sites) for seed in range(seeds)]
            yield accuracy(epsilon, noise, sites, found)


def accuracy(epsilon, noise, sites, found):
    return {
        "what": "accuracy",
        "epsilon": epsilon,
        "noise": noise,
        "sites": sites,
        "mean": float(np.mean(found)),
        "of_seeds": found,
    }


def masked(train, test, seeds, sites, epochs=8, batch=256):
    """Yield the accuracy of dense, int8 and masked sums over sites."""
    features, targets = train
    parts = np.array_split(np.random.default_rng(9).permutation(len(features)), sites)
    for kind in (None, isthmus.Int8(), FixedPoint(8, sites), FixedPoint(16, sites)):
        found = []
        for seed in range(seeds):
            draw, parameters = np.random.default_rng(seed), MODEL.initial(seed)
            own, speed = np.zeros((sites, MODEL.size), "f4"), np.zeros(MODEL.size, "f4")
            ranges, hub = np.full(-(-MODEL.size // 256), FIRST_RANGE, "f4"), np.zeros(MODEL.size, "f4")
            steps = len(features) * epochs // batch
            for step in range(steps):
                total, codes = np.zeros(MODEL.size, "f4"), 0
                for site in range(sites):
                    rows, gradient = (
                        draw.choice(parts[site], batch // sites, replace=False),
                        own[site] * 0,
                    )
                    MODEL.gradient(parameters, features[rows], targets[rows], gradient)
                    gradient /= np.float32(batch)
                    if kind is None:
                        total += gradient
                    elif isinstance(kind, FixedPoint):
                        wire = np.empty(MODEL.size, kind.dtype)
                        kind.encode_codes(gradient, own[site], ranges, wire)
                        codes = codes + wire
                    else:
                        wire = np.empty(kind.wire_nbytes(MODEL.size), np.uint8)
                        kind.encode(gradient, wire, own[site])
                        kind.add_decoded(wire, total)
                if isinstance(kind, FixedPoint):
                    kind.decode_codes(codes, ranges, total)
                elif kind is not None:
                    kind.encode(total, wire, hub)
                    kind.decode(wire, total)
                speed = np.float32(0.9) * speed + total
                parameters -= np.float32(0.1 * (1 - step / steps)) * speed
            found.append(float((MODEL.scores(parameters, test[0]).argmax(1) == test[1]).mean()))
        name = repr(kind) if kind else "dense"
        yield {
            "what": "sums",
            "sites": sites,
            "wire": name,
            "mean": float(np.mean(found)),
            "of_seeds": found,
        }


def costs(features, targets, entries=1_000_000):
    """Yield seconds of masks beside sending at 100 Mbit/s, of clipping and noise beside a gradient."""
    codes = np.zeros(entries, np.uint8)
    masking = Masking(1, {other: os.urandom(32) for other in range(2, 8)}, False)
    numbers = iter(range(10**9))

    def mask():
        for each in masking.begin(next(numbers), range(8)):
            each.mask(codes)

    seconds = timed(mask)
    yield {
        "what": "masks of 8 sites",
        "entries": entries,
        "seconds": seconds,
        "share": seconds / (entries / 12.5e6),
    }
    parameters, gradient = MODEL.initial(0), np.empty(MODEL.size, "f4")
    draws = Draws(os.urandom(32), 0, NOISE)
    noise = timed(lambda: draws.noise(next(numbers), MODEL.size))
    for batch in (64, 256, 1024):
        rows = features[:batch], targets[:batch]
        plain = timed(partial(MODEL.gradient, parameters, *rows, gradient))
        clipped = timed(partial(MODEL.clipped_gradient, parameters, *rows, CLIP, gradient))
        yield {"what": "clipping", "batch": batch, "clipped": clipped / plain, "noise": noise / plain}


def of_torch(features, targets):
    """Yield how much longer the clipped gradient of an nn.Module takes than its plain one."""
    import torch

    from isthmus.models.losses import CrossEntropy
    from isthmus.models.own_code import OwnCode
    from isthmus.models.torch_model import TorchModel

    torch.set_num_threads(1)

    def perceptron():
        nn = torch.nn
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def convolutional():
        nn = torch.nn
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 10),
        )  # fmt: skip

    for make, shape in ((perceptron, (784,)), (convolutional, (1, 28, 28))):
        model = TorchModel(make, make.__name__, OwnCode(), CrossEntropy(), shape)
        parameters, gradient = model.initial(0), np.empty(model.size, "f4")
        for batch in (64, 256):
            rows = features[:batch], targets[:batch]
            plain = timed(partial(model.gradient, parameters, *rows, gradient))
            clipped = timed(partial(model.clipped_gradient, parameters, *rows, CLIP, gradient))
            yield {
                "what": "clipping, torch",
                "module": make.__name__,
                "batch": batch,
                "clipped": clipped / plain,
                "plain_seconds": plain,
            }


def passes(nbytes=2**20):
    """Yield what is done to a megabyte beside adding it to another."""
    vector, total = np.ones((2, nbytes // 4), "f4")
    adding = timed(lambda: kernels.for_array(total).add(vector, total), 50)
    for name in ("seal", "mask 8 bits", "fixed point 8 bits", "noise", "median of 5", "krum of 5"):
        table = pass_table(name, 0.5, 50)
        seconds = table["seconds"][table["nbytes"].index(nbytes)]
        yield {
            "what": "pass",
            "name": name,
            "nbytes": nbytes,
            "seconds": seconds,
            "adds": seconds / adding,
        }


def timed(act, times=15):
    """Return the median processor seconds of `act`."""
    found = []
    for _ in range(times):
        before = time.thread_time()
        act()
        found.append(time.thread_time() - before)
    return float(np.median(found))


def main(seeds, wanted):
    train, test = loaded("train"), loaded("test")
    parts = {
        "recovery": recovery(*train),
        "costs": costs(*train),
        "private": private(train, test, seeds),
        "masked": (line for sites in (4, 8) for line in masked(train, test, seeds, sites)),
        "torch": of_torch(*train),
        "passes": passes(),
    }
    file = ROOT / "data/measurements/privacy.jsonl"
    before = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found = []
    for name in wanted or parts:
        for line in parts[name]:
            print(json.dumps(line), flush=True)
            found.append(line)
    made = {line["what"] for line in found}
    lines = [*(line for line in before if line["what"] not in made), *found]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2:])
