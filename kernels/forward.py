"""Layers of a trained model, forward only: the bits of a sample do not depend on the batch around it.

Every sum starts at the bias and is made in the order of the inputs, in float32, without fast-math: a
sample's scores are the same bits alone, in any batch, on any rank. Vectors lie along the outputs.
"""

import numpy as np

from isthmus.kernels.compiled import compiled

kernel = compiled(nogil=True, error_model="numpy")


@kernel
def dense(values, weight, bias, rectified, sums):
    """Write `values @ weight + bias` into `sums`, or where that is negative and `rectified`, 0.

    values: float32[n, inputs]. weight: float32[inputs, outputs]. bias: float32[outputs].
    sums: float32[n, outputs].
    """
    inputs, outputs = weight.shape
    whole = inputs - inputs % 4
    for sample in range(len(values)):
        row, out = values[sample], sums[sample]
        for o in range(outputs):
            out[o] = bias[o]
        for k in range(
            0, whole, 4
        ):  # four at a time, so that sums are read and written a quarter as often
            a, b, c, d = row[k], row[k + 1], row[k + 2], row[k + 3]
            first, second, third, fourth = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
            for o in range(outputs):
                out[o] = (((out[o] + a * first[o]) + b * second[o]) + c * third[o]) + d * fourth[o]
        for k in range(whole, inputs):
            last, entry = weight[k], row[k]
            for o in range(outputs):
                out[o] += entry * last[o]
        if rectified:
            for o in range(outputs):
                out[o] = 0 if out[o] < 0 else out[o]  # a NaN stays one


@kernel
def convolved(values, weight, bias, pooled):
    """Write 3 x 3 convolutions, rectified, and the maxima of their 2 x 2 squares into `pooled`.

    values: float32[n, height, width, inputs]. weight: float32[3, 3, inputs, outputs]. bias:
    float32[outputs]. pooled: float32[n, (height - 2) // 2, (width - 2) // 2, outputs].
    """
    inputs, outputs = weight.shape[2:]
    sums = np.empty((4, outputs), np.float32)
    for sample in range(len(values)):
        for i in range(pooled.shape[1]):
            for j in range(pooled.shape[2]):
                for square in range(4):
                    total = sums[square]
                    for o in range(outputs):
                        total[o] = bias[o]
                    for a in range(3):
                        row = values[sample, 2 * i + square // 2 + a]
                        for b in range(3):
                            place = row[2 * j + square % 2 + b]
                            for k in range(inputs):
                                entry, last = place[k], weight[a, b, k]
                                for o in range(outputs):
                                    total[o] += entry * last[o]
                out = pooled[sample, i, j]
                for o in range(outputs):
                    most = np.float32(0)
                    for square in range(4):
                        if not sums[square, o] <= most:  # so that a NaN stays one
                            most = sums[square, o]
                    out[o] = most
