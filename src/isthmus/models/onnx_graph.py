"""The built-in models as graphs of ONNX, which other programs run; PyTorch is not needed.

A graph takes features as they were packed, [samples, ...] of their dtype, and does to them what training
did: what is made of uint8, or the scale. It gives the scores, float32[samples, outputs].
"""

import numpy as np

from isthmus.models.convolutional import Convolutional
from isthmus.models.perceptron import Perceptron

OPSET = 17
IR_VERSION = 8
"""Of 2022 and 2023: what programs of today, and of some years ago, all read."""


class _Graph:
    """A graph that grows node by node; `last` is the name of what the last one gives."""

    def __init__(self, last):
        self.last, self.nodes, self.constants = last, [], []

    def constant(self, name, array):
        import onnx

        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def then(self, kind, *constants, **attributes):
        """Add a node that takes what the last one gave, and constants, (name, array) pairs."""
        import onnx

        inputs = [self.last, *(self.constant(*each) for each in constants)]
        self.last = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [self.last], **attributes))


def onnx_of(model, parameters, features, scale=None):
    """Return the bytes of the ONNX file of a Perceptron or Convolutional and its flat parameters.

    features: (shape, dtype) of a sample as it was packed. scale: what standardises features, with
    `mean` and `std`; None for nothing.
    """
    import onnx

    shape, dtype = features
    graph, tensors = _Graph("features"), model.views(parameters)
    graph.then("Cast", to=onnx.TensorProto.FLOAT)
    if scale is not None:
        graph.then("Sub", ("mean", np.asarray(scale.mean, "f4")))
        graph.then("Div", ("std", np.asarray(scale.std, "f4")))
    elif dtype == np.uint8:
        graph.then("Mul", ("of_uint8", np.float32(1 / 255)))
        graph.then("Sub", ("half", np.float32(0.5)))
    LAYERS[type(model)](graph, model, tensors, shape)
    graph.then("Identity")
    graph.nodes[-1].output[0] = "scores"
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            type(model).__name__,
            [
                onnx.helper.make_tensor_value_info(
                    "features",
                    onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
                    ["samples", *shape],
                )
            ],
            [
                onnx.helper.make_tensor_value_info(
                    "scores", onnx.TensorProto.FLOAT, ["samples", model.outputs]
                )
            ],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="isthmus",
    )
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def _perceptron(graph, model, tensors, shape):
    graph.then("Flatten")
    layers = len(model.hidden) + 1
    for number in range(layers):
        names = (f"layer{number}.weight", f"layer{number}.bias")
        graph.then("Gemm", *((name, tensors[name]) for name in names))
        if number < layers - 1:
            graph.then("Relu")


def _convolutional(graph, model, tensors, shape):
    """Channels come first in ONNX, first or last in features, and last in the model's arrays."""
    channels, height, width = model.inputs
    last = tuple(shape) == (height, width, channels) != model.inputs
    sides = (height, width, channels) if last else model.inputs
    graph.then("Reshape", ("inputs", np.array([-1, *sides], "i8")))
    if last:
        graph.then("Transpose", perm=[0, 3, 1, 2])
    for number in range(len(model.channels)):
        weight, bias = f"convolution{number}.weight", f"convolution{number}.bias"
        graph.then(
            "Conv",
            (weight, tensors[weight].transpose(3, 2, 0, 1)),
            (bias, tensors[bias]),
            kernel_shape=[3, 3],
        )
        graph.then("Relu")
        graph.then("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    graph.then("Transpose", perm=[0, 2, 3, 1])
    graph.then("Flatten")
    graph.then("Gemm", *((name, tensors[name]) for name in ("linear.weight", "linear.bias")))


LAYERS = {Perceptron: _perceptron, Convolutional: _convolutional}
"""Model -> what adds its layers to a graph."""
