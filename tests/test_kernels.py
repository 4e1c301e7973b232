"""Kernels: one list of names, one signature, and the same bytes from NumPy and Numba."""

import inspect
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from isthmus import kernels
from isthmus.errors import NoDeviceError
from isthmus.kernels import cpu, reference
from isthmus.kernels.chunk_records import layout_of

BLOCK = 16
SPECIAL = [
    0.0,
    -0.0,
    1e-45,
    -1e-40,
    1e-36,
    1.6e-36,
    5.9e-8,
    6.2e-5,
    65504.0,
    65520.0,
    1e38,
    -1e38,
    3.4028235e38,
    float("nan"),
    float("inf"),
    float("-inf"),
]
SPECIAL = [float(np.float32(number)) for number in SPECIAL]
numbers = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.floats(-4, 4, width=32))
vectors = st.sampled_from([0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 37, 100]).flatmap(
    lambda size: arrays.arrays(np.float32, size, elements=numbers)
)


@pytest.mark.parametrize("name", kernels.NAMES)
def test_every_kernel_has_one_signature(name):
    assert inspect.signature(getattr(cpu, name).py_func) == inspect.signature(getattr(reference, name))


def test_the_list_of_names_is_that_of_the_reference():
    public = {
        name
        for name, value in vars(reference).items()
        if inspect.isfunction(value) and not name.startswith("_")
    } - {"dither", "philox4x32"}
    assert public == set(kernels.NAMES)


def same(call, outputs):
    """Run `call(module, *copies of outputs)` with both modules and compare every byte.

    NaNs count as equal whatever their payload: arithmetic may choose it.
    """
    results = []
    for module in (reference, cpu):
        copies = [None if output is None else output.copy() for output in outputs]
        with np.errstate(all="ignore"):
            call(module, *copies)
        results.append(copies)
    for one, other in zip(*results):
        if one is not None:
            if one.dtype.kind == "f":
                one[np.isnan(one)], other[np.isnan(other)] = np.nan, np.nan
            assert one.tobytes() == other.tobytes()
    return results[1]


def residual_for(vector, has_residual):
    draw = np.random.default_rng(vector.size)
    return draw.normal(size=vector.size).astype("f4") if has_residual else None


@given(vectors, st.booleans(), st.sampled_from(["dense", "float16", "bfloat16"]))
@settings(deadline=None)
def test_dense_kernels_write_the_bytes_of_the_reference(vector, has_residual, name):
    codes = np.zeros(vector.size, "f4" if name == "dense" else "u2")
    codes, _ = same(
        lambda module, codes, residual: getattr(module, f"encode_{name}")(vector, residual, codes),
        [codes, residual_for(vector, has_residual)],
    )
    if name != "dense":
        for verb in ("decode", "add"):
            same(
                lambda module, total, verb=verb: getattr(module, f"{verb}_{name}")(codes, total),
                [np.ones(vector.size, "f4")],
            )


def test_all_float16_codes_decode_as_ieee_says():
    codes = np.arange(65536, dtype="u2")
    decoded = np.empty(65536, "f4")
    cpu.decode_float16(codes, decoded)
    np.testing.assert_array_equal(decoded, codes.view("f2").astype("f4"))


