"""The kernels on a GPU: CUDA C++ through CuPy, the same names and the same bytes as `reference`.

Each is one launch for a whole vector, the choice of TopK and RandomK excepted. All run in CuPy's
current stream and return before they are done, but those that return a number. A NaN that arithmetic
makes has the bits of its machine, here as on a CPU.
"""

import numpy as np

from isthmus.kernels.chunk_records import CHUNK, layout_of
from isthmus.kernels.device import the_device
from isthmus.kernels.device_arrays import F4, F8, I1, U1, U2, U4, check, check_chosen
from isthmus.kernels.reference import GROUP, POSITIONS, SQUARES

THREADS = 256  # of a thread block: THREADS in rows.cuh
ROWS = 8  # rows of a thread block, one a warp
DENSE_ROW = 256  # entries of a row where there are no blocks
TILE = 8192  # entries of a thread block in top_k.cu
PICKERS = 1024  # threads of the kernels that are one thread block
HISTOGRAM_BLOCKS = 1024  # most thread blocks that make one histogram
UPPER, LOWER = 13, 18  # bits of the two digits of a magnitude
IN_REGISTERS = (128, 256, 512, 1024)


def add(vector, total):
    device = the_device()
    check(device, vector=(vector, F4, total.size), total=(total, F4, total.size))
    _run_rows(device, "dense", "add", total.size, DENSE_ROW, vector, total, total.size)


def scale(vector, factor, scaled):
    device = the_device()
    check(device, vector=(vector, F4, scaled.size), scaled=(scaled, F4, scaled.size))
    _run_rows(
        device, "dense", "scale", scaled.size, DENSE_ROW, vector, *_bits(factor), scaled, scaled.size
    )


def all_finite(vector):
    device = the_device()
    check(device, vector=(vector, F4, vector.size))
    return not device.to_host(_keep_and_check(device, vector, None))[0]


def encode_dense(vector, residual, entries):
    _encode("dense", "encode_dense", vector, residual, entries, F4)


def encode_float16(vector, residual, codes):
    _encode("dense", "encode_float16", vector, residual, codes, U2)


def decode_float16(codes, vector):
    _decode_16("decode_float16", codes, vector, False)


def add_float16(codes, total):
    _decode_16("decode_float16", codes, total, True)


def encode_bfloat16(vector, residual, codes):
    _encode("dense", "encode_bfloat16", vector, residual, codes, U2)


def decode_bfloat16(codes, vector):
    _decode_16("decode_bfloat16", codes, vector, False)


def add_bfloat16(codes, total):
    _decode_16("decode_bfloat16", codes, total, True)


def encode_int8(vector, residual, block, key, first, maxima, codes):
    device, size = the_device(), vector.size
    check(
        device,
        vector=(vector, F4, size),
        residual=(residual, F4, size),
        maxima=(maxima, F4, _parts(size, block)),
        codes=(codes, I1, size),
    )
    name, more = _of_block("encode_int8", block)
    _run_rows(
        device,
        "int8",
        name,
        size,
        block,
        vector,
        residual,
        size,
        *_rounding(key, first),
        maxima,
        codes,
        *more,
    )


def decode_int8(maxima, codes, block, vector):
    _decode_int8(maxima, codes, block, vector, False)


def add_int8(maxima, codes, block, total):
    _decode_int8(maxima, codes, block, total, True)


def encode_int4(vector, residual, block, key, first, maxima, shares, codes):
    device, size = the_device(), vector.size
    check(
        device,
        vector=(vector, F4, size),
        residual=(residual, F4, size),
        **_int4_wire(maxima, shares, codes, block, size),
    )
    _run_rows(
        device,
        "int4",
        "encode_int4",
        size,
        GROUP * block,
        vector,
        residual,
        size,
        *_rounding(key, first),
        block,
        maxima,
        shares,
        codes,
    )


def decode_int4(maxima, shares, codes, block, vector):
    _decode_int4(maxima, shares, codes, block, vector, False)


def add_int4(maxima, shares, codes, block, total):
    _decode_int4(maxima, shares, codes, block, total, True)


