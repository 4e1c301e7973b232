"""A trained model on ONNX Runtime: quicker than the kernels here where batches or layers are large.

The last bits of its scores may depend on the batch.
"""

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import SettingsError
from isthmus.extras import how_to_install
from isthmus.folders.trained_model import TrainedModel
from isthmus.inference.forward import Run
from isthmus.models.onnx_graph import LAYERS, onnx_of


def onnx_function(trained: TrainedModel) -> Run:
    """Return the function of features [n, ...] that gives a built-in model's scores, on one thread.

    Raises SettingsError where the extra isthmus[onnxruntime] is missing, or the model is one of one's
    own: give `Inference` a function that asks what torch.onnx.export has made of it.
    """
    if type(trained.model) not in LAYERS:
        raise SettingsError(
            f"models of kind {trained.table['model']['kind']} have no ONNX graph here; give "
            'runtime = "own", or isthmus.Inference a function of your own export'
        )
    try:
        runtime = importlib.import_module("onnxruntime")
        importlib.import_module("onnx")
    except ImportError as problem:
        raise SettingsError(
            f'runtime = "onnx" needs the extra isthmus[onnxruntime] ({problem}); '
            f"{how_to_install('onnxruntime')}"
        ) from None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(
        onnx_of(trained.model, trained.parameters, trained.features, trained.scale),
        options,
        providers=["CPUExecutionProvider"],
    )
    (given,) = session.get_inputs()
    shape = trained.features[0]

    def run(features: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        trained.check_features(features)
        rows = np.ascontiguousarray(features, trained.features[1]).reshape(len(features), *shape)
        return session.run(None, {given.name: rows})[0]

    return run
