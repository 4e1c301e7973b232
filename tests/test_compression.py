"""Compressors: what is given is sent or kept, and the wire has the length that was foretold."""

import inspect

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.compression import COMPRESSORS, Dense, Int4, Int8, LowRank, OneBit, TopK
from isthmus.compression.chunks import WIRE_NBYTES, chunk_entries, link_chunk_nbytes, site_chunk_entries
from isthmus.compression.compressor import Compressor

ALL = [
    Dense(),
    Dense("float16"),
    Dense("bfloat16"),
    Int8(),
    Int8(block=7),
    Int8(block=64, rounding="stochastic"),
    Int4(),
    Int4(block=6, rounding="stochastic"),
    OneBit(),
    OneBit(block=8),
    TopK(0.01),
    TopK(1.0),
    TopK(0.1, "threshold"),
    TopK(0.1, "random"),
    TopK(1.0, "random"),
    TopK(0.02, bits=2),
    TopK(1.0, bits=4),
    TopK(0.1, bits=8),
    LowRank(),
    LowRank(rank=5),
]
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


@every_compressor
def test_every_compressor_takes_the_arguments_of_the_protocol(compressor):
    assert (
        list(inspect.signature(compressor.encode).parameters)
        == list(inspect.signature(Compressor.encode).parameters)[1:]
    )
    assert compressor.state_entries(0) in (0, 1)


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
    """given + residual == decoded + residual afterwards, to the rounding of one float32 sum.

    Three times, so that what carries a state has one.
    """
    draw = np.random.default_rng(seed)
    vector = SHAPES[shape](draw, size).astype("f4")
    if compressor == Dense("float16"):
        vector = vector.clip(-6e4, 6e4)
    if isinstance(compressor, LowRank):  # norms of rows and columns must be float32
        vector = vector.clip(-1e35, 1e35)
    residual = (0.1 * SHAPES[shape](draw, size)).astype("f4").clip(-2e37, 2e37)
    if compressor == Dense("float16"):
        residual = residual.clip(-1e3, 1e3)
    state = np.zeros(compressor.state_entries(size), "f4")
    for call in range(3):
        given_whole = vector.astype("f8") + residual
        _, decoded = encoded(compressor, vector, residual, key=seed + call, state=state)
        kept = residual.astype("f8")
        rounding = 2**-22 * (np.abs(given_whole) + np.abs(decoded)) + 2**-148
        assert (np.abs(decoded + kept - given_whole) <= rounding).all()
        vector *= np.float32(0.01)


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
    parts = [
        encoded(compressor, vector[first : first + step], key=3, first=first)[1]
        for first in range(0, size, step)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(
    ("compressor", "bits"),
    [
        (Dense(), 32),
        (Dense("float16"), 16),
        (Dense("bfloat16"), 16),
        (Int8(), 8.125),
        (Int8(block=64), 8.5),
        (Int4(), 4 + 18 / 64),
        (OneBit(), 1 + 32 / 1024),
        (TopK(0.01), 0.48 + 32 / 65536),
        (TopK(0.01, "threshold"), 0.48 + 32 / 65536),
        (TopK(0.01, "random"), 0.32),
        (TopK(0.02, bits=2), 8 * (4 + 26 + 52 + 21) / 4096),
        (TopK(0.02, bits=4), 8 * (4 + 26 + 52 + 41) / 4096),
        (TopK(0.02, bits=8), 8 * (4 + 26 + 52 + 82) / 4096),
        (TopK(1.0, bits=4), 8 * (4 + 512 + 0 + 2048) / 4096),
        (LowRank(), 32 * 2 * (809 + 810) / 655360 + 32 * 70 / 655360),
    ],
)
def test_the_wire_has_the_bits_an_entry_that_the_docstring_says(compressor, bits):
    size = 65536 * 10
    assert compressor.wire_nbytes(size) * 8 / size == pytest.approx(bits, rel=1e-3)
    assert compressor.wire_nbytes(0) == 0


@pytest.mark.parametrize(
    ("compressor", "delta"),
    [
        (Int8(), 1 - 256 / 254**2),
        (Int4(), 1 - 64 / 14**2),
        (TopK(0.1), 0.1),
        (TopK(0.1, bits=2), 1 / (1 + 4 * 1000 / 4**2)),
        (TopK(0.1, bits=4), 1 / (1 + 4 * 1000 / 4**4)),
        (TopK(0.1, bits=8), 0.075),
        (LowRank(), 0),
        (Dense("float16"), 1 - 2**-22),
        (Dense("bfloat16"), 1 - 2**-16),
    ],
)
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


def coded_delta(k, n, bits):
    return min(3 * k / (4 * n), 1 / (1 + 4 * n / 4**bits))


@pytest.mark.parametrize("bits", [2, 4, 8])
@given(
    ratio=st.sampled_from([1e-9, 0.02, 0.3, 1.0]),
    size=st.integers(1, 4096),
    tail=st.sampled_from([0.5, 1, 2, 30]),
    rest=st.floats(0, 1.5),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_codes_leave_what_the_docstring_says_at_most(bits, ratio, size, tail, rest, seed):
    """Also where all but the largest lie just over half a part of it, where least is gained."""
    draw = np.random.default_rng(seed)
    vector = draw.standard_t(tail, size) if rest > 1 else draw.uniform(0.99, 1, size) * rest * 2.0**-bits
    vector = np.asarray(vector, "f4")
    vector[draw.integers(size)] = 1
    compressor = TopK(ratio, bits=bits)
    k = compressor.entries(size)
    error = ((vector.astype("f8") - encoded(compressor, vector)[1]) ** 2).sum()
    most = 1 - coded_delta(k, size, bits)
    assert error <= most * (vector.astype("f8") ** 2).sum() * (1 + 1e-6)


def test_codes_are_of_the_largest_of_each_chunk_and_of_ties_the_first():
    vector = np.random.default_rng(0).normal(size=9000).astype("f4")
    _, decoded = encoded(TopK(0.02, bits=8), vector)
    for start, k in ((0, 82), (4096, 82), (8192, 16)):
        x, sent = np.abs(vector[start : start + 4096]), decoded[start : start + 4096] != 0
        assert sent.sum() == k
        assert x[sent].min() >= x[~sent].max()
        np.testing.assert_allclose(decoded[start:][:4096][sent], vector[start:][:4096][sent], atol=0.02)
    for number in (1.0, -3.7):
        _, decoded = encoded(TopK(0.02, bits=2), np.full(4096, number, "f4"))
        np.testing.assert_array_equal(decoded, np.where(np.arange(4096) < 82, np.float32(number), 0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_send_what_is_sparse_exactly_and_zeros_not_at_all(bits):
    vector = np.zeros(4096, "f4")
    vector[[3, 700, 4095]] = [-5, 5, 2.5]
    np.testing.assert_array_equal(encoded(TopK(0.02, bits=bits), vector)[1], vector)


def test_two_percent_at_two_bits_take_a_25th_of_int8_and_no_more_than_0_04_bytes_an_entry():
    compressor = TopK(0.02, bits=2)
    for size in (4096, 101_770, 10**7):
        assert compressor.wire_nbytes(size) <= 0.04 * size
        assert 25 * compressor.wire_nbytes(size) <= Int8().wire_nbytes(size)
    with_float32 = TopK(0.02).wire_nbytes(10**7)
    assert 4.5 * compressor.wire_nbytes(10**7) < with_float32


@given(ratio=st.floats(1e-6, 1), size=st.integers(0, 20_000), bits=st.sampled_from([2, 4, 8]))
@settings(deadline=None)
def test_any_share_of_any_size_fills_no_more_than_its_wire(ratio, size, bits):
    """Where all of k are sent, and they lie as far apart as they can, the record still holds them."""
    compressor, vector = TopK(ratio, bits=bits), np.zeros(size, "f4")
    for start in range(0, size, 4096):
        length = min(4096, size - start)
        k = compressor.entries(length)
        vector[start + length - k : start + length] = 1
    np.testing.assert_array_equal(encoded(compressor, vector)[1], vector)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_codes_leave_out_comes_later(bits):
    """Sent in all steps, and kept at last, is what was given in all steps: nothing is lost."""
    draw = np.random.default_rng(0)
    residual, sent, whole = np.zeros(5000, "f4"), np.zeros(5000), np.zeros(5000)
    drift = draw.normal(size=5000)
    for _ in range(200):
        vector = (drift + draw.normal(size=5000)).astype("f4")
        whole += vector
        sent += encoded(TopK(0.02, bits=bits), vector, residual)[1]
    np.testing.assert_allclose(sent + residual, whole, atol=2e-3)
    assert np.abs(residual).max() < 0.5 * np.abs(whole).max()


def count_of(wire, compressor, size):
    return int(wire[: 4 * -(-size // 65536)].view("u4").sum())


@given(
    seed=st.integers(0, 99),
    size=st.sampled_from([1000, 3001, 70_000]),
    ratio=st.sampled_from([0.01, 0.1, 1.0]),
)
@settings(deadline=None, max_examples=25)
def test_a_threshold_lets_nearly_k_through_whatever_comes(seed, size, ratio):
    """0.9 k <= sent <= k, and nothing is kept that is larger than what was sent."""
    draw = np.random.default_rng(seed)
    compressor, state = TopK(ratio, "threshold"), np.zeros(1, "f4")
    k = compressor.entries(size)
    for step in range(12):
        shape = draw.choice(sorted(SHAPES)) if step % 3 == 0 else "normal"
        vector = SHAPES[shape](draw, size).astype("f4") * np.float32(draw.choice([1, 0.97, 1e-3]))
        if step == 5:
            vector = np.round(vector)  # ties
        before = state.copy()
        wire, decoded = encoded(compressor, vector, state=state)
        count = count_of(wire, compressor, size)
        assert 0.9 * k <= count <= k
        values = wire[-6 * k :].view("u2")[: 2 * k].copy().view("f4")
        if count < k:
            assert before[0] > 0
            assert not wire[-2 * k :].view("u2")[count:].any()
            assert not values[count:].any()
        np.testing.assert_array_equal(
            np.sort(decoded[decoded != 0]), np.sort(values[:count][values[:count] != 0])
        )
        kept = np.abs(vector - decoded)
        assert kept.max() <= np.abs(values[:count]).min()


def test_a_threshold_follows_so_that_the_exact_choice_is_seldom():
    """Of numbers that grow by 0.3 % a call, 2 % more are over the same threshold."""
    draw = np.random.default_rng(0)
    compressor, state, short = TopK(0.01, "threshold"), np.zeros(1, "f4"), 0
    for step in range(30):
        vector = draw.normal(scale=1.003**step, size=400_000).astype("f4")
        wire, _ = encoded(compressor, vector, state=state)
        short += count_of(wire, compressor, 400_000) < compressor.entries(400_000)
    assert short >= 25


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_what_no_threshold_parts_is_chosen_as_exact_does(value):
    state = np.zeros(1, "f4")
    for _ in range(3):
        wire, _ = encoded(TopK(0.1, "threshold"), np.full(1000, value, "f4"), state=state)
        exact, _ = encoded(TopK(0.1), np.full(1000, value, "f4"))
        assert wire.tobytes() == exact.tobytes()


@pytest.mark.parametrize("state", [np.nan, np.inf, -1.0, 1e-45, 0.0])
def test_no_threshold_is_too_strange(state):
    vector, state = np.random.default_rng(0).normal(size=1000).astype("f4"), np.array([state], "f4")
    wire, _ = encoded(TopK(0.1, "threshold"), vector, state=state)
    assert wire.tobytes() == encoded(TopK(0.1), vector)[0].tobytes()
    assert 1 < state[0] < 2
    encoded(TopK(0.1, "threshold"), np.where(vector > 3, vector, np.nan).astype("f4"), state=state)
    assert state[0] == 0


def test_random_choice_takes_one_of_each_stratum_and_every_place_alike():
    hits, size = np.zeros(103), 103
    for key in range(4000):
        decoded = encoded(TopK(0.1, "random"), np.ones(size, "f4"), key=key)[1]
        hits += decoded
        assert (np.add.reduceat(decoded, np.arange(10) * size // 10) == 1).all()
    widths = np.diff(np.arange(11) * size // 10)
    expected = np.repeat(4000 / widths, widths)
    assert (np.abs(hits - expected) < 5 * expected**0.5).all()


def low_rank_matrix(draw, rows, columns, values):
    left, right = (np.linalg.qr(draw.normal(size=(n, len(values))))[0] for n in (rows, columns))
    return (left * values @ right.T).astype("f4")


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_matrix_of_low_rank_comes_out_whole(rank):
    matrix = low_rank_matrix(np.random.default_rng(rank), 40, 70, np.linspace(1, 2, rank)).ravel()
    compressor = LowRank(rank, [(40, 70)])
    state = np.zeros(compressor.state_entries(2800), "f4")
    for _ in range(3):
        decoded = encoded(compressor, matrix, state=state)[1]
    np.testing.assert_allclose(decoded, matrix, atol=2e-6)


def test_calls_on_one_matrix_tend_to_its_best_approximation():
    values = 0.7 ** np.arange(20)
    matrix = low_rank_matrix(np.random.default_rng(0), 40, 70, values).ravel()
    compressor, errors = LowRank(2, [(40, 70)]), []
    state = np.zeros(compressor.state_entries(2800), "f4")
    for _ in range(12):
        errors.append(((matrix - encoded(compressor, matrix, state=state)[1]) ** 2).sum())
    assert (np.diff(errors) <= 1e-6).all()
    assert errors[0] > 1.1 * (values[2:] ** 2).sum()
    assert errors[-1] == pytest.approx((values[2:] ** 2).sum(), rel=1e-3)


def test_a_zero_gradient_does_not_stop_a_low_rank_for_ever():
    draw = np.random.default_rng(0)
    matrix = low_rank_matrix(draw, 40, 70, [1, 2]).ravel()
    compressor, state = LowRank(2, [(40, 70)]), np.zeros(140, "f4")
    for vector in (matrix, np.zeros(2800, "f4"), np.full(2800, np.nan, "f4"), matrix):
        decoded = encoded(compressor, vector, state=state)[1]
    np.testing.assert_allclose(decoded, matrix, atol=2e-6)


def test_shapes_are_taken_apart_as_the_docstring_says():
    """Vectors and small matrices travel as they are; four dimensions are (first, all others)."""
    shapes = [(30, 40), (40,), (3, 3), (20, 3, 3, 2), (), (0, 5)]
    compressor = LowRank(2, shapes)
    size = 1200 + 40 + 9 + 360 + 1
    assert compressor.wire_nbytes(size) == 4 * (2 * (30 + 40) + 40 + 9 + 2 * (20 + 18) + 1)
    vector = np.random.default_rng(0).normal(size=size).astype("f4")
    decoded = encoded(compressor, vector)[1]
    plain = np.r_[1200:1249, size - 1]
    np.testing.assert_array_equal(decoded[plain], vector[plain])
    for first, shape in ((0, (30, 40)), (1249, (20, 18))):
        part = slice(first, first + shape[0] * shape[1])
        assert np.linalg.matrix_rank(decoded[part].reshape(shape), tol=1e-4) == 2
        assert not np.array_equal(decoded[part], vector[part])
    with pytest.raises(ValueError, match="shapes hold 1610 entries, the vector has 1611"):
        compressor.wire_nbytes(size + 1)


@pytest.mark.parametrize("compressor", [c for c in ALL if c != Dense()], ids=repr)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_comes_out_bad(compressor, bad):
    vector = np.ones(1001, "f4")
    vector[700] = bad
    assert not np.isfinite(encoded(compressor, vector)[1]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "ratio must be in"),
        (lambda: TopK(2), "ratio must be in"),
        (lambda: TopK(float("nan")), "ratio must be finite"),
        (lambda: TopK(selector="best"), "selector must be one of"),
        (lambda: TopK(bits=3), "bits must be 2, 4 or 8, or left out for float32, not 3"),
        (lambda: TopK(bits=True), "bits must be 2, 4 or 8"),
        (lambda: TopK(bits=[2]), "bits must be 2, 4 or 8"),
        (lambda: TopK(0, bits=2), "ratio must be in"),
        (lambda: TopK(0.1, "random", bits=2), "with bits it must be 'exact'"),
        (lambda: LowRank(0), "rank must be"),
        (lambda: LowRank(2, [(2, -3)]), "shapes must not be"),
        (
            lambda: TopK(0.1, "threshold").encode(
                np.ones(9, "f4"), np.zeros(10, "u1"), state=np.ones(2, "f4")
            ),
            "state has 2 entries; this compressor carries 1",
        ),
        (lambda: Int8(block=0), "block must be at least 1"),
        (lambda: Int8(rounding="up"), "rounding must be"),
        (lambda: Dense("float8"), "dtype must be"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_compressor
@pytest.mark.parametrize(
    ("vector", "extra", "message"),
    [
        (np.ones(10), 0, "float32"),
        (np.ones((2, 5), "f4"), 0, "vector"),
        (np.ones(20, "f4")[::2], 0, "contiguous"),
        (np.ones(10, "f4"), 1, "wire has"),
        (np.ones(10, "f4"), -1, "wire has"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(compressor, vector, extra, message):
    wire = np.zeros(compressor.wire_nbytes(vector.size) + extra, "u1")
    for verb in (compressor.encode, compressor.add_decoded, compressor.decode):
        arguments = (vector, wire) if verb == compressor.encode else (wire, vector)
        with pytest.raises(ValueError, match=message):
            verb(*arguments)


def test_chunks_are_longer_where_all_links_are_faster_than_tcp():
    def over(*rates):
        table = cluster_of(*[1] * (len(rates) + 1))
        for link, rate in zip(table["link"], rates):
            link["bytes_per_second"] = rate
        return link_chunk_nbytes(isthmus.Cluster(table).links)

    assert link_chunk_nbytes(()) == over(12.5e6) == over(1.25e9) == over(1e10, 1.9e9) == WIRE_NBYTES
    assert over(2e9) == 400_000
    assert over(1e10) == over(1e10, 1e11) == 1 << 20


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