def encode_one_bit(vector, residual, block, scales, codes):
    device, size = the_device(), vector.size
    check(
        device,
        vector=(vector, F4, size),
        residual=(residual, F4, size),
        scales=(scales, F4, _parts(size, block)),
        codes=(codes, U1, _parts(size, 8)),
    )
    name, more = _of_block("encode_one_bit", block)
    _run_rows(device, "one_bit", name, size, block, vector, residual, size, scales, codes, *more)


def decode_one_bit(scales, codes, block, vector):
    _decode_one_bit(scales, codes, block, vector, False)


def add_one_bit(scales, codes, block, total):
    _decode_one_bit(scales, codes, block, total, True)


def encode_top_k(vector, residual, counts, entries, positions):
    device = the_device()
    _check_top_k(device, vector, residual, counts, entries, positions)
    values = vector
    if residual is not None:
        add(vector, residual)
        values = residual
    _take_largest(device, values, residual, counts, entries, positions)


def encode_above(vector, residual, threshold, counts, entries, positions):
    device, threshold = the_device(), np.float32(float(threshold))
    _check_top_k(device, vector, residual, counts, entries, positions)
    values = vector if residual is None else residual
    if threshold > 0:
        found = device.zeros(2, "u4")
        found[:1] = int(threshold.view("u4")) - 1  # larger than this: not under the threshold
        marks = _mark(device, vector, residual, found)
        passed = int(device.to_host(marks[2][-1:])[0]) & 0xFFFFFFFF
        if 9 * entries.size <= 10 * passed <= 10 * entries.size:
            _write(device, values, residual, found, marks, counts, entries, positions)
            return threshold
    elif residual is not None:
        add(vector, residual)
    found = _take_largest(device, values, residual, counts, entries, positions)
    bits = 0x7FFFFFFF if found is None else device.to_host(found)[0]
    return np.uint32(bits).view(np.float32)


def add_top_k(counts, entries, positions, total):
    device = the_device()
    check(
        device,
        counts=(counts, U4, _parts(total.size, POSITIONS)),
        entries=(entries, F4, entries.size),
        positions=(positions, U2, entries.size),
        total=(total, F4, total.size),
    )
    _run(
        device,
        "top_k",
        "add_top_k",
        counts.size,
        THREADS,
        counts,
        entries,
        positions,
        entries.size,
        total,
        total.size,
    )


def encode_top_k_codes(vector, residual, kept, bits, scales, records):
    device, size = the_device(), vector.size
    check(
        device,
        vector=(vector, F4, size),
        residual=(residual, F4, size),
        **_top_k_records(scales, records, kept, bits, size),
    )
    numbers = np.int32(kept), np.int32(bits)
    launch = device, "top_k_codes", "encode_top_k_codes", scales.size, THREADS
    _run(*launch, vector, residual, size, *numbers, scales, records)


def add_top_k_codes(kept, bits, scales, records, total):
    device, size = the_device(), total.size
    check(device, total=(total, F4, size), **_top_k_records(scales, records, kept, bits, size))
    numbers = np.int32(kept), np.int32(bits)
    launch = device, "top_k_codes", "add_top_k_codes", _parts(scales.size, ROWS), THREADS
    _run(*launch, *numbers, scales, records, total, size)


def encode_random_k(vector, residual, key, entries):
    device, size = the_device(), vector.size
    check(
        device,
        vector=(vector, F4, size),
        residual=(residual, F4, size),
        entries=(entries, F4, entries.size),
    )
    check_chosen(size, entries.size)
    bad = _keep_and_check(device, vector, residual)
    _run(
        device,
        "random_k",
        "take_random",
        _parts(entries.size, THREADS),
        THREADS,
        vector,
        residual,
        size,
        np.uint64(key),
        bad,
        entries,
        entries.size,
    )


def add_random_k(key, entries, total):
    device = the_device()
    check(device, entries=(entries, F4, entries.size), total=(total, F4, total.size))
    check_chosen(total.size, entries.size)
    _run(
        device,
        "random_k",
        "add_random_k",
        _parts(entries.size, THREADS),
        THREADS,
        np.uint64(key),
        entries,
        entries.size,
        total,
        total.size,
    )


def decode_low_rank(p, q, matrix):
    _decode_low_rank(p, q, matrix, False)


def add_low_rank(p, q, matrix):
    _decode_low_rank(p, q, matrix, True)


