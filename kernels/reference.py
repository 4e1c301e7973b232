"""The kernels in NumPy: what each one means, bit for bit, without regard to speed.

Every kernel writes into the arrays that it is given. `residual` may be None: then nothing is added
to the vector, and what the wire does not say is lost. Floats are compared as integers where only
their magnitude counts (`bits & 0x7fffffff`), so that a NaN is larger than an infinity, and an
infinity larger than everything else.
"""

import numpy as np

from isthmus.kernels.chunk_records import CHUNK as TOP_K_CHUNK
from isthmus.kernels.chunk_records import layout_of as _layout_of

QUIET_NAN = np.float32(np.nan)
SMALLEST_MAXIMUM_BITS = 0x04000000  # 1.5e-36: below it 127 / maximum overflows
STEP = np.float32(1 / 127)  # 127 * STEP == 1 in float32: a constant block comes back exactly
STEP_4 = np.float32(1 / 7)  # 7 * STEP_4 == 1 too
GROUP = 16  # blocks of int4 whose scales are shares of one maximum
SHARE = np.float32(2**-15)  # the unit of these shares
POSITIONS = 65536  # positions of one block of TopK fit in 16 bits
PHILOX, WEYL, PHILOX_ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
CHUNK = 128  # magnitudes are summed in chunks of as many
SQUARES = 8192  # squares are summed in blocks of as many


def add(vector, total):
    """Add `vector` to `total`."""
    total += vector


def scale(vector, factor, scaled):
    """Write `vector * factor` into `scaled`."""
    np.multiply(vector, np.float32(factor), out=scaled)


def all_finite(vector):
    """Return whether `vector` holds neither a NaN nor an infinity."""
    return bool(np.isfinite(vector).all())


def encode_dense(vector, residual, entries):
    """Write vector + residual into float32 `entries`; nothing is left to keep."""
    entries[:] = _given(vector, residual)
    if residual is not None:
        residual[:] = 0


def encode_float16(vector, residual, codes):
    """Write vector + residual into uint16 `codes` as IEEE binary16, to nearest even."""
    given = _given(vector, residual)
    with np.errstate(over="ignore"):
        codes[:] = given.astype(np.float16).view(np.uint16)
    codes[np.isnan(given)] = 0x7E00
    _keep(given, decode_float16, codes, residual)


def decode_float16(codes, vector):
    """Write the numbers that `codes` hold into `vector`."""
    vector[:] = codes.view(np.float16)


def add_float16(codes, total):
    """Add the numbers that `codes` hold to `total`."""
    total += codes.view(np.float16)


def encode_bfloat16(vector, residual, codes):
    """Write vector + residual into uint16 `codes`: the upper half of a float32, to nearest even."""
    given = _given(vector, residual)
    bits = given.view(np.uint32)
    codes[:] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    codes[np.isnan(given)] = 0x7FC0
    _keep(given, decode_bfloat16, codes, residual)


def decode_bfloat16(codes, vector):
    """Write the numbers that `codes` hold into `vector`."""
    vector.view(np.uint32)[:] = codes.astype(np.uint32) << 16


def add_bfloat16(codes, total):
    """Add the numbers that `codes` hold to `total`."""
    total += (codes.astype(np.uint32) << 16).view(np.float32)


def encode_int8(vector, residual, block, key, first, maxima, codes):
    """Write vector + residual as int8 `codes` and the largest magnitude of each block.

    A code is round(127 x / maximum). With `key` (np.uint64) rounding is stochastic: the
    dither of an entry depends on `key` and on its number, counted from `first`, alone. A block with
    a NaN or an infinity becomes NaN as a whole and leaves its residual as it was.
    """
    given = _given(vector, residual)
    for number, start in enumerate(range(0, vector.size, block)):
        part = slice(start, start + block)
        x = given[part]
        top = (x.view(np.int32) & 0x7FFFFFFF).max()
        codes[part] = 0
        if top >= 0x7F800000:
            maxima[number] = QUIET_NAN
            continue
        if top < SMALLEST_MAXIMUM_BITS:
            maxima[number] = 0
        else:
            maximum = maxima[number] = top.view(np.float32)
            y = x * (np.float32(127) / maximum)
            if key is not None:
                y = y + dither(key, first + start, x.size)
            codes[part] = np.clip(np.rint(y), -127, 127)
        if residual is not None:
            residual[part] = x - codes[part].astype(np.float32) * STEP * maxima[number]


