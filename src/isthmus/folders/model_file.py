"""model.h5: what a run has learnt, by name, and all that is needed to use it.

last/parameters/layer0.weight      float32, with its shape; so for each tensor of the model
                                   or, of one that was compressed, uint8: see `stored_weights`
last/buffers/NAME                  what a model keeps beside its parameters
best/parameters/...                the same, of the epoch that the validation set liked best
scale/mean, scale/std              what features were standardised by
table                              JSON: the model's kind and arguments, what it learnt from, ...
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from pydantic import TypeAdapter

from isthmus.checked_files import CheckedKind
from isthmus.errors import SettingsError
from isthmus.folders.contents import Count, DataTold, Measured, Provenance, Table
from isthmus.folders.reading import in_words, read_table
from isthmus.folders.stored_weights import StoredWeights

NAME = "model.h5"
MODEL_FILE = CheckedKind(
    word="model",
    version=1,
    error=SettingsError,
    cure="write it again: go on from the run's checkpoint with --resume, or train anew",
    missing="no such file",
)


@dataclass(frozen=True)
class Kept:
    """What is kept of one moment of a run.

    step, epoch: how many had been made. metrics: what each set said then, set -> name -> number.
    parameters, buffers: name -> array. stored: name -> how that parameter lies in the file, where that
    is not float32.
    """

    step: int
    epoch: int
    metrics: dict[str, dict[str, float]]
    parameters: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray] = field(default_factory=dict)
    stored: dict[str, StoredWeights] = field(default_factory=dict)


class StoredAs(Table):
    """How a parameter is stored, as `StoredWeights` has it."""

    form: str
    shape: list[Count]
    outputs_last: bool


class Moment(Table):
    """What the table tells of one moment."""

    step: Count
    epoch: Count
    metrics: dict[str, dict[str, Measured]]
    parameters: list[str]
    buffers: list[str]
    stored: NotRequired[dict[str, StoredAs]]


class Sample(Table):
    """What a sample's features, or its targets, are: as they were packed."""

    shape: list[Count]
    dtype: str


class Kind(Table):
    """The model as the settings give it; of one's own, also its loss, and where its modules are."""

    kind: str
    arguments: dict[str, Any]
    loss: NotRequired[str]
    metrics: NotRequired[list[str]]
    inputs: NotRequired[list[Count] | None]
    folder: NotRequired[str | None]
    sources: NotRequired[dict[str, str]]


class ModelTable(Table):
    """What the table of a model.h5 tells."""

    version: str
    model: Kind
    features: Sample
    targets: Sample
    settings_sha256: str
    data: dict[str, DataTold]
    folders: dict[str, str]
    threads: Count
    kept: dict[str, Moment]


def write_model(path, table, kept, scale=None):
    """Write `kept`, "last" (and "best") -> Kept, to `path`, whole or not at all.

    table: what `ModelTable` tells beside `kept`. scale: (mean, std) of the features, or None.
    """
    arrays = {} if scale is None else {"scale/mean": scale[0], "scale/std": scale[1]}
    moments = {}
    for name, each in kept.items():
        moments[name] = {
            "step": each.step,
            "epoch": each.epoch,
            "metrics": each.metrics,
            "parameters": list(each.parameters),
            "buffers": list(each.buffers),
        }
        if each.stored:
            moments[name]["stored"] = {
                tensor: {"form": how.form, "shape": list(how.shape), "outputs_last": how.outputs_last}
                for tensor, how in each.stored.items()
            }
        wires = {tensor: how.wire for tensor, how in each.stored.items()}
        for group, held in (("parameters", {**each.parameters, **wires}), ("buffers", each.buffers)):
            for tensor, array in held.items():
                arrays[f"{name}/{group}/{tensor}"] = np.asarray(array, order="C")
    MODEL_FILE.write(path, arrays, table | {"kept": moments})


def model_content(folder):
    """Return the bytes of the model that the run in `folder` keeps; SettingsError if it keeps none."""
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file() and not path.exists():
        if not folder.is_dir() or not (folder / "run.json").exists():
            raise SettingsError(
                f"{path}: no such file; name the folder of a run, such as runs/NAME-DATE"
            )
        cure = (
            f"go on with `isthmus train RUN.toml --resume {folder}`"
            if (folder / "checkpoint.h5").is_file()
            else "it has no checkpoint either (run.checkpoint_every), so train anew"
        )
        raise SettingsError(
            f"{path}: no such file: this run goes on still, or was killed before it kept a model; {cure}"
        )
    return MODEL_FILE.content(path)


def was_sealed(folder):
    """Whether the run that the model in `folder` is of kept its links sealed.

    run.json tells it, and where there is none, as beside one that was compressed, the model's table.
    """
    path = Path(folder, "run.json")
    if path.exists():
        return read_table(path, Provenance)["settings"].get("security", {}).get("link") == "sealed"
    table, *_ = read_model(Path(folder, NAME), model_content(folder))
    return table.get("compressed", {}).get("sealed", False)


def read_model(path, content):
    """Return the table, name -> Kept, and the scale (mean, std) or None, of a model.h5's bytes.

    path: where they are from. SettingsError in one line if they are damaged, or of another version.
    """
    arrays, table = MODEL_FILE.unpacked(path, content)
    try:
        table = TypeAdapter(ModelTable).validate_python(table)
        kept = {name: _kept(name, each, arrays) for name, each in table["kept"].items()}
        scale = (arrays["scale/mean"], arrays["scale/std"]) if "scale/mean" in arrays else None
    except KeyError as problem:
        raise SettingsError(f"{path}: holds no array {problem}; {MODEL_FILE.cure}") from None
    except ValueError as problem:
        raise SettingsError(f"{path}: {in_words(problem)}; {MODEL_FILE.cure}") from None
    return table, kept, scale


def _kept(name, moment, arrays):
    """Return the Kept that the table's `moment` tells of; KeyError or ValueError if it is not there."""
    parameters, buffers = (
        {tensor: arrays[f"{name}/{group}/{tensor}"] for tensor in moment[group]}
        for group in ("parameters", "buffers")
    )
    stored = {
        tensor: StoredWeights(how["form"], tuple(how["shape"]), how["outputs_last"], parameters[tensor])
        for tensor, how in moment.get("stored", {}).items()
    }
    parameters |= {tensor: how.tensor() for tensor, how in stored.items()}
    return Kept(moment["step"], moment["epoch"], moment["metrics"], parameters, buffers, stored)