def square_sums(vector, sums):
    device, size = the_device(), vector.size
    check(device, vector=(vector, F4, size), sums=(sums, F8, _parts(size, SQUARES)))
    _run_rows(device, "optimisers", "square_sums", size, SQUARES, vector, size, sums)


def step_sgd(gradient, scale, decay, factor, nesterov, rate, momentum, parameters):
    device, size = the_device(), parameters.size
    check(
        device,
        gradient=(gradient, F4, size),
        momentum=(momentum, F4, size),
        parameters=(parameters, F4, size),
    )
    _run_rows(
        device,
        "optimisers",
        "step_sgd",
        size,
        DENSE_ROW,
        gradient,
        *_bits(scale, decay, factor),
        np.int32(nesterov),
        *_bits(rate),
        momentum,
        parameters,
        size,
    )


def step_adam(
    gradient, scale, decay, shrink, beta1, beta2, rate, correction, epsilon, mean, square, parameters
):
    device, size = the_device(), parameters.size
    check(
        device,
        gradient=(gradient, F4, size),
        mean=(mean, F4, size),
        square=(square, F4, size),
        parameters=(parameters, F4, size),
    )
    _run_rows(
        device,
        "optimisers",
        "step_adam",
        size,
        DENSE_ROW,
        gradient,
        *_bits(scale, decay, shrink, beta1, 1 - float(beta1), beta2, 1 - float(beta2)),
        *_bits(rate, correction, epsilon),
        mean,
        square,
        parameters,
        size,
    )


def _bits(*numbers):
    """Return the bits of each number as a float32: kernels take pointers and integers only."""
    return (np.float32(each).view("u4") for each in numbers)


