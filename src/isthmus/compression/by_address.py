"""Encoding and decoding as C functions of addresses, for compiled code that Python has no part in.

encode(vector, kept, wire, size, block, key, first), with 0 for `kept` where nothing is kept;
decode(wire, vector, size, block) and add(wire, vector, size, block): what the compressors' methods do,
to the bit. Each returns 0. Of vectors that are no wires: weight(vector, weighted, size, bits), `bits`
those of the float32 weight, NaN where `vector` is 0; check(0, vector, size, 0), which returns whether
all of it is finite.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, int32, int64, types
from numba.extending import intrinsic

from isthmus.compression.dense import Dense
from isthmus.compression.quantized import Int8
from isthmus.kernels import cpu
from isthmus.kernels.compiled import ForC, compiled

inlined = compiled(nogil=True, calls=(cpu,), error_model="numpy")
ENCODE, DECODE = int32(*[int64] * 7), int32(*[int64] * 4)


class Functions(NamedTuple):
    """Addresses of what a compressor does, and its block."""

    encode: int
    decode: int
    add: int
    block: int = 1


def functions_of(compressor):
    """Return the Functions of a compressor, or None where there are none yet."""
    if compressor == Dense():
        return Functions(encode_dense.address, decode_dense.address, add_dense.address)
    if isinstance(compressor, Int8):
        encode = encode_int8 if compressor.rounding == "nearest" else encode_int8_dithered
        return Functions(encode.address, decode_int8.address, add_int8.address, compressor.block)
    return None


def for_c(signature):
    """Return what makes a C function of a loop over words."""
    return lambda loop: ForC(loop, signature, calls=(cpu,), nogil=True, error_model="numpy")


@intrinsic
def pointer(_, address):
    """Return an address as a pointer."""
    return types.voidptr(types.int64), lambda _c, builder, _s, arguments: builder.inttoptr(
        arguments[0], ir.IntType(8).as_pointer()
    )


@inlined
def floats(address, count):
    """Return the float32[count] at an address."""
    return carray(pointer(address), count, np.float32)


@inlined
def bytes_(address, count):
    """Return the int8[count] at an address."""
    return carray(pointer(address), count, np.int8)


@inlined
def parts(wire, size, block):
    """Return the maxima and the codes of an int8 wire."""
    blocks = (size + block - 1) // block
    return floats(wire, blocks), bytes_(wire + 4 * blocks, size)


@for_c(ENCODE)
def encode_dense(vector, kept, wire, size, block, key, first):
    """As `Dense.encode`, in float32."""
    if kept:
        cpu.encode_dense(floats(vector, size), floats(kept, size), floats(wire, size))
    else:
        cpu.encode_dense(floats(vector, size), None, floats(wire, size))
    return 0


@for_c(DECODE)
def decode_dense(wire, vector, size, block):
    """As `Dense.decode`, in float32."""
    floats(vector, size)[:] = floats(wire, size)
    return 0


@for_c(DECODE)
def add_dense(wire, vector, size, block):
    """As `Dense.add_decoded`, in float32."""
    cpu.add(floats(wire, size), floats(vector, size))
    return 0


@for_c(ENCODE)
def encode_int8(vector, kept, wire, size, block, key, first):
    """As `Int8.encode`, to nearest."""
    maxima, codes = parts(wire, size, block)
    if kept:
        cpu.encode_int8(floats(vector, size), floats(kept, size), block, None, first, maxima, codes)
    else:
        cpu.encode_int8(floats(vector, size), None, block, None, first, maxima, codes)
    return 0


@for_c(ENCODE)
def encode_int8_dithered(vector, kept, wire, size, block, key, first):
    """As `Int8.encode`, stochastic."""
    maxima, codes = parts(wire, size, block)
    dither = np.uint64(key)
    if kept:
        cpu.encode_int8(floats(vector, size), floats(kept, size), block, dither, first, maxima, codes)
    else:
        cpu.encode_int8(floats(vector, size), None, block, dither, first, maxima, codes)
    return 0


@for_c(DECODE)
def decode_int8(wire, vector, size, block):
    """As `Int8.decode`."""
    maxima, codes = parts(wire, size, block)
    cpu.decode_int8(maxima, codes, block, floats(vector, size))
    return 0


@for_c(DECODE)
def add_int8(wire, vector, size, block):
    """As `Int8.add_decoded`."""
    maxima, codes = parts(wire, size, block)
    cpu.add_int8(maxima, codes, block, floats(vector, size))
    return 0


@for_c(DECODE)
def weight(vector, weighted, size, bits):
    """Write a vector times a weight."""
    if vector:
        cpu.scale(floats(vector, size), cpu.float_of(np.int32(bits)), floats(weighted, size))
    else:
        floats(weighted, size)[:] = np.float32(np.nan)
    return 0


@for_c(DECODE)
def check(_, vector, size, __):
    """Return whether all of a vector is finite."""
    return np.int32(cpu.all_finite(floats(vector, size)))
