"""The kernels on a CPU: one core, vectorised by LLVM, the same bytes as `reference`.

What makes LLVM vectorise them: inner loops over slices of one block (no index can be negative, and
the block is in the first-level cache when it is read again); maxima of floats taken as integers;
rounding by adding 1.5 x 2^23, whose low bits then are the code. What LLVM does not find by itself,
bits for signs and a sum in a fixed order, is written with its vectors of 16 lanes, which it lowers to
whatever the processor has. No fast-math: a product and a difference stay two roundings, as in NumPy.
Jitted helpers live in this file because numba's cache sees no other.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from isthmus.kernels.chunk_records import CHUNK as TOP_K_CHUNK
from isthmus.kernels.compiled import compiled
from isthmus.kernels.reference import (
    CHUNK,
    GROUP,
    PHILOX,
    PHILOX_ROUNDS,
    POSITIONS,
    QUIET_NAN,
    SHARE,
    SMALLEST_MAXIMUM_BITS,
    SQUARES,
    STEP,
    STEP_4,
    WEYL,
)

kernel = compiled(nogil=True, error_model="numpy")

MAGNITUDE = np.int32(0x7FFFFFFF)
INFINITY = np.int32(0x7F800000)
SIGN = np.int32(-0x80000000)
ROUND = np.float32(12582912.0)  # 1.5 x 2^23: adding it rounds to nearest even
ROUND_4 = np.float32(12582920.0)  # the same plus 8: the low four bits are the code plus 8
ZERO = np.float32(0)
RUN = 32  # entries that TopK's threshold is held against at once: the bits of a mask


@intrinsic
def bits_of(_, value):
    """Return a float32 as the int32 with the same bits."""
    return types.int32(types.float32), lambda _c, builder, _s, arguments: builder.bitcast(
        arguments[0], ir.IntType(32)
    )


@intrinsic
def float_of(_, bits):
    """Return an int32 as the float32 with the same bits."""
    return types.float32(types.int32), lambda _c, builder, _s, arguments: builder.bitcast(
        arguments[0], ir.FloatType()
    )


@intrinsic
def zeros_below(_, mask):
    """Return how many bits are 0 below the lowest 1 of a uint32 that is not 0."""
    return types.uint32(types.uint32), lambda _c, builder, _s, arguments: builder.cttz(
        arguments[0], ir.Constant(ir.IntType(1), 1)
    )


@intrinsic
def fetch(_, array, index):
    """Ask for the line of memory that holds array[index], which may be past the end."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        )
        builder.call(
            prefetch,
            [builder.bitcast(builder.gep(data, [arguments[1]]), byte), number(0), number(3), number(1)],
        )
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@kernel
def fetch_ahead(vector, residual, i):
    fetch(vector, i)
    if residual is not None:
        fetch(residual, i)


@kernel
def given(vector, residual, i):
    if residual is None:
        return vector[i]
    return vector[i] + residual[i]


@kernel
def keep(residual, i, value):
    if residual is not None:
        residual[i] = value


def part_of(residual, first, last):
    """Return residual[first:last], or None where there is none."""


@overload(part_of)
def _(residual, first, last):
    if isinstance(residual, types.NoneType):
        return lambda residual, first, last: None
    return lambda residual, first, last: residual[first:last]


@kernel
def add(vector, total):
    for i in range(total.size):
        total[i] += vector[i]


@kernel
def scale(vector, factor, scaled):
    factor = np.float32(factor)
    for i in range(scaled.size):
        scaled[i] = vector[i] * factor


@kernel
def all_finite(vector):
    top = np.int32(0)
    for i in range(vector.size):
        top = max(top, bits_of(vector[i]) & MAGNITUDE)
    return top < INFINITY


@kernel
def encode_dense(vector, residual, entries):
    for i in range(entries.size):
        entries[i] = given(vector, residual, i)
        keep(residual, i, ZERO)


@kernel
def half_of(x):
    """Return the binary16 code of x (after F. Giesen, "float->half variants", 2012)."""
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    small = bits_of(float_of(magnitude) + np.float32(0.5)) - np.int32(0x3F000000)
    normal = (magnitude + np.int32(-0x38000000 + 0xFFF) + ((magnitude >> 13) & 1)) >> 13
    code = small if magnitude < 0x38800000 else normal
    code = np.int32(0x7C00) if magnitude >= 0x47800000 else code
    code = code | ((bits >> 16) & 0x8000)
    return np.uint16(np.int32(0x7E00) if magnitude > INFINITY else code)


@kernel
def number_of_half(code):
    """Return the number that a binary16 code stands for."""
    bits = np.int32(code)
    magnitude = (bits & 0x7FFF) << 13
    shifted = magnitude + np.int32(0x38000000)
    small = float_of(magnitude + np.int32(0x38800000)) - float_of(np.int32(0x38800000))
    value = small if magnitude < 0x00800000 else float_of(shifted)
    value = float_of(shifted + np.int32(0x38000000)) if magnitude >= 0x0F800000 else value
    return float_of(bits_of(value) | ((bits & 0x8000) << 16))


@kernel
def encode_float16(vector, residual, codes):
    for i in range(codes.size):
        x = given(vector, residual, i)
        codes[i] = half_of(x)
        keep(residual, i, x - number_of_half(codes[i]))


@kernel
def decode_float16(codes, vector):
    for i in range(vector.size):
        vector[i] = number_of_half(codes[i])


@kernel
def add_float16(codes, total):
    for i in range(total.size):
        total[i] += number_of_half(codes[i])