def _parts(size, part):
    return -(-size // part)


def _run(device, source, name, blocks, threads, *arguments):
    """Launch a kernel unless there is nothing to do. Integers of Python become 64 bits wide."""
    if blocks:
        device.run(
            source,
            name,
            blocks,
            threads,
            tuple(np.int64(each) if type(each) is int else each for each in arguments),
        )


def _run_rows(device, source, name, size, row, *arguments):
    """Launch a warp for each row of `row` entries."""
    _run(device, source, name, _parts(_parts(size, row), ROWS), THREADS, *arguments)


def _of_block(verb, block):
    """Return the name of the kernel for blocks of that size, and what else it must be told."""
    return (f"{verb}_{block}", ()) if block in IN_REGISTERS else (f"{verb}_any", (int(block),))


def _rounding(key, first):
    return np.uint64(0 if key is None else key), np.int32(key is not None), np.uint64(first)


def _keep_and_check(device, vector, residual):
    """Add the vector to the residual; return uint32[1], not 0 if there is a NaN or an infinity."""
    bad = device.zeros(1, "u4")
    _run_rows(
        device, "dense", "keep_and_check", vector.size, DENSE_ROW, vector, residual, vector.size, bad
    )
    return bad


def _encode(source, name, vector, residual, codes, dtype):
    device, size = the_device(), vector.size
    check(device, vector=(vector, F4, size), residual=(residual, F4, size), codes=(codes, dtype, size))
    _run_rows(device, source, name, size, DENSE_ROW, vector, residual, size, codes)


def _decode_16(name, codes, vector, adding):
    device, size = the_device(), vector.size
    check(device, codes=(codes, U2, size), vector=(vector, F4, size))
    _run_rows(device, "dense", name, size, DENSE_ROW, codes, vector, size, np.int32(adding))


def _decode_blocks(device, source, verb, block, scales, codes, vector, adding):
    """Launch a warp for each block, or a thread for each entry where blocks are not in registers."""
    name, more = _of_block(verb, block)
    blocks = _parts(vector.size, THREADS if more else ROWS * block)
    _run(
        device,
        source,
        name,
        blocks,
        THREADS,
        scales,
        codes,
        vector.size,
        vector,
        np.int32(adding),
        *more,
    )


def _decode_int8(maxima, codes, block, vector, adding):
    device, size = the_device(), vector.size
    check(
        device,
        maxima=(maxima, F4, _parts(size, block)),
        codes=(codes, I1, size),
        vector=(vector, F4, size),
    )
    _decode_blocks(device, "int8", "decode_int8", block, maxima, codes, vector, adding)


def _int4_wire(maxima, shares, codes, block, size):
    blocks = _parts(size, block)
    return {
        "maxima": (maxima, F4, _parts(blocks, GROUP)),
        "shares": (shares, U2, blocks),
        "codes": (codes, U1, _parts(size, 2)),
    }


def _decode_int4(maxima, shares, codes, block, vector, adding):
    device, size = the_device(), vector.size
    check(device, **_int4_wire(maxima, shares, codes, block, size), vector=(vector, F4, size))
    _run_rows(
        device,
        "int4",
        "decode_int4",
        size,
        GROUP * block,
        maxima,
        shares,
        codes,
        size,
        block,
        vector,
        np.int32(adding),
    )


def _decode_one_bit(scales, codes, block, vector, adding):
    device, size = the_device(), vector.size
    check(
        device,
        scales=(scales, F4, _parts(size, block)),
        codes=(codes, U1, _parts(size, 8)),
        vector=(vector, F4, size),
    )
    _decode_blocks(device, "one_bit", "decode_one_bit", block, scales, codes, vector, adding)


def _check_top_k(device, vector, residual, counts, entries, positions):
    size = vector.size
    check(
        device,
        vector=(vector, F4, size),
        residual=(residual, F4, size),
        counts=(counts, U4, _parts(size, POSITIONS)),
        entries=(entries, F4, entries.size),
        positions=(positions, U2, entries.size),
    )
    check_chosen(size, entries.size)


def _top_k_records(scales, records, kept, bits, size):
    whole, rest = divmod(size, CHUNK)
    nbytes = whole * layout_of(CHUNK, kept, bits).nbytes
    nbytes += layout_of(rest, kept, bits).nbytes if rest else 0
    return {"scales": (scales, F4, _parts(size, CHUNK)), "records": (records, U1, nbytes)}


def _take_largest(device, values, residual, counts, entries, positions):
    """Do what `encode_top_k` does with `values`, which are `residual` itself where there is one.

    Returns uint32[2]: the bits of the smallest magnitude that was taken, and how many that equal it.
    """
    if not entries.size:
        counts.fill(0)
        return None
    found = device.zeros(2, "u4")
    found[1:] = entries.size
    blocks = min(_parts(values.size, TILE), HISTOGRAM_BLOCKS)
    for number, bits in enumerate((UPPER, LOWER)):
        histogram = device.zeros(1 << bits, "u4")
        _run(
            device,
            "top_k",
            "top_k_histogram",
            blocks,
            THREADS,
            values,
            values.size,
            np.int32(number),
            found,
            histogram,
        )
        _run(
            device,
            "top_k",
            "top_k_pick",
            1,
            PICKERS,
            histogram,
            np.int32(1 << bits),
            np.int32(bits),
            found,
        )
    marks = _mark(device, values, None, found)
    _write(device, values, residual, found, marks, counts, entries, positions)
    return found


def _mark(device, vector, residual, found):
    """Return the bits of the larger and of the equal entries, and how many are before each tile."""
    tiles = _parts(vector.size, TILE)
    larger, equal = device.empty(tiles * THREADS, "u4"), device.empty(tiles * THREADS, "u4")
    counts = device.zeros(tiles + 1, "u8")
    _run(
        device,
        "top_k",
        "top_k_mark",
        tiles,
        THREADS,
        vector,
        residual,
        vector.size,
        found,
        larger,
        equal,
        counts,
    )
    _run(device, "top_k", "top_k_scan", 1, PICKERS, counts, tiles)
    return larger, equal, counts


def _write(device, values, residual, found, marks, counts, entries, positions):
    tiles = marks[2].size - 1
    _run(
        device,
        "top_k",
        "top_k_write",
        tiles,
        THREADS,
        values,
        residual,
        values.size,
        found,
        *marks,
        tiles,
        counts,
        entries,
        positions,
        entries.size,
    )


def _decode_low_rank(p, q, matrix, adding):
    device, (rows, columns), rank = the_device(), matrix.shape, q.shape[0]
    check(
        device, p=(p, F4, (rows, rank)), q=(q, F4, (rank, columns)), matrix=(matrix, F4, (rows, columns))
    )
    _run(
        device,
        "dense",
        "low_rank",
        _parts(matrix.size, THREADS),
        THREADS,
        p,
        q,
        matrix.size,
        columns,
        np.int32(rank),
        matrix,
        np.int32(adding),
    )
