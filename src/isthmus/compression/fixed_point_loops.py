"""The loops of `FixedPoint`, compiled: one pass over a vector each way, in float32."""

import numpy as np

from isthmus.kernels.compiled import compiled

LEAST_RANGE = np.float32(1e-7)
KEPT_RANGE = np.float32(0.9)  # share that is left where a sum asks for less
ROUND = np.float32(12582912.0)  # 1.5 x 2^23: adding and taking it away rounds to nearest even
HALF = np.float32(0.5)


@compiled(nogil=True, error_model="numpy")
def level_of(x, levels):
    """Return x rounded, at most `levels` either way: not by min, which LLVM does not vectorise."""
    x = levels if x > levels else x
    x = -levels if x < -levels else x
    return (x + ROUND) - ROUND


@compiled(nogil=True, error_model="numpy")
def encode(vector, residual, ranges, block, levels, codes):
    """Do what `FixedPoint.encode_codes` says."""
    for number in range(ranges.size):
        first, last = number * block, min((number + 1) * block, vector.size)
        per_level = ranges[number] / levels
        inverse = levels / ranges[number]
        given, written = vector[first:last], codes[first:last]
        if residual is None:
            for i in range(given.size):
                written[i] = np.int32(level_of(given[i] * inverse, levels))
        else:
            kept = residual[first:last]
            for i in range(given.size):
                x = given[i] + kept[i]
                level = level_of(x * inverse, levels)
                written[i] = np.int32(level)
                kept[i] = x - level * per_level


@compiled(nogil=True, error_model="numpy")
def decode(codes, ranges, block, levels, vector):
    """Do what `FixedPoint.decode_codes` says."""
    for number in range(ranges.size):
        first, last = number * block, min((number + 1) * block, vector.size)
        per_level = ranges[number] / levels
        largest = np.int32(0)
        given, written = codes[first:last], vector[first:last]
        for i in range(written.size):
            code = np.int32(given[i])
            largest = max(largest, abs(code))
            written[i] = np.float32(code) * per_level
        kept = ranges[number] * (KEPT_RANGE if largest else HALF)
        ranges[number] = max(max(np.float32(largest) * per_level, kept), LEAST_RANGE)