@kernel
def number_of_bfloat16(code):
    return float_of(np.int32(code) << 16)


@kernel
def encode_bfloat16(vector, residual, codes):
    for i in range(codes.size):
        x = given(vector, residual, i)
        bits = bits_of(x)
        code = (bits + np.int32(0x7FFF) + ((bits >> 16) & 1)) >> 16
        codes[i] = np.uint16(np.int32(0x7FC0) if (bits & MAGNITUDE) > INFINITY else code)
        keep(residual, i, x - number_of_bfloat16(codes[i]))


@kernel
def decode_bfloat16(codes, vector):
    for i in range(vector.size):
        vector[i] = number_of_bfloat16(codes[i])


@kernel
def add_bfloat16(codes, total):
    for i in range(total.size):
        total[i] += number_of_bfloat16(codes[i])


LANES = 16
FLOATS, INTS, BYTES = (
    ir.VectorType(kind, LANES) for kind in (ir.FloatType(), ir.IntType(32), ir.IntType(8))
)
assert CHUNK == 8 * LANES
WIDE = ir.VectorType(ir.IntType(64), LANES)
WORDS = 4 * LANES  # of Philox that are made at once
SPAN = 1024  # words that are kept, at least


def wide(number):
    """Return a number in 16 lanes of 64 bits."""
    return ir.Constant(WIDE, [number % 2**32] * LANES)


def in_wide_lanes(builder, number):
    lanes = ir.Constant(WIDE, ir.Undefined)
    first = builder.insert_element(lanes, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, lanes, ir.Constant(INTS, [0] * LANES))


def halves(builder, key):
    """Return the lower and the upper half of a key, each in all lanes."""
    whole = in_wide_lanes(builder, key)
    return builder.and_(whole, wide(0xFFFFFFFF)), builder.lshr(whole, wide(32))


def interleaved(builder, one, other):
    """Return the first of one, the first of the other, the second of one, and so on."""
    count = one.type.count
    order = [place for i in range(count) for place in (i, count + i)]
    return builder.shuffle_vector(
        one, other, ir.Constant(ir.VectorType(ir.IntType(32), 2 * count), order)
    )


@intrinsic
def write_words(_, key, counter, words, index):
    """Write the 64 words of Philox4x32-10 with `key` of 16 counters from `counter` on.

    A word is the lower half of 64 bits, whose upper half may hold anything.
    """

    def codegen(context, builder, signature, arguments):
        key, counter, words, index = arguments
        x = builder.add(in_wide_lanes(builder, counter), ir.Constant(WIDE, list(range(LANES))))
        x = [x, builder.lshr(x, wide(32)), wide(0), wide(0)]
        for number in range(PHILOX_ROUNDS):
            bumps = [
                builder.add(half, wide(number * weyl)) for half, weyl in zip(halves(builder, key), WEYL)
            ]
            low, high = (
                builder.mul(builder.and_(x[at], wide(0xFFFFFFFF)), wide(factor))
                for at, factor in ((0, PHILOX[0]), (2, PHILOX[1]))
            )
            x = [
                builder.xor(builder.xor(builder.lshr(high, wide(32)), x[1]), bumps[0]),
                high,
                builder.xor(builder.xor(builder.lshr(low, wide(32)), x[3]), bumps[1]),
                low,
            ]
        even, odd = (
            interleaved(builder, *(builder.trunc(x[at], INTS) for at in pair))
            for pair in ((0, 2), (1, 3))
        )
        all_words = interleaved(builder, even, odd)
        data = builder.gep(context.make_array(signature.args[2])(context, builder, words).data, [index])
        builder.store(all_words, builder.bitcast(data, all_words.type.as_pointer()), align=4)

    return types.void(types.uint64, types.uint64, words, types.intp), codegen


@kernel
def fill(words, key, first):
    """Write the words of the entries from `first` on; it and the length are multiples of 64."""
    for i in range(0, words.size, WORDS):
        write_words(np.uint64(key), np.uint64(first + i) >> np.uint64(2), words, i)


