"""Compressors: what is given is sent or kept, and the wire has the length that was foretold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.compression import COMPRESSORS, Dense, Int4, Int8, OneBit, TopK
from isthmus.compression.chunks import WIRE_NBYTES, chunk_entries, site_chunk_entries

ALL = [Dense(), Dense("float16"), Dense("bfloat16"), Int8(), Int8(block=7),
       Int8(block=64, rounding="stochastic"), Int4(),
       Int4(block=6, rounding="stochastic"), OneBit(), OneBit(block=8), TopK(0.01), TopK(1.0)]
SIZES = [0, 1, 2, 255, 256, 257, 1001]
every_compressor = pytest.mark.parametrize("compressor", ALL, ids=repr)
SHAPES = {
    "normal": lambda draw, size: draw.normal(size=size),
    "zeros": lambda draw, size: np.zeros(size),
    "constant": lambda draw, size: np.full(size, 3.7),
    "denormal": lambda draw, size: draw.normal(size=size) * 1e-41,
    "large": lambda draw, size: draw.normal(size=size).clip(-3, 3) * 1e38,
    "sparse": lambda draw, size: np.where(draw.random(size) < 0.01, draw.normal(size=size), 0),
}


def test_every_compressor_by_name_is_tested_here():
    assert set(COMPRESSORS.values()) == {type(compressor) for compressor in ALL}


def encoded(compressor, vector, residual=None, **keys):
    wire = np.full(compressor.wire_nbytes(vector.size), 0xAA, "u1")
    compressor.encode(vector, wire, residual, **keys)
    decoded = np.full(vector.size, np.nan, "f4")
    compressor.decode(wire, decoded)
    return wire, decoded


@every_compressor
@given(size=st.sampled_from(SIZES), shape=st.sampled_from(sorted(SHAPES)), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_what_is_given_is_sent_or_kept(compressor, size, shape, seed):
    """given + residual == decoded + residual afterwards, to the rounding of one float32 sum."""
    draw = np.random.default_rng(seed)
    vector = SHAPES[shape](draw, size).astype("f4")
    if compressor == Dense("float16"):
        vector = vector.clip(-6e4, 6e4)
    residual = (0.1 * SHAPES[shape](draw, size)).astype("f4").clip(-2e37, 2e37)
    if compressor == Dense("float16"):
        residual = residual.clip(-1e3, 1e3)
    given_whole = vector.astype("f8") + residual
    _, decoded = encoded(compressor, vector, residual, key=seed)
    kept = residual.astype("f8")
    rounding = 2**-22 * (np.abs(given_whole) + np.abs(decoded)) + 2**-148
    assert (np.abs(decoded + kept - given_whole) <= rounding).all()


@every_compressor
@given(size=st.sampled_from(SIZES), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_adding_a_decoded_wire_is_decoding_and_adding(compressor, size, seed):
    draw = np.random.default_rng(seed)
    vector, total = draw.normal(size=(2, size)).astype("f4")
    wire, decoded = encoded(compressor, vector)
    expected = total + decoded
    compressor.add_decoded(wire, total)
    np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("compressor", [c for c in ALL if c.grain is not None], ids=repr)
@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_a_vector_cut_at_the_grain_gives_the_same_numbers(compressor, pieces):
    size = 10 * compressor.grain + compressor.grain // 2
    vector = np.random.default_rng(0).normal(size=size).astype("f4")
    _, whole = encoded(compressor, vector, key=3)
    step = -(-10 // pieces) * compressor.grain
    parts = [encoded(compressor, vector[first:first + step], key=3, first=first)[1]
             for first in range(0, size, step)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(("compressor", "bits"), [
    (Dense(), 32), (Dense("float16"), 16), (Dense("bfloat16"), 16), (Int8(), 8.125),
    (Int8(block=64), 8.5), (Int4(), 4 + 18 / 64),
    (OneBit(), 1 + 32 / 1024), (TopK(0.01), 0.48 + 32 / 65536)])
def test_the_wire_has_the_bits_an_entry_that_the_docstring_says(compressor, bits):
    size = 65536 * 10
    assert compressor.wire_nbytes(size) * 8 / size == pytest.approx(bits, rel=1e-3)
    assert compressor.wire_nbytes(0) == 0


@pytest.mark.parametrize(("compressor", "delta"), [
    (Int8(), 1 - 256 / 254**2), (Int4(), 1 - 64 / 14**2), (TopK(0.1), 0.1),
    (Dense("float16"), 1 - 2**-22),
    (Dense("bfloat16"), 1 - 2**-16)])
@given(shape=st.sampled_from(["normal", "constant", "sparse"]), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=30)
def test_the_error_is_within_the_contraction_factor(compressor, delta, shape, seed):
    """||x - C(x)||^2 <= (1 - delta) ||x||^2, the property that error feedback needs."""
    vector = SHAPES[shape](np.random.default_rng(seed), 1000).astype("f4")
    _, decoded = encoded(compressor, vector)
    error = ((vector.astype("f8") - decoded) ** 2).sum()
    assert error <= (1 - delta) * (vector.astype("f8") ** 2).sum() * (1 + 1e-6) + 1e-30


@pytest.mark.parametrize("value", [3.7, -1e-3, 1e38, 1.6e-33, 0.0])
@pytest.mark.parametrize("compressor", [Int8(), Int4(), OneBit()])
def test_constants_are_sent_exactly(compressor, value):
    vector = np.full(2048, value, "f4")
    np.testing.assert_array_equal(encoded(compressor, vector)[1], vector)


@given(seed=st.integers(0, 50), nonzero=st.integers(1, 64))
@settings(max_examples=30)
def test_one_bit_contracts_where_the_root_mean_square_would_not(seed, nonzero):
    """On a sparse block the L1 mean leaves less than there was; the RMS scale leaves more."""
    draw = np.random.default_rng(seed)
    vector = np.zeros(1024, "f4")
    vector[:nonzero] = draw.choice([-1, 1], nonzero) * draw.uniform(0.5, 1, nonzero)
    norm = (vector.astype("f8") ** 2).sum()
    contraction = np.abs(vector).sum(dtype="f8") ** 2 / (1024 * norm)
    error = ((vector.astype("f8") - encoded(OneBit(), vector)[1]) ** 2).sum()
    assert error == pytest.approx((1 - contraction) * norm, rel=1e-5)
    root_mean_square = np.copysign((norm / 1024) ** 0.5, vector)
    assert ((vector - root_mean_square) ** 2).sum() > norm


def test_int8_has_the_error_of_one_quantisation():
    vector = np.random.default_rng(0).normal(size=1_000_000).astype("f4")
    error = encoded(Int8(), vector)[1] - vector
    assert (error**2).sum() / (vector**2).sum() <= 5.2e-5


def test_top_k_sends_the_largest():
    vector = np.random.default_rng(0).normal(size=1000).astype("f4")
    decoded = encoded(TopK(0.1), vector)[1]
    sent = decoded != 0
    assert sent.sum() == 100
    assert np.abs(vector[sent]).min() >= np.abs(vector[~sent]).max()
    np.testing.assert_array_equal(decoded[sent], vector[sent])


@pytest.mark.parametrize("compressor", [c for c in ALL if c != Dense()], ids=repr)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_comes_out_bad(compressor, bad):
    vector = np.ones(1001, "f4")
    vector[700] = bad
    assert not np.isfinite(encoded(compressor, vector)[1]).all()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: TopK(0), "ratio must be in"), (lambda: TopK(2), "ratio must be in"),
    (lambda: TopK(float("nan")), "ratio must be in"),
    (lambda: Int8(block=0), "block must be at least 1"),
    (lambda: Int8(rounding="up"), "rounding must be"), (lambda: Dense("float8"), "dtype must be"),
])
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_compressor
@pytest.mark.parametrize(("vector", "extra", "message"), [
    (np.ones(10), 0, "float32"), (np.ones((2, 5), "f4"), 0, "vector"),
    (np.ones(20, "f4")[::2], 0, "contiguous"), (np.ones(10, "f4"), 1, "wire has"),
    (np.ones(10, "f4"), -1, "wire has")])
def test_arrays_that_do_not_fit_are_refused(compressor, vector, extra, message):
    wire = np.zeros(compressor.wire_nbytes(vector.size) + extra, "u1")
    for verb in (compressor.encode, compressor.add_decoded, compressor.decode):
        arguments = (vector, wire) if verb == compressor.encode else (wire, vector)
        with pytest.raises(ValueError, match=message):
            verb(*arguments)


@every_compressor
@given(size=st.integers(0, 10**7))
@settings(max_examples=30, deadline=None)
def test_chunks_are_whole_grains_under_the_eager_limit(compressor, size):
    entries = chunk_entries(compressor, size)
    assert site_chunk_entries(compressor, size) <= entries
    if compressor.grain is None:
        assert entries >= size
    elif entries < size:
        assert entries % compressor.grain == 0
        assert compressor.wire_nbytes(entries) <= WIRE_NBYTES