def decode_int8(maxima, codes, block, vector):
    """Write the numbers code / 127 x maximum into `vector`."""
    for number, start in enumerate(range(0, vector.size, block)):
        part = slice(start, start + block)
        vector[part] = codes[part].astype(np.float32) * STEP * maxima[number]


def add_int8(maxima, codes, block, total):
    """Add the numbers code / 127 x maximum to `total`."""
    for number, start in enumerate(range(0, total.size, block)):
        part = slice(start, start + block)
        total[part] += codes[part].astype(np.float32) * STEP * maxima[number]


def encode_int4(vector, residual, block, key, first, maxima, shares, codes):
    """Write vector + residual as codes of 4 bits, two a byte, with a scale for each block.

    Sixteen blocks are a group and share a float32, their largest magnitude; a block's scale is a
    share of it: its own largest magnitude in units of 1 / 32768, rounded up. A code is
    8 + round(7 x / scale). In a group of n entries, L = ceil(n / 2), byte j holds entry j below and
    entry L + j above (8 if there is none). With `key` rounding is stochastic, as in `encode_int8`. A
    NaN or an infinity makes its group NaN and leaves its residual as it was.
    """
    given = _given(vector, residual)
    for number in range(maxima.size):
        start = number * GROUP * block
        part = slice(start, start + GROUP * block)
        x, mine = given[part], slice(number * GROUP, (number + 1) * GROUP)
        packed = codes[start // 2 : start // 2 - (-x.size // 2)]
        top = (x.view(np.int32) & 0x7FFFFFFF).max()
        if top >= 0x7F800000:
            maxima[number], shares[mine], packed[:] = QUIET_NAN, 0, 0x88
            continue
        maxima[number] = top.view(np.float32) if top >= SMALLEST_MAXIMUM_BITS else 0
        shares[mine] = [
            _share_of(np.abs(x[j : j + block]).max(), maxima[number]) for j in range(0, x.size, block)
        ]
        scale = _int4_scales(maxima[number], shares[mine], block, x.size)
        inverse = np.divide(np.float32(7), scale, out=np.zeros_like(scale), where=scale > 0)
        y = x * inverse
        if key is not None:
            y = y + dither(key, first + start, x.size)
        q = np.zeros(2 * packed.size, np.float32)
        q[: x.size] = np.clip(np.rint(y), -7, 7) + np.float32(0)  # no -0
        low, high = (q + 8).astype(np.uint8).reshape(2, -1)
        packed[:] = low | high << 4
        if residual is not None:
            residual[part] = x - q[: x.size] * STEP_4 * scale


def _int4_scales(maximum, shares, block, size):
    """Return the scale of each entry of a group of `size` entries."""
    return np.repeat(shares.astype(np.float32) * SHARE * maximum, block)[:size]


def _share_of(top, maximum):
    """Return a block's largest magnitude `top` in units of `SHARE` of `maximum`, rounded up."""
    if top == 0 or maximum == 0:
        return 0
    share = 32768 if top == maximum else min(int(top / maximum * np.float32(32768)) + 1, 32768)
    scale = np.float32(share) * SHARE * maximum
    return share if scale.view(np.int32) >= SMALLEST_MAXIMUM_BITS else 0


def decode_int4(maxima, shares, codes, block, vector):
    """Write the numbers (code - 8) / 7 x scale into `vector`."""
    vector[:] = 0
    add_int4(maxima, shares, codes, block, vector)


def add_int4(maxima, shares, codes, block, total):
    """Add the numbers (code - 8) / 7 x scale to `total`."""
    for number, start in enumerate(range(0, total.size, GROUP * block)):
        x = total[start : start + GROUP * block]
        packed = codes[start // 2 : start // 2 - (-x.size // 2)]
        q = np.concatenate([packed & 15, packed >> 4])[: x.size].astype(np.float32) - np.float32(8)
        of_blocks = shares[number * GROUP : (number + 1) * GROUP]
        x += q * STEP_4 * _int4_scales(maxima[number], of_blocks, block, x.size)


def encode_one_bit(vector, residual, block, scales, codes):
    """Write the signs of vector + residual as bits, 1 for minus, and the mean magnitude of each block.

    The mean of n entries is the sum of |x| / block, times block / n; it is summed by halves (the
    upper half onto the lower one, again and again) in chunks of 128, then over the chunks, zeros
    behind the end: so it is the same on every device, and exact for a constant block. A block with a
    NaN or an infinity becomes NaN as a whole, its bits 0, and leaves its residual as it was.
    """
    given = _given(vector, residual)
    for number, start in enumerate(range(0, vector.size, block)):
        part = slice(start, start + block)
        x = given[part]
        padded = np.zeros(max(block, CHUNK), np.float32)
        padded[: x.size] = np.abs(x) * np.float32(1 / block)
        mean = scales[number] = _sum_by_halves(_sum_by_halves(padded.reshape(-1, CHUNK))) * np.float32(
            block / x.size
        )
        bits = codes[start // 8 : start // 8 - (-x.size // 8)]
        if not np.isfinite(mean):
            scales[number], bits[:] = QUIET_NAN, 0
            continue
        bits[:] = np.packbits(np.signbit(x), bitorder="little")
        if residual is not None:
            residual[part] = x - np.copysign(mean, x)


def decode_one_bit(scales, codes, block, vector):
    """Write plus or minus its block's scale into each entry of `vector`."""
    vector[:] = 0
    add_one_bit(scales, codes, block, vector)


def add_one_bit(scales, codes, block, total):
    """Add plus or minus its block's scale to each entry of `total`."""
    minus = np.unpackbits(codes, bitorder="little")[: total.size].astype(bool)
    scale = np.repeat(scales, block)[: total.size]
    total += np.where(minus, -scale, scale)


def encode_top_k(vector, residual, counts, entries, positions):
    """Write the entries of largest magnitude of vector + residual, in the order of their places.

    As many as `entries` holds are taken, of equal ones the first. `positions` (uint16) count inside
    blocks of 65536; `counts` says how many entries each block has.
    """
    given = _given(vector, residual)
    _write_chosen(given, _largest(given, entries.size), residual, counts, entries, positions)


def encode_above(vector, residual, threshold, counts, entries, positions):
    """Write the entries of vector + residual of at least float32 `threshold`, if it is a good one.

    It is where it lets through between 9/10 of what `entries` holds and all of that; what is not
    used of `entries` and `positions` is then 0. Where it is not, and where it is 0, the choice is that
    of `encode_top_k`. A NaN is over every threshold. Returns the threshold that chose: `threshold`, or
    the smallest magnitude that was taken instead.
    """
    given = _given(vector, residual)
    magnitudes = given.view(np.int32) & 0x7FFFFFFF
    chosen = np.flatnonzero(magnitudes >= threshold.view(np.int32))
    if not threshold > 0 or not 9 * entries.size <= 10 * chosen.size <= 10 * entries.size:
        chosen = _largest(given, entries.size)
        threshold = magnitudes[chosen].min(initial=0x7FFFFFFF).view(np.float32)
    _write_chosen(given, chosen, residual, counts, entries, positions)
    return threshold


def _largest(given, wanted):
    """Return the places of the `wanted` largest magnitudes in order, of equal ones the first."""
    order = np.argsort(-(given.view(np.int32) & 0x7FFFFFFF), kind="stable")
    return np.sort(order[:wanted])


def _write_chosen(given, chosen, residual, counts, entries, positions):
    """Write the entries at the places `chosen`, and leave the others in `residual`."""
    entries[:], positions[:] = 0, 0
    entries[: chosen.size] = given[chosen]
    positions[: chosen.size] = chosen % POSITIONS
    counts[:] = np.bincount(chosen // POSITIONS, minlength=counts.size)
    if residual is not None:
        given[chosen] = 0
        residual[:] = given


def add_top_k(counts, entries, positions, total):
    """Add `entries` to `total` at their places; a place outside `total` is passed over."""
    taken = 0
    for number, count in enumerate(counts):
        part = slice(taken, min(taken + int(count), entries.size))
        places = positions[part].astype(np.int64) + number * POSITIONS
        inside = places < total.size
        np.add.at(total, places[inside], entries[part][inside])
        taken = part.stop


def encode_top_k_codes(vector, residual, kept, bits, scales, records):
    """Write the largest entries of each chunk of vector + residual, with codes of `bits` bits.

    A chunk has 4096 entries; `records` says where (`chunk_records`) and what, `scales` its largest
    magnitude M. Of the `kept` largest, of equal ones the first, one of magnitude m is sent as c of
    L = 2^(bits - 1) parts of M, c = round(L m / M), if that is not 0. A chunk with a NaN or an infinity
    becomes NaN as a whole and leaves its residual as it was.
    """
    given, at = _given(vector, residual), 0
    for number, start in enumerate(range(0, vector.size, TOP_K_CHUNK)):
        x = given[start : start + TOP_K_CHUNK]
        layout = _layout_of(x.size, kept, bits)
        record = records[at : at + layout.nbytes]
        record[:], at = 0, at + layout.nbytes
        top = (x.view(np.int32) & 0x7FFFFFFF).max()
        if top >= 0x7F800000:
            scales[number] = QUIET_NAN
            continue
        scales[number] = 0
        if top >= SMALLEST_MAXIMUM_BITS:
            maximum, parts = top.view(np.float32), np.float32(1 << (bits - 1))
            scales[number] = maximum
            places = _largest(x, layout.kept)
            said = np.minimum(np.rint(np.abs(x[places]) * (parts / maximum)), parts)
            places, said = places[said > 0], said[said > 0]
            minus = np.signbit(x[places])
            _write_record(layout, places, said.astype(int) - 1 + minus * (1 << (bits - 1)), bits, record)
            told = said * (maximum * (1 / parts))
            x[places] = x[places] - np.where(minus, -told, told)
        if residual is not None:
            residual[start : start + TOP_K_CHUNK] = x


def _write_record(layout, places, codes, bits, record):
    """Write places that ascend, and a code for each, into the zeros of `record`."""
    gaps = places - np.arange(places.size)
    marks, lows, words = _parts_of(layout, record)
    _set_bits(marks, (gaps >> layout.low_bits) + np.arange(places.size), np.ones_like(places), 1)
    _set_bits(lows, layout.low_bits * np.arange(places.size), gaps, layout.low_bits)
    _set_bits(words, bits * np.arange(places.size), codes, bits)


def _parts_of(layout, record):
    return np.split(record, np.cumsum([layout.marks_nbytes, layout.lows_nbytes]))


def _set_bits(part, firsts, numbers, width):
    """Set `width` bits of the bytes `part` from each of the bits `firsts` on."""
    whole = np.unpackbits(part, bitorder="little")
    for bit in range(width):
        whole[firsts + bit] = numbers >> bit & 1
    part[:] = np.packbits(whole, bitorder="little")


def _get_bits(part, firsts, width):
    """Return the numbers of `width` bits of the bytes `part` from each of the bits `firsts` on."""
    whole = np.unpackbits(part, bitorder="little").astype(np.int64)
    return sum((whole[firsts + bit] << bit for bit in range(width)), np.zeros(firsts.size, np.int64))


def add_top_k_codes(kept, bits, scales, records, total):
    """Add what `records` say to `total`; a place outside its chunk is passed over."""
    at, parts = 0, 1 << (bits - 1)
    for number, start in enumerate(range(0, total.size, TOP_K_CHUNK)):
        x = total[start : start + TOP_K_CHUNK]
        layout = _layout_of(x.size, kept, bits)
        marks, lows, words = _parts_of(layout, records[at : at + layout.nbytes])
        at += layout.nbytes
        if np.isnan(scales[number]):
            x += scales[number]
            continue
        marked = np.flatnonzero(np.unpackbits(marks, bitorder="little"))[: layout.kept]
        ranks = np.arange(marked.size)
        low = _get_bits(lows, layout.low_bits * ranks, layout.low_bits)
        places = (((marked - ranks) << layout.low_bits) | low) + ranks
        codes = _get_bits(words, bits * ranks, bits)
        told = ((codes & (parts - 1)) + 1).astype(np.float32) * (scales[number] * np.float32(1 / parts))
        inside = places < x.size
        np.add.at(x, places[inside], np.where(codes & parts, -told, told)[inside])


def encode_random_k(vector, residual, key, entries):
    """Write one entry of each of `entries.size` equal strata of vector + residual.

    Stratum s of k in a vector of n starts at s n // k; which of its places is taken depends on (`key`,
    s) alone. A NaN or an infinity anywhere, taken or not, makes the first entry NaN.
    """
    given = _given(vector, residual)
    places = _random_places(given.size, key, entries.size)
    entries[:] = given[places]
    if not np.isfinite(given).all():
        entries[0] = QUIET_NAN
    if residual is not None:
        given[places] = 0
        residual[:] = given


def add_random_k(key, entries, total):
    """Add `entries` to `total` at the places that `key` says."""
    total[_random_places(total.size, key, entries.size)] += entries


def _random_places(size, key, strata):
    bounds = np.arange(strata + 1, dtype=np.uint64) * np.uint64(size) // np.uint64(max(strata, 1))
    return bounds[:-1] + (_words(key, 0, strata).astype(np.uint64) * np.diff(bounds) >> np.uint64(32))


def decode_low_rank(p, q, matrix):
    """Write sum over k of p[i, k] q[k, j] into `matrix`: in the order of k, each step rounded."""
    matrix[:] = p[:, :1] * q[:1]
    for k in range(1, q.shape[0]):
        matrix += p[:, k : k + 1] * q[k]


def add_low_rank(p, q, matrix):
    """Add what `decode_low_rank` writes to `matrix`."""
    decoded = np.empty_like(matrix)
    decode_low_rank(p, q, decoded)
    matrix += decoded


def dither(key, first, size):
    """Return float32[size] in [-1/2, 1/2): entry i depends on (`key`, first + i) alone.

    The upper 24 bits of word i % 4 of Philox4x32-10 of the 64-bit counter i // 4: independent, as far
    as statistical tests tell, over entries, over keys, and over both, neighbours among them.
    """
    return (_words(key, first, size) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24) - (
        np.float32(0.5)
    )


def philox4x32(counters, key, rounds=PHILOX_ROUNDS):
    """Return uint32[n, 4], the random words of uint32[n, 4] `counters` under two words of key.

    A counter-based generator: J. Salmon, M. Moraes, R. Dror and D. Shaw, "Parallel random numbers: as
    easy as 1, 2, 3", SC 2011. It passes all of TestU01's BigCrush.
    """
    x, low = list(counters.T.astype(np.uint64)), np.uint64(0xFFFFFFFF)
    for number in range(rounds):
        keys = [np.uint64((int(half) + number * weyl) % 2**32) for half, weyl in zip(key, WEYL)]
        one, other = x[0] * np.uint64(PHILOX[0]), x[2] * np.uint64(PHILOX[1])
        upper = [product >> np.uint64(32) for product in (other, one)]
        x = [upper[0] ^ x[1] ^ keys[0], other & low, upper[1] ^ x[3] ^ keys[1], one & low]
    return np.stack(x, axis=1).astype(np.uint32)


def _words(key, first, size):
    """Return the uint32[size] of `dither`."""
    number = np.arange(first // 4, (first + size + 3) // 4, dtype=np.uint64)
    counters = np.zeros((number.size, 4), np.uint32)
    counters[:, 0], counters[:, 1] = number & np.uint64(0xFFFFFFFF), number >> np.uint64(32)
    key = int(key)
    return philox4x32(counters, (key & 0xFFFFFFFF, key >> 32)).ravel()[first % 4 :][:size]


def square_sums(vector, sums):
    """Write the sum of squares of each block of 8192 entries into float64 `sums`.

    Entry i of a block belongs to lane i mod 128. Each lane adds up in order, and the lanes are summed
    by halves, the upper half onto the lower one, again and again. The square of a float32 is exact in
    float64, so this alone says which bits a sum has.
    """
    padded = np.zeros(sums.size * SQUARES)
    padded[: vector.size] = vector
    lanes = np.zeros((sums.size, CHUNK))
    for row in (padded * padded).reshape(sums.size, SQUARES // CHUNK, CHUNK).transpose(1, 0, 2):
        lanes += row
    sums[:] = _sum_by_halves(lanes)


def step_sgd(gradient, scale, decay, factor, nesterov, rate, momentum, parameters):
    """Make a step of gradient descent: parameters -= rate d, in place.

    g = scale gradient + decay parameters; momentum m = factor m + g, in place; d = m, or g + factor m
    where `nesterov` is true. `momentum` may be None: then d = g. Each product and sum is rounded.
    """
    scale, decay, factor, rate = (np.float32(each) for each in (scale, decay, factor, rate))
    d = _decayed(gradient * scale, decay, parameters)
    if momentum is not None:
        momentum *= factor
        momentum += d
        d = d + momentum * factor if nesterov else momentum
    parameters += d * -rate


def step_adam(
    gradient, scale, decay, shrink, beta1, beta2, rate, correction, epsilon, mean, square, parameters
):
    """Make a step of Adam: parameters = shrink parameters - rate m / (correction sqrt(v) + epsilon).

    g = scale gradient + decay parameters; `mean` m = beta1 m + (1 - beta1) g and `square`
    v = beta2 v + ((1 - beta2) g) g, all in place. Each product, sum, quotient and root is rounded as
    IEEE 754 says; 1 - beta is that of float64.
    """
    less1, less2 = np.float32(1 - float(beta1)), np.float32(1 - float(beta2))
    scale, decay, shrink, beta1, beta2, rate, correction, epsilon = (
        np.float32(each) for each in (scale, decay, shrink, beta1, beta2, rate, correction, epsilon)
    )
    g = _decayed(gradient * scale, decay, parameters)
    mean *= beta1
    mean += g * less1
    square *= beta2
    square += g * less2 * g
    parameters *= shrink
    parameters += mean / (np.sqrt(square) * correction + epsilon) * -rate


def _decayed(gradient, decay, parameters):
    """Return gradient + decay parameters: the gradient itself, bit by bit, where decay is 0."""
    return gradient + parameters * decay if decay else gradient


def _given(vector, residual):
    """Return vector + residual as a new array."""
    return vector.copy() if residual is None else vector + residual


def _sum_by_halves(terms):
    """Return the sums along the last axis, whose length is a power of two."""
    while terms.shape[-1] > 1:
        half = terms.shape[-1] // 2
        terms = terms[..., :half] + terms[..., half:]
    return terms[..., 0]


def _keep(given, decode, codes, residual):
    """Leave in `residual` what `codes` do not say of `given`."""
    if residual is not None:
        decoded = np.empty_like(given)
        decode(codes, decoded)
        residual[:] = given - decoded
