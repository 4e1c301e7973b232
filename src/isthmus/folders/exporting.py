"""A kept model in the forms that other programs read: NumPy's archive, safetensors, ONNX."""

import importlib
from pathlib import Path

import numpy as np

from isthmus.errors import NoDeviceError, OutputError, SettingsError
from isthmus.extras import how_to_install
from isthmus.files import replacing, write_bytes
from isthmus.folders.trained_model import load_model
from isthmus.json_text import dumps
from isthmus.models.onnx_graph import LAYERS, onnx_of

CLOSE = 1e-3
"""How far, of the largest score, a graph's scores may be from the model's: both are float32."""
SAMPLES = 16


def export_model(run, output, best=False):
    """Write the model of a run's folder to `output`, as its ending says; return what was written.

    .npz: each tensor by its name, and `scale.mean`, `scale.std` where features are standardised.
    .safetensors: the same, with what made the model as text beside them; of an nn.Module what its own
    `load_state_dict` takes, as .pt, a file of PyTorch's, also is. .onnx: a graph from features as
    they were packed to scores, which is run and compared with the model where onnxruntime is installed.
    Raises SettingsError where there is no model or no such form of it, and OutputError.
    """
    trained, _ = load_model(run, best)
    what = WRITERS[Path(output).suffix.lower()](trained, Path(output))
    return {
        "run": str(run),
        "parameters": trained.which,
        "step": trained.step,
        "file": str(output),
        "what": what,
    }


def tensors_of(trained):
    """Return name -> array of all that a model has learnt, and of its scale."""
    tensors = {**trained.kept.parameters, **trained.kept.buffers}
    if trained.scale is not None:
        tensors |= {"scale.mean": trained.scale.mean, "scale.std": trained.scale.std}
    return {name: np.asarray(array, order="C") for name, array in tensors.items()}


def _write_npz(trained, path):
    tensors = tensors_of(trained)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **tensors)
    return f"{len(tensors)} arrays"


def _write_safetensors(trained, path):
    is_torch = hasattr(trained.model, "module")
    library = "torch" if is_torch else "numpy"
    safetensors = _extra(f"safetensors.{library}", "safetensors")
    tensors = tensors_of(trained)
    if is_torch:
        tensors = trained.model.state_dict(trained.parameters)
    told = {
        "isthmus": trained.table["version"],
        "model": dumps(trained.table["model"]),
        "step": str(trained.step),
        "settings_sha256": trained.table["settings_sha256"],
    }
    write_bytes(path, safetensors.save(tensors, metadata=told))
    return f"{len(tensors)} tensors"


def _write_pt(trained, path):
    if not hasattr(trained.model, "module"):
        raise SettingsError(
            f"{path}: the model is no nn.Module of PyTorch's; export .safetensors or .npz"
        )
    state = trained.model.state_dict(trained.parameters)
    with replacing(path) as partial:
        _extra("torch", "torch").save(state, partial)
    return f"{len(state)} tensors, a state_dict"


def _write_onnx(trained, path):
    if type(trained.model) not in LAYERS:
        raise SettingsError(
            f"{path}: models of kind {trained.table['model']['kind']} have no ONNX graph here; export "
            ".safetensors, load it into your module, and use torch.onnx.export"
        )
    _extra("onnx", "onnx")
    content = onnx_of(trained.model, trained.parameters, trained.features, trained.scale)
    compared = _compare(trained, content, path)
    write_bytes(path, content)
    return "a graph from features to scores" + (", compared with the model" if compared else "")


def _compare(trained, content, path):
    """Run the graph on made-up samples; OutputError if its scores are others.

    Returns whether that was done: onnxruntime has to be installed.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return False
    shape, dtype = trained.features
    draw = np.random.default_rng(0)
    samples = draw.normal(scale=50, size=(SAMPLES, *shape))
    samples = np.abs(samples).clip(0, 127).astype(dtype)
    graph = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given, expected = (
        graph.run(None, {"features": samples})[0],
        trained.scores(trained.parameters, samples),
    )
    if not np.abs(given - expected).max() <= CLOSE * max(1.0, np.abs(expected).max()):
        raise OutputError(
            f"{path}: not written: onnxruntime {runtime.__version__} makes other scores of the graph "
            "than the model; please report this"
        )
    return True


def _extra(module, extra):
    """Return an optional module; NoDeviceError that names the extra where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise NoDeviceError(
            f"{module.partition('.')[0]} is not installed, the extra isthmus[{extra}]; "
            f"{how_to_install(extra)}"
        ) from None


WRITERS = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".onnx": _write_onnx,
    ".pt": _write_pt,
}