@given(
    vectors,
    st.booleans(),
    st.one_of(st.none(), st.integers(0, 2**64 - 1).map(np.uint64)),
    st.integers(0, 2**33),
)
@settings(deadline=None)
@example(np.full(40, 3.7, "f4"), False, None, 0)
@example(np.full(40, 3.4028235e38, "f4"), True, np.uint64(2**64 - 1), 2**32 - 3)
def test_int8_kernels_write_the_bytes_of_the_reference(vector, has_residual, key, first):
    maxima, codes = np.zeros(-(-vector.size // BLOCK), "f4"), np.zeros(vector.size, "i1")
    maxima, codes, _ = same(
        lambda module, maxima, codes, residual: module.encode_int8(
            vector, residual, BLOCK, key, first, maxima, codes
        ),
        [maxima, codes, residual_for(vector, has_residual)],
    )
    for verb in ("decode_int8", "add_int8"):
        same(
            lambda module, total, verb=verb: getattr(module, verb)(maxima, codes, BLOCK, total),
            [np.ones(vector.size, "f4")],
        )


groups = st.builds(
    lambda size, seed, last: np.append(np.random.default_rng(seed).normal(size=size), last).astype("f4"),
    st.integers(256, 600),
    st.integers(0, 2**32),
    st.lists(numbers, max_size=5),
)


@given(
    st.one_of(vectors, groups),
    st.booleans(),
    st.sampled_from([4, 16]),
    st.one_of(st.none(), st.integers(0, 2**64 - 1).map(np.uint64)),
    st.integers(0, 2**33),
)
@settings(deadline=None)
@example(np.full(300, 3.7, "f4"), False, 4, None, 0)
@example(np.geomspace(1e-44, 3e38, 333).astype("f4"), True, 4, None, 0)
@example(np.geomspace(1e-44, 3e38, 333).astype("f4"), True, 16, None, 0)
@example(np.full(39, 3.4028235e38, "f4"), True, 4, np.uint64(2**64 - 1), 2**32 - 3)
def test_int4_kernels_write_the_bytes_of_the_reference(vector, has_residual, block, key, first):
    """Also of whole groups of 16 blocks, which are encoded 16 pairs at once where they can be."""
    size = vector.size
    blocks = -(-size // block)
    maxima, shares, codes, _ = same(
        lambda module, maxima, shares, codes, residual: module.encode_int4(
            vector, residual, block, key, first, maxima, shares, codes
        ),
        [
            np.zeros(-(-blocks // 16), "f4"),
            np.zeros(blocks, "u2"),
            np.zeros(-(-size // 2), "u1"),
            residual_for(vector, has_residual),
        ],
    )
    for verb in ("decode_int4", "add_int4"):
        same(
            lambda module, total, verb=verb: getattr(module, verb)(maxima, shares, codes, block, total),
            [np.ones(size, "f4")],
        )


@given(vectors, st.booleans())
def test_one_bit_kernels_write_the_bytes_of_the_reference(vector, has_residual):
    scales, codes, _ = same(
        lambda module, scales, codes, residual: module.encode_one_bit(
            vector, residual, BLOCK, scales, codes
        ),
        [
            np.zeros(-(-vector.size // BLOCK), "f4"),
            np.full(-(-vector.size // 8), 0xAA, "u1"),
            residual_for(vector, has_residual),
        ],
    )
    for verb in ("decode_one_bit", "add_one_bit"):
        same(
            lambda module, total, verb=verb: getattr(module, verb)(scales, codes, BLOCK, total),
            [np.ones(vector.size, "f4")],
        )


@given(vectors, st.booleans(), st.floats(0, 1))
@settings(deadline=None)
def test_top_k_kernels_write_the_bytes_of_the_reference(vector, has_residual, ratio):
    wanted = round(ratio * vector.size)
    counts, entries, positions, _ = same(
        lambda module, counts, entries, positions, residual: module.encode_top_k(
            vector, residual, counts, entries, positions
        ),
        [
            np.ones(-(-vector.size // 65536), "u4"),
            np.zeros(wanted, "f4"),
            np.zeros(wanted, "u2"),
            residual_for(vector, has_residual),
        ],
    )
    same(
        lambda module, total: module.add_top_k(counts, entries, positions, total),
        [np.ones(vector.size, "f4")],
    )


long_vectors = st.builds(
    lambda size, seed, last, digits: np.append(
        np.random.default_rng(seed).standard_t(2, size).round(digits), last
    ).astype("f4"),
    st.sampled_from([100, 4090, 4096, 9000]),
    st.integers(0, 2**32),
    st.lists(numbers, max_size=3),
    st.sampled_from([0, 1, 9]),
)


@given(
    st.one_of(vectors, long_vectors),
    st.booleans(),
    st.one_of(st.sampled_from([1, 82, 4096]), st.integers(1, 4096)),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_top_k_codes_have_the_bytes_of_the_reference(vector, has_residual, kept, bits, seed):
    """Also with ties, and from records that no encoder writes, whose places need not ascend."""
    lengths = [min(4096, vector.size - start) for start in range(0, vector.size, 4096)]
    nbytes = sum(layout_of(length, kept, bits).nbytes for length in lengths)
    scales, records, _ = same(
        lambda module, scales, records, residual: module.encode_top_k_codes(
            vector, residual, kept, bits, scales, records
        ),
        [np.ones(len(lengths), "f4"), np.full(nbytes, 0xAA, "u1"), residual_for(vector, has_residual)],
    )
    junk = np.random.default_rng(seed).integers(0, 256, nbytes).astype("u1")
    for said in (records, junk):
        same(
            lambda module, total, said=said: module.add_top_k_codes(kept, bits, scales, said, total),
            [np.ones(vector.size, "f4")],
        )


@given(
    vectors,
    st.booleans(),
    st.floats(0, 1),
    st.one_of(st.sampled_from(SPECIAL), st.none()),
    st.floats(0.85, 1.05),
)
@settings(deadline=None)
def test_threshold_kernels_write_the_bytes_of_the_reference(
    vector, has_residual, ratio, threshold, passing
):
    """Also with a threshold that lets about the right number pass, which random ones seldom do."""
    wanted, residual = round(ratio * vector.size), residual_for(vector, has_residual)
    with np.errstate(all="ignore"):
        order = np.sort(np.abs(vector if residual is None else vector + residual))
    if threshold is None and vector.size:
        threshold = order[max(0, vector.size - max(1, round(passing * wanted)))]
    outputs = [np.ones(-(-vector.size // 65536), "u4"), np.ones(wanted, "f4"), np.ones(wanted, "u2")]
    threshold = np.float32(threshold or 0)
    same(
        lambda module, used, counts, entries, positions, residual: used.fill(
            module.encode_above(vector, residual, threshold, counts, entries, positions)
        ),
        [np.zeros(1, "f4"), *outputs, residual],
    )


@given(vectors, st.booleans(), st.floats(0, 1), st.integers(0, 2**64 - 1).map(np.uint64))
@settings(deadline=None)
def test_random_k_kernels_write_the_bytes_of_the_reference(vector, has_residual, ratio, key):
    entries = np.zeros(min(vector.size, max(1, round(ratio * vector.size))), "f4")
    entries, _ = same(
        lambda module, entries, residual: module.encode_random_k(vector, residual, key, entries),
        [entries, residual_for(vector, has_residual)],
    )
    same(lambda module, total: module.add_random_k(key, entries, total), [np.ones(vector.size, "f4")])


@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 4), st.data())
@settings(deadline=None)
def test_low_rank_kernels_write_the_bytes_of_the_reference(rows, columns, rank, data):
    """Sums of products that cancel show whether any step is rounded otherwise, or not at all."""
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    p, q = draw.normal(size=(rows, rank)).astype("f4"), draw.normal(size=(rank, columns)).astype("f4")
    p[draw.integers(rows), 0] = data.draw(numbers)
    q[0, draw.integers(columns)] = data.draw(numbers)
    for verb in ("decode_low_rank", "add_low_rank"):
        same(
            lambda module, matrix, verb=verb: getattr(module, verb)(p, q, matrix),
            [np.full((rows, columns), 0.1, "f4")],
        )


@given(
    vectors,
    st.integers(0, 2**32),
    st.sampled_from([1.0, 0.7]),
    st.sampled_from([0.0, 0.01]),
    st.booleans(),
)
@settings(deadline=None)
@example(np.full(9, -0.0, "f4"), 0, 1.0, 0.0, False)
def test_steps_of_optimisers_write_the_bytes_of_the_reference(vector, seed, scale, decay, flag):
    """With and without momentum, Nesterov's and the other one; Adam's with roots of tiny numbers."""
    draw = np.random.default_rng(seed)
    spread = 10.0 ** draw.integers(-44, 30, (3, vector.size))
    kept, square, parameters = (draw.normal(size=spread.shape) * spread).astype("f4")
    for momentum in (None, kept):
        same(
            lambda module, momentum, parameters: module.step_sgd(
                vector, scale, decay, 0.9, flag, 0.1, momentum, parameters
            ),
            [momentum, parameters],
        )
    same(
        lambda module, *arrays: module.step_adam(
            vector, scale, decay, 1 - decay, 0.9, 0.999, 1e-3, 31.6, 1e-8, *arrays
        ),
        [kept, abs(square), parameters],
    )


@given(
    st.sampled_from([0, 1, 127, 128, 129, 8191, 8192, 8193, 20_000]),
    st.integers(0, 2**32),
    st.lists(numbers, max_size=3),
)
@settings(deadline=None, max_examples=50)
def test_sums_of_squares_write_the_bytes_of_the_reference(size, seed, special):
    """Magnitudes that differ by 40 decimal places: in another order the sums would be others."""
    draw = np.random.default_rng(seed)
    vector = (draw.normal(size=size) * 10.0 ** draw.integers(-20, 20, size)).astype("f4")
    vector[: len(special)] = special[:size]
    (sums,) = same(
        lambda module, sums: module.square_sums(vector, sums), [np.ones(-(-size // reference.SQUARES))]
    )
    if np.isfinite(vector).all():
        exact = math.fsum(float(each) ** 2 for each in vector)
        assert math.fsum(sums) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 2.3, 2.36, 9.0])
def test_thresholds_go_past_one_block_of_the_reference(has_residual, threshold):
    vector = np.random.default_rng(0).normal(size=200_000).astype("f4")
    residual = np.zeros(200_000, "f4") if has_residual else None
    same(
        lambda module, *outputs: module.encode_above(
            vector, outputs[3], np.float32(threshold), *outputs[:3]
        ),
        [np.zeros(4, "u4"), np.zeros(4000, "f4"), np.zeros(4000, "u2"), residual],
    )


def test_a_threshold_that_is_no_number_chooses_nothing():
    vector = np.where(np.arange(100) % 5, 1.0, np.nan).astype("f4")
    same(
        lambda module, used, *outputs: used.fill(
            module.encode_above(vector, None, np.float32("nan"), *outputs)
        ),
        [np.zeros(1, "f4"), np.zeros(1, "u4"), np.zeros(21, "f4"), np.zeros(21, "u2")],
    )


def test_top_k_places_go_past_one_block():
    vector = np.random.default_rng(0).normal(size=200_000).astype("f4")
    same(
        lambda module, *outputs: module.encode_top_k(vector, None, *outputs),
        [np.zeros(4, "u4"), np.zeros(5000, "f4"), np.zeros(5000, "u2")],
    )


@given(vectors)
@settings(deadline=None)
def test_the_plain_kernels_do_what_the_reference_does(vector):
    same(lambda module, total: module.add(vector, total), [np.ones(vector.size, "f4")])
    same(lambda module, scaled: module.scale(vector, 0.3, scaled), [np.ones(vector.size, "f4")])
    assert cpu.all_finite(vector) == reference.all_finite(vector)


@given(st.data())
@settings(deadline=None)
def test_stochastic_rounding_does_not_depend_on_how_a_vector_is_cut(data):
    blocks = data.draw(st.integers(1, 8))
    cut = BLOCK * data.draw(st.integers(0, blocks))
    vector = np.random.default_rng(blocks).normal(size=BLOCK * blocks).astype("f4")
    whole, parts = np.zeros(vector.size, "i1"), np.zeros(vector.size, "i1")
    maxima = np.zeros(blocks, "f4")
    cpu.encode_int8(vector, None, BLOCK, np.uint64(5), 0, maxima, whole)
    for piece in (slice(0, cut), slice(cut, vector.size)):
        cpu.encode_int8(
            vector[piece],
            None,
            BLOCK,
            np.uint64(5),
            piece.start,
            maxima[piece.start // BLOCK :],
            parts[piece],
        )
    np.testing.assert_array_equal(whole, parts)


def test_stochastic_rounding_is_unbiased():
    """The mean over 4,000 keys is within five standard errors of the value."""
    vector = np.array([1.0, 0.3337, -0.1234, 0.0039], "f4")
    sums = np.zeros(4)
    maxima, codes, decoded = np.zeros(1, "f4"), np.zeros(4, "i1"), np.zeros(4, "f4")
    for key in range(4000):
        cpu.encode_int8(vector, None, 4, np.uint64(key * 2654435761), 0, maxima, codes)
        cpu.decode_int8(maxima, codes, 4, decoded)
        sums += decoded
    np.testing.assert_allclose(sums / 4000, vector, atol=5 * 0.5 / 127 / 4000**0.5)


@given(st.binary(min_size=0, max_size=300), st.sampled_from([0, 1, 5, 64, 70]))
@settings(deadline=None)
def test_any_bytes_decode_without_touching_what_is_outside(junk, size):
    """A wire from elsewhere may say anything; canaries on both sides must live."""
    from isthmus.compression import Int8, LowRank, OneBit, TopK

    for compressor in (
        Int8(block=BLOCK),
        OneBit(block=BLOCK),
        TopK(0.2),
        TopK(0.2, "threshold"),
        TopK(0.2, "random"),
        TopK(0.2, bits=2),
        TopK(1.0, bits=8),
        LowRank(1),
    ):
        nbytes = compressor.wire_nbytes(size)
        wire = np.resize(np.frombuffer(junk or b"\xff", "u1"), nbytes)
        guarded = np.full(size + 2, 7, "f4")
        with np.errstate(all="ignore"):
            compressor.decode(wire, guarded[1:-1])
            compressor.add_decoded(wire, guarded[1:-1])
        assert guarded[0] == guarded[-1] == 7


@pytest.mark.slow
def test_the_kernels_stay_inside_their_arrays(tmp_path):
    """The whole file once more with numba's bounds checks on."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-k", "reference or any_bytes or one_block"],
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_an_array_of_a_device_without_kernels_is_refused():
    stranger = type("ndarray", (), {"__module__": "torch"})()
    with pytest.raises(NoDeviceError, match="torch"):
        kernels.for_array(stranger)


def test_the_folder_refuses_to_be_imported_under_another_name():
    root = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"], cwd=root, text=True, capture_output=True
    )
    assert "isthmus.kernels" in done.stderr.splitlines()[-1]