@kernel
def new_words(key, size):
    """Return room for the words of `size` entries and of those around them; none without a key."""
    return np.empty(0 if key is None else max(SPAN, (size + 2 * WORDS - 1) // WORDS * WORDS), np.uint32)


@kernel
def with_words(words, start, key, first, size):
    """Return the entry with which `words` start, once they hold those of `size` entries from `first`."""
    if key is not None and not start <= first <= first + size <= start + words.size:
        start = first - first % WORDS
        fill(words, key, start)
    return start


@kernel
def dithered(key, y, words, i, limit):
    """Return y plus the dither of words[i], within `limit`; y itself where there is no key."""
    if key is None:
        return y
    y += np.float32(np.int32(words[i] >> np.uint32(8))) * np.float32(2**-24) - np.float32(0.5)
    return min(max(y, -limit), limit)


@kernel
def largest_bits(vector, residual):
    top = np.int32(0)
    for i in range(vector.size):
        top = max(top, bits_of(given(vector, residual, i)) & MAGNITUDE)
    return top


@kernel
def encode_int8_block(vector, residual, key, words, maximum, codes):
    inverse = np.float32(127) / maximum
    for i in range(codes.size):
        x = given(vector, residual, i)
        y = dithered(key, x * inverse, words, i, np.float32(127)) + ROUND
        codes[i] = np.int8(bits_of(y))
        keep(residual, i, x - (y - ROUND) * STEP * maximum)


@kernel
def encode_int8(vector, residual, block, key, first, maxima, codes):
    words, ready = new_words(key, min(block, vector.size)), -SPAN
    for number in range(maxima.size):
        start = number * block
        stop = min(start + block, vector.size)
        entries, kept = vector[start:stop], part_of(residual, start, stop)
        top = largest_bits(entries, kept)
        if SMALLEST_MAXIMUM_BITS <= top < INFINITY:
            maxima[number] = float_of(top)
            ready = with_words(words, ready, key, first + start, stop - start)
            mine = words[first + start - ready :]
            encode_int8_block(entries, kept, key, mine, float_of(top), codes[start:stop])
        elif top >= INFINITY:
            maxima[number] = QUIET_NAN
            codes[start:stop] = 0
        else:
            maxima[number] = ZERO
            codes[start:stop] = 0
            for i in range(entries.size):
                keep(kept, i, given(entries, kept, i))


@kernel
def decode_int8(maxima, codes, block, vector):
    for number in range(maxima.size):
        start = number * block
        entries, part = vector[start : start + block], codes[start : start + block]
        for i in range(entries.size):
            entries[i] = np.float32(part[i]) * STEP * maxima[number]


@kernel
def add_int8(maxima, codes, block, total):
    for number in range(maxima.size):
        start = number * block
        entries, part = total[start : start + block], codes[start : start + block]
        maximum = maxima[number]
        for i in range(entries.size):
            entries[i] += np.float32(part[i]) * STEP * maximum


@kernel
def encode_int4(vector, residual, block, key, first, maxima, shares, codes):
    tops, scales = np.empty(GROUP, np.int32), np.empty(min(GROUP * block, vector.size), np.float32)
    words, ready = new_words(key, scales.size), -SPAN
    for number in range(maxima.size):
        start, stop = number * GROUP * block, min((number + 1) * GROUP * block, vector.size)
        entries, kept = vector[start:stop], part_of(residual, start, stop)
        half = (entries.size + 1) // 2
        part = codes[start // 2 : start // 2 + half]
        of_blocks = shares[number * GROUP : (number + 1) * GROUP]
        top = np.int32(0)
        for j in range(of_blocks.size):
            tops[j] = largest_bits(
                entries[j * block : (j + 1) * block], part_of(kept, j * block, (j + 1) * block)
            )
            top = max(top, tops[j])
        if top >= INFINITY:
            maxima[number], of_blocks[:], part[:] = QUIET_NAN, 0, 0x88
            continue
        maxima[number] = float_of(top) if top >= SMALLEST_MAXIMUM_BITS else ZERO
        for j in range(of_blocks.size):
            of_blocks[j] = share_of(tops[j], maxima[number])
        if key is None and entries.size == GROUP * block and block % LANES == 0:
            encode_blocks(entries, kept, block, maxima[number], of_blocks, part)
            continue
        for j in range(of_blocks.size):
            scale = np.float32(of_blocks[j]) * SHARE * maxima[number]
            row = scales[j * block : (j + 1) * block]
            for i in range(row.size):
                row[i] = scale
        of_entry = scales[: entries.size]
        ready = with_words(words, ready, key, first + start, entries.size)
        mine = words[first + start - ready :]
        encode_lower(entries[:half], part_of(kept, 0, half), key, mine, of_entry[:half], part)
        encode_upper(
            entries[half:], part_of(kept, half, entries.size), key, mine[half:], of_entry[half:], part
        )


@kernel
def share_of(top, maximum):
    """Return a block's largest magnitude, as bits, in units of `SHARE` of its group's, rounded up."""
    if top == 0 or maximum == 0:
        return np.uint16(0)
    share = min(np.int32(float_of(top) / maximum * np.float32(32768)) + 1, 32768)
    share = 32768 if float_of(top) == maximum else share
    enough = bits_of(np.float32(share) * SHARE * maximum) >= SMALLEST_MAXIMUM_BITS
    return np.uint16(share if enough else 0)


@kernel
def inverse_of(scale):
    return np.float32(7) / scale if scale > 0 else ZERO


@kernel
def int4_of(x, key, words, i, scale):
    """Return the code of x, with a sum of `ROUND_4` for its low bits; a scale of 0 says nothing."""
    return dithered(key, x * inverse_of(scale), words, i, np.float32(7)) + ROUND_4


@kernel
def encode_lower(vector, residual, key, words, scales, codes):
    """Set the lower half of each byte to the code of its entry, the upper half to that of zero."""
    for i in range(vector.size):
        x = given(vector, residual, i)
        y = int4_of(x, key, words, i, scales[i])
        codes[i] = np.uint8(0x80) | (np.uint8(bits_of(y)) & np.uint8(15))
        keep(residual, i, x - (y - ROUND_4) * STEP_4 * scales[i])


@kernel
def encode_upper(vector, residual, key, words, scales, codes):
    """Set the upper half of each byte to the code of its entry."""
    for i in range(vector.size):
        x = given(vector, residual, i)
        y = int4_of(x, key, words, i, scales[i])
        codes[i] = (codes[i] & np.uint8(15)) | np.uint8(np.uint8(bits_of(y)) << np.uint8(4))
        keep(residual, i, x - (y - ROUND_4) * STEP_4 * scales[i])


@kernel
def decode_int4(maxima, shares, codes, block, vector):
    vector[:] = ZERO
    add_int4(maxima, shares, codes, block, vector)


@kernel
def add_int4(maxima, shares, codes, block, total):
    for number in range(maxima.size):
        start, stop = number * GROUP * block, min((number + 1) * GROUP * block, total.size)
        half = (stop - start + 1) // 2
        entries, part = total[start:stop], codes[start // 2 : start // 2 + half]
        for j in range((stop - start + block - 1) // block):
            scale = np.float32(shares[number * GROUP + j]) * SHARE * maxima[number]
            begin, end = j * block, min((j + 1) * block, stop - start)
            middle = min(max(begin, half), end)
            row, packed = entries[begin:middle], part[begin:middle]
            for i in range(row.size):
                row[i] += np.float32(np.int32(packed[i] & 15) - 8) * STEP_4 * scale
            row, packed = entries[middle:end], part[middle - half :]
            for i in range(row.size):
                row[i] += np.float32(np.int32(packed[i] >> 4) - 8) * STEP_4 * scale


def lanes_at(context, builder, array_type, array, index):
    """Return a pointer to the 16 float32 of `array` from `index` on."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), FLOATS.as_pointer())


def given_lanes(context, builder, types_of, arrays, index):
    """Return 16 entries of vector + residual as one LLVM value; a residual may be None."""
    total = None
    for array_type, array in zip(types_of, arrays):
        if not isinstance(array_type, types.NoneType):
            lanes = builder.load(lanes_at(context, builder, array_type, array, index), align=4)
            total = lanes if total is None else builder.fadd(total, lanes)
    return total


def in_all_lanes(builder, number):
    lanes = ir.Constant(FLOATS, ir.Undefined)
    first = builder.insert_element(lanes, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, lanes, ir.Constant(INTS, [0] * LANES))


def lanes_of(number):
    return ir.Constant(FLOATS, [float(number)] * LANES)


@intrinsic
def sign_bits(_, vector, residual, first):
    """Return the signs of 16 entries of vector + residual from `first` on as the bits of a uint16."""

    def codegen(context, builder, signature, arguments):
        lanes = given_lanes(context, builder, signature.args[:2], arguments[:2], arguments[2])
        minus = builder.icmp_signed("<", builder.bitcast(lanes, INTS), ir.Constant(INTS, [0] * LANES))
        return builder.bitcast(minus, ir.IntType(LANES))

    return types.uint16(vector, residual, types.intp), codegen


@intrinsic
def magnitude_sum(_, vector, residual, first, factor):
    """Return the sum by halves of factor |vector + residual| over 128 entries from `first` on."""

    def codegen(context, builder, signature, arguments):
        factor = in_all_lanes(builder, arguments[3])
        rows = []
        for row in range(CHUNK // LANES):
            index = builder.add(arguments[2], ir.Constant(arguments[2].type, row * LANES))
            lanes = given_lanes(context, builder, signature.args[:2], arguments[:2], index)
            magnitude = builder.and_(
                builder.bitcast(lanes, INTS), ir.Constant(INTS, [int(MAGNITUDE)] * LANES)
            )
            rows.append(builder.fmul(builder.bitcast(magnitude, FLOATS), factor))
        while len(rows) > 1:
            half = len(rows) // 2
            rows = [builder.fadd(low, high) for low, high in zip(rows[:half], rows[half:])]
        lanes, half = rows[0], LANES
        while half > 1:
            half //= 2
            low, high = (
                builder.shuffle_vector(
                    lanes,
                    lanes,
                    ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(start, start + half))),
                )
                for start in (0, half)
            )
            lanes = builder.fadd(low, high)
        return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))

    return types.float32(vector, residual, types.intp, types.float32), codegen


@intrinsic
def add_signed(_, total, first, bits, scale):
    """Add `scale`, negated where one of 16 `bits` is set, to 16 entries of `total` from `first` on."""

    def codegen(context, builder, signature, arguments):
        place = lanes_at(context, builder, signature.args[0], arguments[0], arguments[1])
        minus = builder.bitcast(arguments[2], ir.VectorType(ir.IntType(1), LANES))
        scales = builder.select(
            minus, in_all_lanes(builder, builder.fneg(arguments[3])), in_all_lanes(builder, arguments[3])
        )
        builder.store(builder.fadd(builder.load(place, align=4), scales), place, align=4)

    return types.void(total, types.intp, types.uint16, types.float32), codegen


@intrinsic
def encode_pairs(_, vector, residual, low, high, scale, inverse, high_scale, high_inverse, codes):
    """Set 16 codes to those of 16 entries from `low` on, in the lower half, and from `high` on."""

    def codegen(context, builder, signature, arguments):
        def sixteen(index, scale, inverse):
            x = given_lanes(context, builder, signature.args[:2], arguments[:2], index)
            y = builder.fadd(builder.fmul(x, in_all_lanes(builder, inverse)), lanes_of(ROUND_4))
            if not isinstance(signature.args[1], types.NoneType):
                told = builder.fmul(builder.fsub(y, lanes_of(ROUND_4)), lanes_of(STEP_4))
                told = builder.fmul(told, in_all_lanes(builder, scale))
                place = lanes_at(context, builder, signature.args[1], arguments[1], index)
                builder.store(builder.fsub(x, told), place, align=4)
            return builder.trunc(builder.bitcast(y, INTS), BYTES)

        lower = sixteen(arguments[2], *arguments[4:6])
        upper = sixteen(arguments[3], *arguments[6:8])
        data = context.make_array(signature.args[8])(context, builder, arguments[8]).data
        builder.store(
            builder.or_(
                builder.and_(lower, ir.Constant(BYTES, [15] * LANES)),
                builder.shl(upper, ir.Constant(BYTES, [4] * LANES)),
            ),
            builder.bitcast(data, BYTES.as_pointer()),
            align=1,
        )

    f4 = types.float32
    return types.void(vector, residual, types.intp, types.intp, f4, f4, f4, f4, codes), codegen


@kernel
def encode_blocks(vector, residual, block, maximum, shares, codes):
    """Encode a whole group without a key: its first half in the lower halves of the bytes.

    A group is about a page of memory, at whose end the processor does not look ahead by itself.
    """
    half = GROUP // 2
    for j in range(half):
        low_scale = np.float32(shares[j]) * SHARE * maximum
        high_scale = np.float32(shares[half + j]) * SHARE * maximum
        low_inverse, high_inverse = inverse_of(low_scale), inverse_of(high_scale)
        for first in range(j * block, (j + 1) * block, LANES):
            fetch_ahead(vector, residual, GROUP * block + first)
            fetch_ahead(vector, residual, GROUP * block + half * block + first)
            encode_pairs(
                vector,
                residual,
                first,
                half * block + first,
                low_scale,
                low_inverse,
                high_scale,
                high_inverse,
                codes[first:],
            )


@kernel
def mean_magnitude(vector, residual, first, last, block, sums, rest):
    """Return the mean of |vector + residual| over a block; `sums` and `rest` are scratch."""
    share, whole = np.float32(1 / block), (last - first) // CHUNK
    sums[:] = ZERO
    for number in range(whole):
        sums[number] = magnitude_sum(vector, residual, first + number * CHUNK, share)
    start = first + whole * CHUNK
    if start < last:
        rest[:] = ZERO
        for i in range(last - start):
            rest[i] = given(vector, residual, start + i)
        sums[whole] = magnitude_sum(rest, None, 0, share)
    half = sums.size
    while half > 1:
        half //= 2
        for i in range(half):
            sums[i] += sums[half + i]
    return sums[0] * np.float32(block / (last - first))


@kernel
def encode_one_bit(vector, residual, block, scales, codes):
    sums, rest = np.empty(max(1, block // CHUNK), np.float32), np.empty(CHUNK, np.float32)
    for number in range(scales.size):
        first = number * block
        last = min(first + block, vector.size)
        mean = mean_magnitude(vector, residual, first, last, block, sums, rest)
        part = codes[first // 8 : (last + 7) // 8]
        if bits_of(mean) < INFINITY:
            scales[number] = mean
            write_signs(vector, residual, first, last, part)
            keep_signed(vector[first:last], part_of(residual, first, last), mean)
        else:
            scales[number] = QUIET_NAN
            part[:] = 0


@kernel
def write_signs(vector, residual, first, last, codes):
    whole = (last - first) // LANES
    for group in range(whole):
        bits = sign_bits(vector, residual, first + group * LANES)
        codes[2 * group], codes[2 * group + 1] = np.uint8(bits), np.uint8(bits >> 8)
    codes[2 * whole :] = 0
    for i in range(whole * LANES, last - first):
        minus = (bits_of(given(vector, residual, first + i)) >> 31) & np.int32(1)
        codes[i // 8] |= np.uint8(minus << (i % 8))


@kernel
def keep_signed(vector, residual, mean):
    """Leave in `residual` what plus or minus `mean` does not say."""
    for i in range(vector.size):
        x = given(vector, residual, i)
        keep(residual, i, x - float_of(bits_of(mean) | (bits_of(x) & SIGN)))


@kernel
def decode_one_bit(scales, codes, block, vector):
    vector[:] = ZERO
    add_one_bit(scales, codes, block, vector)


@kernel
def add_one_bit(scales, codes, block, total):
    for number in range(scales.size):
        first = number * block
        last = min(first + block, total.size)
        part, whole = codes[first // 8 : (last + 7) // 8], (last - first) // LANES
        for group in range(whole):
            bits = np.uint16(part[2 * group]) | (np.uint16(part[2 * group + 1]) << np.uint16(8))
            add_signed(total, first + group * LANES, np.uint16(bits), scales[number])
        for i in range(whole * LANES, last - first):
            minus = (np.int32(part[i // 8]) >> (i % 8)) & np.int32(1)
            total[first + i] += float_of(bits_of(scales[number]) ^ (minus << 31))


@kernel
def threshold_of(values, wanted):
    """Return the bits of the `wanted`-th largest magnitude and how many equal to it to take.

    Two passes over histograms of the upper and of the lower 16 bits: exact, whatever the values.
    """
    histogram = np.zeros(POSITIONS, np.int64)
    for i in range(values.size):
        histogram[(bits_of(values[i]) & MAGNITUDE) >> 16] += 1
    upper, left = fullest(histogram, wanted)
    histogram[:] = 0
    for i in range(values.size):
        bits = bits_of(values[i]) & MAGNITUDE
        if bits >> 16 == upper:
            histogram[bits & 0xFFFF] += 1
    lower, left = fullest(histogram, left)
    return np.int32((upper << 16) | lower), left


@kernel
def fullest(histogram, wanted):
    """Return the bin that holds the `wanted`-th largest, and which one of that bin it is."""
    digit = histogram.size - 1
    while histogram[digit] < wanted:
        wanted -= histogram[digit]
        digit -= 1
    return digit, wanted


@kernel
def encode_top_k(vector, residual, counts, entries, positions):
    values = vector
    if residual is not None:
        for i in range(residual.size):
            residual[i] += vector[i]
        values = residual
    take_largest(values, residual, counts, entries, positions)


@kernel
def take_largest(values, residual, counts, entries, positions):
    """Do what `encode_top_k` does with `values`, which are `residual` itself where there is one."""
    counts[:] = 0
    if entries.size == 0:
        return np.int32(MAGNITUDE)
    threshold, ties = threshold_of(values, entries.size)
    taken = 0
    for i in range(values.size):
        bits = bits_of(values[i]) & MAGNITUDE
        if bits < threshold or (bits == threshold and ties == 0):
            continue
        if bits == threshold:
            ties -= 1
        entries[taken] = values[i]
        positions[taken] = i % POSITIONS
        counts[i // POSITIONS] += 1
        taken += 1
        keep(residual, i, ZERO)
    return threshold


@kernel
def take_above(vector, residual, least, passed, entries, positions):
    """Write what passes while there is room; return how many have passed, in this block and before.

    Unsigned indices, because numba looks whether others are negative.
    """
    size, run = np.uint64(vector.size), np.uint64(RUN)
    for start in range(np.uint64(0), size - size % run, run):
        mask = passing(vector, residual, start, run, least)
        if mask != 0:
            passed = take(mask, vector, residual, start, passed, entries, positions)
    start = size - size % run
    mask = passing(vector, residual, start, size % run, least)
    return take(mask, vector, residual, start, passed, entries, positions)


@kernel
def passing(vector, residual, start, length, least):
    """Add vector to residual and return a bit for each sum that is not under `least`."""
    mask = np.uint32(0)
    for j in range(length):
        x = given(vector, residual, start + j)
        keep(residual, start + j, x)
        hit = np.uint32(1) if bits_of(x) & MAGNITUDE >= least else np.uint32(0)
        mask = np.uint32(mask | np.uint32(hit << np.uint32(j)))
    return mask


@kernel
def take(mask, vector, residual, start, passed, entries, positions):
    while mask != 0:
        i = start + np.uint64(zeros_below(mask))
        mask = np.uint32(mask & np.uint32(mask - np.uint32(1)))
        if passed < entries.size:
            entries[passed] = vector[i] if residual is None else residual[i]
            positions[passed] = np.uint16(i)
            keep(residual, i, ZERO)
        passed += 1
    return passed


@kernel
def largest_bits_kept(vector, residual):
    """Add the vector to the residual and return the largest magnitude of the sum."""
    top = np.int32(0)
    for i in range(vector.size):
        x = given(vector, residual, i)
        keep(residual, i, x)
        top = max(top, bits_of(x) & MAGNITUDE)
    return top


@kernel
def encode_above(vector, residual, threshold, counts, entries, positions):
    least, taken, passed = bits_of(threshold), 0, 0
    for number in range(counts.size):
        start = number * POSITIONS
        stop = min(start + POSITIONS, vector.size)
        passed = take_above(
            vector[start:stop], part_of(residual, start, stop), least, passed, entries, positions
        )
        taken_now = min(passed, entries.size)
        counts[number] = taken_now - taken
        taken = taken_now
    if 0 < least <= INFINITY and 9 * entries.size <= 10 * passed <= 10 * entries.size:
        entries[passed:] = ZERO
        positions[passed:] = 0
        return threshold
    values = vector
    if residual is not None:  # take back what was taken: nothing is left at its place
        add_top_k(counts, entries, positions, residual)
        values = residual
    return float_of(take_largest(values, residual, counts, entries, positions))


@kernel
def add_top_k(counts, entries, positions, total):
    taken = 0
    for number in range(counts.size):
        for _ in range(counts[number]):
            if taken == entries.size:
                return
            place = number * POSITIONS + np.int64(positions[taken])
            if place < total.size:
                total[place] += entries[taken]
            taken += 1


@kernel
def layout_of(size, kept, bits):
    """Return the entries, bits of a low and bytes of the parts that `chunk_records.layout_of` does."""
    mine, low_bits = max(1, (kept * size + TOP_K_CHUNK // 2) // TOP_K_CHUNK), 0
    while (size - mine) // mine >> (low_bits + 1):
        low_bits += 1
    marks = mine + ((size - mine) >> low_bits)
    return mine, low_bits, (marks + 7) // 8, (mine * low_bits + 7) // 8, (mine * bits + 7) // 8


@kernel
def sum_into(vector, residual, start, length, x, least):
    """Write vector + residual from `start` on into x; return bits for those that are not under `least`.

    And the largest magnitude, as bits.
    """
    mask, top = np.uint32(0), np.int32(0)
    for j in range(length):
        value = given(vector, residual, start + j)
        x[start + j] = value
        magnitude = bits_of(value) & MAGNITUDE
        top = max(top, magnitude)
        hit = np.uint32(1) if magnitude >= least else np.uint32(0)
        mask = np.uint32(mask | np.uint32(hit << np.uint32(j)))
    return mask, top


@kernel
def sums_into(vector, residual, x, least, masks):
    """Do so for the whole of x, with a mask for each 32 entries; return the largest magnitude."""
    size, run, top = np.uint64(x.size), np.uint64(RUN), np.int32(0)
    for start in range(np.uint64(0), size - size % run, run):
        masks[start // run], largest = sum_into(vector, residual, start, run, x, least)
        top = max(top, largest)
    start = size - size % run
    if start < size:
        masks[start // run], largest = sum_into(vector, residual, start, size - start, x, least)
        top = max(top, largest)
    return top


@kernel
def count_from(magnitudes, least):
    """Return how many of the magnitudes, as bits, are not under `least`."""
    passed = np.int32(0)
    for i in range(magnitudes.size):
        passed = np.int32(passed + np.int32((magnitudes[i] & MAGNITUDE) >= least))
    return passed


@kernel
def about(magnitudes, wanted, guess, top):
    """Return bits that at least `wanted` magnitudes are not under, and seldom over three times as many.

    `guess` is where the search starts: what served the chunk before serves this one most often.
    """
    low, high, step = np.int32(0), np.int32(top + 1), np.int32(1 << 20)  # a fraction of an octave
    bits = min(max(guess, np.int32(1)), top)
    while high - low > 1:
        passed = count_from(magnitudes, bits)
        if passed < wanted:
            high, bits = bits, np.int32(bits - step)
        elif passed > 3 * wanted + 32:
            low, bits = bits, np.int32(min(np.int64(bits) + step, INFINITY))
        else:
            return bits
        step = np.int32(min(2 * np.int64(step), 1 << 29))
        if not low < bits < high:
            bits = np.int32(low + (high - low) // 2)
    return low


@kernel
def places_of(masks, places):
    """Write the places of the bits that are 1 in `masks`, of 32 entries each; return their number."""
    passed = 0
    for number in range(masks.size):
        mask = masks[number]
        while mask != 0:
            places[passed] = number * RUN + np.int64(zeros_below(mask))
            mask = np.uint32(mask & np.uint32(mask - np.uint32(1)))
            passed += 1
    return passed


@kernel
def kth_of(magnitudes, wanted, low, top):
    """Return the `wanted`-th largest magnitude in [low, top], and how many of its equals to take."""
    high = np.int32(top + 1)
    while high - low > 1:
        middle = np.int32(low + (high - low) // 2)
        if count_from(magnitudes, middle) >= wanted:
            low = middle
        else:
            high = middle
    return low, wanted - count_from(magnitudes, np.int32(low + 1))


@kernel
def put_bits(part, first, number):
    """Set the bits of `number` in the bytes `part`, zeros so far, from bit `first` on."""
    number, byte = number << (first & 7), first >> 3
    while number:
        part[byte] |= np.uint8(number & 255)
        number, byte = number >> 8, byte + 1


@kernel
def encode_top_k_codes(vector, residual, kept, bits, scales, records):
    x, magnitudes = np.empty(TOP_K_CHUNK, np.float32), np.empty(TOP_K_CHUNK, np.int32)
    places, of_runs = np.empty(TOP_K_CHUNK, np.int32), np.empty(TOP_K_CHUNK // RUN, np.uint32)
    at, guess = 0, np.int32(0)
    for number in range(scales.size):
        start = number * TOP_K_CHUNK
        stop = min(start + TOP_K_CHUNK, vector.size)
        wanted, low_bits, marks, lows, codes = layout_of(stop - start, kept, bits)
        record = records[at : at + marks + lows + codes]
        record[:] = 0
        at += record.size
        entries, part = x[: stop - start], part_of(residual, start, stop)
        masks = of_runs[: (entries.size + RUN - 1) // RUN]
        top = sums_into(vector[start:stop], part, entries, guess, masks)
        scales[number] = QUIET_NAN if top >= INFINITY else ZERO
        if top >= INFINITY:
            continue
        if top >= SMALLEST_MAXIMUM_BITS:
            scales[number] = float_of(top)
            passed = places_of(masks, places)
            if not wanted <= passed <= 3 * wanted + RUN:
                guess = about(entries.view(np.int32), wanted, guess, top)
                sums_into(entries, None, entries, guess, masks)
                passed = places_of(masks, places)
            there = magnitudes[:passed]
            for i in range(there.size):
                there[i] = bits_of(entries[places[i]]) & MAGNITUDE
            threshold, ties = kth_of(there, wanted, guess, top)
            write_record(
                entries,
                places,
                there,
                threshold,
                ties,
                bits,
                float_of(top),
                low_bits,
                record[:marks],
                record[marks : marks + lows],
                record[marks + lows :],
            )
        for i in range(entries.size):
            keep(part, i, entries[i])


@kernel
def write_record(x, places, magnitudes, threshold, ties, bits, maximum, low_bits, marks, lows, codes):
    """Write the chosen of the entries at `places`, and leave in x what their codes do not say."""
    sent, parts = 0, 1 << (bits - 1)
    inverse, step = np.float32(parts) / maximum, maximum * np.float32(1 / parts)
    for j in range(magnitudes.size):
        magnitude = magnitudes[j]
        if magnitude < threshold or (magnitude == threshold and ties == 0):
            continue
        if magnitude == threshold:
            ties -= 1
        said = min(float_of(magnitude) * inverse + ROUND, np.float32(parts) + ROUND) - ROUND
        if said == 0:
            continue
        place = places[j]
        minus, gap = x[place] < 0, np.int64(place) - sent
        put_bits(marks, (gap >> low_bits) + sent, 1)
        put_bits(lows, sent * low_bits, gap & ((1 << low_bits) - 1))
        put_bits(codes, sent * bits, np.int64(said) - 1 + (parts if minus else 0))
        told = said * step
        x[place] = x[place] + told if minus else x[place] - told
        sent += 1


@kernel
def add_top_k_codes(kept, bits, scales, records, total):
    at, parts = 0, 1 << (bits - 1)
    for number in range(scales.size):
        x = total[number * TOP_K_CHUNK : (number + 1) * TOP_K_CHUNK]
        most, low_bits, marks, lows, codes = layout_of(x.size, kept, bits)
        record = records[at : at + marks + lows + codes]
        at += record.size
        if bits_of(scales[number]) & MAGNITUDE > INFINITY:
            for i in range(x.size):
                x[i] += scales[number]
            continue
        add_record(
            scales[number] * np.float32(1 / parts),
            most,
            bits,
            low_bits,
            record[:marks],
            record[marks : marks + lows],
            record[marks + lows :],
            x,
        )


@kernel
def add_record(step, most, bits, low_bits, marks, lows, codes, x):
    """Add what one record says; lows are read one byte after the other into `window`."""
    taken, window, ready, byte_of_low, parts = 0, 0, 0, 0, 1 << (bits - 1)
    for byte in range(marks.size):
        marked = np.uint32(marks[byte])
        while marked != 0 and taken < most:
            gap = 8 * byte + np.int64(zeros_below(marked)) - taken
            marked = np.uint32(marked & np.uint32(marked - np.uint32(1)))
            while ready < low_bits:
                window |= np.int64(lows[byte_of_low]) << ready
                byte_of_low, ready = byte_of_low + 1, ready + 8
            place = ((gap << low_bits) | (window & ((1 << low_bits) - 1))) + taken
            window, ready = window >> low_bits, ready - low_bits
            code = np.int64(codes[taken * bits >> 3]) >> (taken * bits & 7)
            told = np.float32((code & (parts - 1)) + 1) * step
            if place < x.size:
                x[place] += -told if code & parts else told
            taken += 1


@kernel
def random_place(size, strata, number, word):
    """Return the place in stratum `number` of `strata` that a random word says."""
    first, last = size * number // strata, size * (number + 1) // strata
    return first + np.int64((np.uint64(word) * np.uint64(last - first)) >> np.uint64(32))


@kernel
def encode_random_k(vector, residual, key, entries):
    bad, words = largest_bits_kept(vector, residual) >= INFINITY, np.empty(SPAN, np.uint32)
    for number in range(entries.size):
        if number % SPAN == 0:
            fill(words, key, number)
        place = random_place(vector.size, entries.size, number, words[number % SPAN])
        entries[number] = vector[place] if residual is None else residual[place]
        keep(residual, place, ZERO)
    if bad:
        entries[0] = QUIET_NAN


@kernel
def add_random_k(key, entries, total):
    words = np.empty(SPAN, np.uint32)
    for number in range(entries.size):
        if number % SPAN == 0:
            fill(words, key, number)
        total[random_place(total.size, entries.size, number, words[number % SPAN])] += entries[number]


@kernel
def decode_low_rank(p, q, matrix):
    for i in range(p.shape[0]):
        write_row(p[i], q, matrix[i])


@kernel
def add_low_rank(p, q, matrix):
    decoded = np.empty(q.shape[1], np.float32)
    for i in range(p.shape[0]):
        write_row(p[i], q, decoded)
        add(decoded, matrix[i])


@kernel
def write_row(weights, q, row):
    """Write the sum of the rows of q by weight, in their order."""
    first = q[0]
    for j in range(row.size):
        row[j] = weights[0] * first[j]
    for k in range(1, q.shape[0]):
        more = q[k]
        for j in range(row.size):
            row[j] += weights[k] * more[j]


@kernel
def square_sums(vector, sums):
    lanes = np.empty(CHUNK, np.float64)
    for number in range(sums.size):
        block = vector[number * SQUARES : min((number + 1) * SQUARES, vector.size)]
        lanes[:] = 0.0
        for start in range(0, block.size, CHUNK):
            row = block[start : min(start + CHUNK, block.size)]
            for i in range(row.size):
                x = np.float64(row[i])
                lanes[i] += x * x
        half = CHUNK // 2
        while half:
            for i in range(half):
                lanes[i] += lanes[half + i]
            half //= 2
        sums[number] = lanes[0]


@kernel
def step_sgd(gradient, scale, decay, factor, nesterov, rate, momentum, parameters):
    scale, decay, factor, rate = (
        np.float32(scale),
        np.float32(decay),
        np.float32(factor),
        np.float32(rate),
    )
    for i in range(parameters.size):
        d = gradient[i] * scale
        if decay != 0:
            d = d + parameters[i] * decay
        if momentum is not None:
            m = momentum[i] * factor + d
            momentum[i] = m
            d = d + m * factor if nesterov else m
        parameters[i] += d * -rate


@kernel
def step_adam(
    gradient, scale, decay, shrink, beta1, beta2, rate, correction, epsilon, mean, square, parameters
):
    less1, less2 = np.float32(1 - np.float64(beta1)), np.float32(1 - np.float64(beta2))
    beta1, beta2 = np.float32(beta1), np.float32(beta2)
    scale, decay, shrink = np.float32(scale), np.float32(decay), np.float32(shrink)
    rate, correction, epsilon = np.float32(rate), np.float32(correction), np.float32(epsilon)
    for i in range(parameters.size):
        g = gradient[i] * scale
        if decay != 0:
            g = g + parameters[i] * decay
        m = mean[i] * beta1 + g * less1
        v = square[i] * beta2 + g * less2 * g
        mean[i], square[i] = m, v
        parameters[i] = parameters[i] * shrink + m / (np.sqrt(v) * correction + epsilon) * -rate
