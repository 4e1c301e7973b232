"""What every kernel is called with to compare its bytes with the reference's: special and random.

A NaN counts as equal to a NaN whatever its payload, where float32 is compared: arithmetic may choose
it. Codes, counts and places are compared as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from isthmus.kernels import reference
from isthmus.kernels.chunk_records import CHUNK, layout_of

SPECIAL = np.array(
    [
        0.0,
        -0.0,
        1e-45,
        -1e-40,
        1e-36,
        1.6e-36,
        1.17549435e-38,
        5.9e-8,
        6.2e-5,
        65504.0,
        65520.0,
        1e38,
        -1e38,
        3.4028235e38,
        np.nan,
        np.inf,
        -np.inf,
        1.0,
        -1.0,
        0.5,
    ],
    "f4",
)
SIZES = (
    0,
    1,
    2,
    3,
    15,
    16,
    17,
    37,
    127,
    128,
    129,
    255,
    256,
    257,
    1000,
    1023,
    1024,
    1025,
    2500,
    8192,
    8201,
)
INT8_BLOCKS, INT4_BLOCKS = (256, 128, 512, 1024, 1, 16, 100), (64, 2, 4, 66)
BIT_BLOCKS = (1024, 128, 256, 512, 8, 16, 64, 2048, 4096)
KEYS = (None, np.uint64(0), np.uint64(2**64 - 1), np.uint64(0x123456789ABCDEF))
FIRSTS = (0, 1024, 2**32 - 3)


@dataclass(frozen=True)
class Case:
    """One call of a kernel: call(module, inputs, outputs) writes into outputs."""

    name: str
    inputs: tuple
    outputs: tuple
    call: Callable


def vectors(random, sizes=SIZES):
    """Yield (what it is, vector, residual or None) of each size, special numbers and all magnitudes."""
    for size in sizes:
        normal = random.normal(size=size).astype("f4")
        residual = random.normal(size=size).astype("f4")
        spread = (normal * np.exp2(random.integers(-140, 120, size))).astype("f4")
        junk = random.integers(0, 2**32, size, dtype=np.uint32).view("f4")
        few = np.where(random.random(size) < 3 / max(size, 1), random.choice(SPECIAL, size), normal)
        yield f"normal[{size}]", normal, residual
        yield f"normal[{size}] alone", normal, None
        yield f"ties[{size}]", np.round(normal * 2).astype("f4"), None
        yield f"constant[{size}]", np.full(size, 3.7, "f4"), np.zeros(size, "f4")
        yield f"magnitudes[{size}]", spread, None
        yield f"special[{size}]", random.choice(SPECIAL, size), residual
        yield f"specials only[{size}]", random.choice(SPECIAL, size), random.choice(SPECIAL, size)
        yield f"few special[{size}]", few.astype("f4"), residual
        yield f"junk[{size}]", junk, None
        yield f"tiny[{size}]", (normal * np.float32(1e-38)).astype("f4"), np.zeros(size, "f4")


def random_vectors(random, count):
    """Yield `count` more, of random sizes."""
    for number in range(count):
        size = int(random.integers(1, 5000))
        vector = random.normal(size=size).astype("f4") * np.float32(10.0 ** random.integers(-3, 3))
        yield f"random {number}", vector, random.normal(size=size).astype("f4") if number % 2 else None


def cases(random, vector, residual):
    """Yield a Case or more of every kernel on that vector."""
    size = vector.size
    one_of = lambda choices: choices[random.integers(len(choices))]  # noqa: E731
    total, key, first = random.normal(size=size).astype("f4"), one_of(KEYS), one_of(FIRSTS)
    yield Case("add", (vector,), (total,), lambda m, i, o: m.add(i[0], o[0]))
    yield Case("scale", (vector,), (total,), lambda m, i, o: m.scale(i[0], 0.3, o[0]))
    yield Case("all_finite", (vector,), (), lambda m, i, o: m.all_finite(i[0]))
    yield Case(
        "encode_dense", (vector,), (residual, total), lambda m, i, o: m.encode_dense(i[0], o[0], o[1])
    )
    for kind in ("float16", "bfloat16"):
        yield Case(
            f"encode_{kind}",
            (vector,),
            (residual, np.zeros(size, "u2")),
            lambda m, i, o, kind=kind: getattr(m, f"encode_{kind}")(i[0], o[0], o[1]),
        )
        codes = random.integers(0, 2**16, size).astype("u2")
        yield from _decodes(kind, (codes,), total, lambda i, o: (i[0], o[0]))
    yield from _quantized(random, vector, residual, total, key, first, one_of)
    yield from _chosen(random, vector, residual, total, one_of)
    yield from _low_rank(random, vector)
    yield from _optimisers(random, vector, residual, total, one_of)


def _decodes(kind, wire, total, arguments):
    for verb in ("decode", "add"):
        yield Case(
            f"{verb}_{kind}",
            wire,
            (total,),
            lambda m, i, o, verb=verb: getattr(m, f"{verb}_{kind}")(*arguments(i, o)),
        )


def _quantized(random, vector, residual, total, key, first, one_of):
    size = vector.size
    for block in {INT8_BLOCKS[0], one_of(INT8_BLOCKS)}:
        wire = np.zeros(-(-size // block), "f4"), np.zeros(size, "i1")
        yield Case(
            "encode_int8",
            (vector,),
            (residual, *wire),
            lambda m, i, o, block=block: m.encode_int8(i[0], o[0], block, key, first, *o[1:]),
        )
        wire = random.choice(SPECIAL, wire[0].size), random.integers(-128, 128, size).astype("i1")
        yield from _decodes("int8", wire, total, lambda i, o, block=block: (*i, block, o[0]))
    for block in {INT4_BLOCKS[0], one_of(INT4_BLOCKS)}:
        blocks = -(-size // block)
        wire = np.zeros(-(-blocks // 16), "f4"), np.zeros(blocks, "u2"), np.zeros(-(-size // 2), "u1")
        yield Case(
            "encode_int4",
            (vector,),
            (residual, *wire),
            lambda m, i, o, block=block: m.encode_int4(i[0], o[0], block, key, first, *o[1:]),
        )
        wire = (
            random.normal(size=wire[0].size).astype("f4"),
            random.integers(0, 32769, blocks).astype("u2"),
            random.integers(0, 256, wire[2].size).astype("u1"),
        )
        yield from _decodes("int4", wire, total, lambda i, o, block=block: (*i, block, o[0]))
    for block in {BIT_BLOCKS[0], one_of(BIT_BLOCKS)}:
        wire = np.zeros(-(-size // block), "f4"), np.full(-(-size // 8), 0xAA, "u1")
        yield Case(
            "encode_one_bit",
            (vector,),
            (residual, *wire),
            lambda m, i, o, block=block: m.encode_one_bit(i[0], o[0], block, *o[1:]),
        )
        wire = random.choice(SPECIAL, wire[0].size), random.integers(0, 256, wire[1].size).astype("u1")
        yield from _decodes("one_bit", wire, total, lambda i, o, block=block: (*i, block, o[0]))


def _chosen(random, vector, residual, total, one_of):
    size = vector.size
    wanted = min(size, max(1, round(one_of((0.01, 0.1, 0.5, 1.0)) * size))) if random.integers(9) else 0
    wire = np.ones(-(-size // 65536), "u4"), np.ones(wanted, "f4"), np.ones(wanted, "u2")
    yield Case("encode_top_k", (vector,), (residual, *wire), lambda m, i, o: m.encode_top_k(i[0], *o))
    with np.errstate(all="ignore"):
        order = np.sort(np.abs(vector if residual is None else vector + residual))
    good = order[max(0, size - max(1, round(0.95 * wanted)))] if size else np.float32(1)
    for threshold in (good, one_of(SPECIAL), np.float32(0)):
        yield Case(
            "encode_above",
            (vector,),
            (residual, *wire),
            lambda m, i, o, threshold=threshold: float(m.encode_above(i[0], o[0], threshold, *o[1:])),
        )
    ascending = np.sort(random.permutation(min(size + size // 8, 65536))[:wanted]).astype("u2")
    for places in (
        ascending,
        random.integers(0, 65536, ascending.size).astype("u2"),
        random.integers(0, 3, ascending.size).astype("u2"),
    ):
        counts = np.full(wire[0].size, one_of((0, wanted // 2, wanted, 2**32 - 1)), "u4")
        entries = random.normal(size=places.size).astype("f4")
        yield Case(
            "add_top_k", (counts, entries, places), (total,), lambda m, i, o: m.add_top_k(*i, o[0])
        )
    yield from _coded(random, vector, residual, total, one_of)
    key = one_of(KEYS[1:])
    yield Case(
        "encode_random_k",
        (vector,),
        (residual, np.zeros(max(wanted, min(size, 1)), "f4")),
        lambda m, i, o: m.encode_random_k(i[0], o[0], key, o[1]),
    )
    yield Case(
        "add_random_k",
        (random.normal(size=wanted).astype("f4"),),
        (total,),
        lambda m, i, o: m.add_random_k(key, i[0], o[0]),
    )


def _coded(random, vector, residual, total, one_of):
    """A few bits an entry; records of any bytes besides, whose places need not ascend."""
    kept, bits = one_of((1, 41, 82, 1000, 2048, 4096)), one_of((2, 4, 8))
    whole, rest = divmod(vector.size, CHUNK)
    nbytes = whole * layout_of(CHUNK, kept, bits).nbytes
    nbytes += layout_of(rest, kept, bits).nbytes if rest else 0
    scales = np.ones(-(-vector.size // CHUNK), "f4")
    for given in (vector, np.round(vector)):
        yield Case(
            "encode_top_k_codes",
            (given,),
            (residual, scales, np.full(nbytes, 0xAA, "u1")),
            lambda m, i, o: m.encode_top_k_codes(i[0], o[0], kept, bits, *o[1:]),
        )
    for wire in (
        (random.normal(size=scales.size).astype("f4"), random.integers(0, 256, nbytes).astype("u1")),
        (random.choice(SPECIAL, scales.size), np.full(nbytes, 0xFF, "u1")),
        (random.normal(size=scales.size).astype("f4"), random.permutation(nbytes).astype("u1") & 1),
    ):
        yield Case(
            "add_top_k_codes", wire, (total,), lambda m, i, o: m.add_top_k_codes(kept, bits, *i, o[0])
        )


def _low_rank(random, vector):
    rank = int(random.integers(1, 5))
    rows = min(40, vector.size // rank)
    p = vector[: rows * rank].reshape(rows, rank)
    q, matrix = random.normal(size=(rank, 33)).astype("f4"), random.normal(size=(rows, 33)).astype("f4")
    for verb in ("decode_low_rank", "add_low_rank"):
        yield Case(verb, (p, q), (matrix,), lambda m, i, o, verb=verb: getattr(m, verb)(*i, o[0]))


def _optimisers(random, vector, residual, total, one_of):
    size = vector.size
    yield Case(
        "square_sums",
        (vector,),
        (np.ones(-(-size // reference.SQUARES)),),
        lambda m, i, o: m.square_sums(i[0], o[0]),
    )
    scale, decay, rate = one_of((1.0, 0.3)), one_of((0.0, 0.01)), one_of((0.1, 1e-3))
    kept = random.normal(size=size).astype("f4") if residual is None else residual
    nesterov = bool(random.integers(2))
    yield Case(
        "step_sgd",
        (vector,),
        (residual, total),
        lambda m, i, o: m.step_sgd(i[0], scale, decay, 0.9, nesterov, rate, *o),
    )
    square = np.abs(kept[::-1]) * np.float32(one_of((1.0, 1e-30)))
    shrink, correction = one_of((1.0, 0.9999)), one_of((1.0, 31.6))
    yield Case(
        "step_adam",
        (vector,),
        (kept, square, total),
        lambda m, i, o: m.step_adam(i[0], scale, decay, shrink, 0.9, 0.999, rate, correction, 1e-8, *o),
    )


def difference(case, module, put, get):
    """Run a case with `module` on arrays from put(array); return where its bytes differ, or None."""
    results = []
    for kernel, there, back in ((reference, np.copy, np.copy), (module, put, get)):
        inputs, outputs = (
            [None if each is None else there(each) for each in arrays]
            for arrays in (case.inputs, case.outputs)
        )
        with np.errstate(all="ignore"):
            said = case.call(kernel, inputs, outputs)
        results.append(
            [np.array(0 if said is None else said)]
            + [back(each) for each in inputs + outputs if each is not None]
        )
    for number, (wanted, got) in enumerate(zip(*results)):
        if wanted.dtype.kind == "f":
            wanted[np.isnan(wanted)], got[np.isnan(got)] = np.nan, np.nan
        if wanted.tobytes() != got.tobytes():
            place = np.flatnonzero(wanted.reshape(-1) != got.reshape(-1))[:3]
            return (
                f"{case.name}: result {number} differs, first at {place}: "
                f"{got.reshape(-1)[place]}, not {wanted.reshape(-1)[place]}"
            )
    return None


def misaligned(array, put):
    """Put an array where it starts one entry past a multiple of 16 bytes."""
    return put(np.concatenate([np.zeros(1, array.dtype), array.reshape(-1)]))[1:].reshape(array.shape)
