"""The random words of stochastic rounding and RandomK: known answers, and independence over keys too.

Each figure is a z-score. One is over `MOST` = 5 by chance once in 1.7 million, and any of the 1,650 that
are looked at once in 1,000 choices of keys; the keys are fixed, so that a run repeats itself.
"""

import numpy as np
import pytest

from isthmus.compression import Int4, Int8, TopK
from isthmus.kernels import cpu, reference

MOST = 5
KEYS, ENTRIES = 256, 1024
BASES = (0, 1_000_003, 2**32 - 100, 2**63 + 12_345)
LAGS = (1, 2, 3, 4, 5, 8, 16, 64, 100)

KNOWN = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""
KNOWN_7 = """
00000000 00000000 00000000 00000000  00000000 00000000  5f6fb709 0d893f64 4f121f81 4f730a48
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  5207ddc2 45165e59 4d8ee751 8c52f662
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  4dfccaba 190a87f0 c47362ba b6b5242a
"""


@pytest.mark.parametrize(("rounds", "known"), [(10, KNOWN), (7, KNOWN_7)])
def test_philox_gives_the_answers_that_its_authors_give(rounds, known):
    """kat_vectors of Random123 1.14: counter, key, words."""
    for line in known.strip().splitlines():
        words = np.array([int(word, 16) for word in line.split()], np.uint32)
        given = reference.philox4x32(words[None, :4], words[4:6], rounds)[0]
        np.testing.assert_array_equal(given, words[6:])


@pytest.mark.parametrize("key", [0, 7, 2**32 - 1, 2**64 - 1, 0x299F31D0_A4093822])
@pytest.mark.parametrize("first", [0, 64, 2**32 - 64, 2**33 + 128])
def test_the_compiled_words_are_those_of_the_reference(key, first):
    words = np.zeros(128, np.uint32)
    cpu.fill(words, np.uint64(key), first)
    np.testing.assert_array_equal(words, reference._words(key, first, 128))
    np.testing.assert_array_equal(words[3:50], reference._words(key, first + 3, 47))
    counter = np.array([[first // 4 % 2**32, first // 4 >> 32, 0, 0]], np.uint32)
    block = reference.philox4x32(counter, (key % 2**32, key >> 32))[0]
    np.testing.assert_array_equal(words[:4], block)


def philox(key):
    return reference._words(key, 0, ENTRIES)


def hash_of_entry_xor_key(key):
    """What stochastic rounding was made of once: fine over entries, not over keys."""
    x = np.arange(ENTRIES, dtype=np.uint32)
    for half in (key & 0xFFFFFFFF, key >> 32):
        x ^= np.uint32(half)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return x


def scores(generator, base):
    """Return {what: z} of the words of `KEYS` consecutive keys from `base` on."""
    words = np.array([generator(base + number) for number in range(KEYS)])
    u = (words >> np.uint32(8)) * 2.0**-24 - 0.5  # of variance 1/12
    found = {"mean": mean_score(u, 1 / 12), "variance": mean_score(u**2 - 1 / 12, 1 / 180)}
    for what, axis in (("over keys", 0), ("over entries", 1)):
        of_means = 12 * u.shape[axis] * u.mean(axis=axis) ** 2  # each chi^2 of one degree of freedom
        found[f"spread of the means {what}"] = mean_score(of_means - 1, 2)
    for what, one, other in pairs(words):
        same = one ^ other
        for bit in range(0, 32, 5):
            found[f"bit {bit}, {what}"] = mean_score((same >> np.uint32(bit) & 1) - 0.5, 1 / 4)
    for what, one, other in pairs(u):
        found[what] = mean_score(one * other, 1 / 144)
        found[f"squares, {what}"] = mean_score((one**2 - 1 / 12) * (other**2 - 1 / 12), 1 / 180**2)
    return found


def mean_score(terms, variance):
    """Return how many standard errors the mean of independent terms of mean 0 is away from it."""
    return terms.mean() / np.sqrt(variance / terms.size)


def pairs(table):
    """Yield what a pair has in common, and the two of all such pairs of a table [key, entry]."""
    for lag in LAGS:
        yield f"entry, keys {lag} apart", table[:-lag], table[lag:]
        yield f"key, entries {lag} apart", table[:, :-lag], table[:, lag:]
        yield f"difference, {lag} apart", table[:-lag, :-lag], table[lag:, lag:]
        yield f"sum, {lag} apart", table[:-lag, lag:], table[lag:, :-lag]
        keys = np.flatnonzero(np.arange(KEYS) & lag & -lag)
        yield f"xor, {lag} apart", table[keys], table[keys ^ lag][:, np.arange(ENTRIES) ^ lag]


@pytest.mark.parametrize("base", BASES)
def test_words_are_independent_over_keys_and_entries_and_both(base):
    found = scores(philox, base)
    assert len(found) == 4 + 45 * (7 + 2)
    assert {what: z for what, z in found.items() if abs(z) > MOST} == {}


def test_these_figures_find_a_hash_of_entry_xor_key():
    found = scores(hash_of_entry_xor_key, 0)
    bad = {what for what, z in found.items() if abs(z) > MOST}
    assert {"xor, 1 apart", "entry, keys 4 apart", "difference, 2 apart"} <= bad
    assert len(bad) > 200
    assert abs(found["mean"]) < MOST


@pytest.mark.parametrize("compressor", [Int8(rounding="stochastic"), Int4(rounding="stochastic")])
def test_a_small_number_beside_a_large_one_comes_out_right_over_consecutive_keys(compressor):
    """400 keys, as 400 steps have: the mean of 0.31 of a level, entry by entry and over all."""
    levels = 127 if isinstance(compressor, Int8) else 7
    share, size = 0.31, compressor.block
    vector = np.full(size, share / levels, "f4")
    vector[0] = 1
    wire, decoded = np.zeros(compressor.wire_nbytes(size), "u1"), np.zeros(size, "f4")
    ups = np.zeros((400, size - 1))
    for key in range(400):
        compressor.encode(vector, wire, key=key)
        compressor.decode(wire, decoded)
        ups[key] = decoded[1:] * levels > 0.5
    assert abs(mean_score(ups - share, share * (1 - share))) < MOST
    spread = 400 * (ups.mean(axis=0) - share) ** 2 / (share * (1 - share))
    assert abs(mean_score(spread - 1, 2)) < MOST
    sites = (ups[0::2] - share) * (ups[1::2] - share)  # two sites' keys differ by one
    assert abs(mean_score(sites, (share * (1 - share)) ** 2)) < MOST


def test_places_that_random_k_takes_are_independent_over_steps_and_strata():
    size, compressor = 64 * 256, TopK(1 / 64, "random")
    places = np.zeros((200, 256))
    for key in range(200):
        wire, decoded = np.zeros(compressor.wire_nbytes(size), "u1"), np.zeros(size, "f4")
        compressor.encode(np.ones(size, "f4"), wire, key=key)
        compressor.decode(wire, decoded)
        places[key] = (np.flatnonzero(decoded) % 64 - 31.5) / 64
    variance = (64**2 - 1) / 12 / 64**2
    assert abs(mean_score(places, variance)) < MOST
    for lag in (1, 2, 4):
        assert abs(mean_score(places[lag:] * places[:-lag], variance**2)) < MOST
        assert abs(mean_score(places[:, lag:] * places[:, :-lag], variance**2)) < MOST
    spread = 200 * places.mean(axis=0) ** 2 / variance
    assert abs(mean_score(spread - 1, 2)) < MOST
