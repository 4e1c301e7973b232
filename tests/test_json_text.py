"""JSON has one writer: whatever numbers it is given, any reader can take what it writes."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.json_text import dumps, loads

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.integers(0, 255).map(np.uint8),
    st.integers(),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.floats(),
    st.booleans().map(np.bool_),
    st.none(),
)
TABLES = st.recursive(
    NUMBERS,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.tuples(inside, inside)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inside, max_size=3)
        | st.lists(st.floats(width=32), max_size=3).map(np.float32)
    ),
    max_leaves=12,
)


def refused(name):
    raise ValueError(f"{name} is no JSON")


@given(TABLES)
def test_what_is_written_is_json_for_every_reader(value):
    text = dumps(value)
    strict = json.loads(text, parse_constant=refused)
    assert strict == loads(text) == loads(text.encode())
    assert dumps(strict) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.prod((3, 4)), "12"),
        (np.float32(0.5), "0.5"),
        ({"a": (np.uint8(1), None)}, '{"a": [1, null]}'),
        (float("nan"), "null"),
        ([np.inf, -np.inf, np.float16("nan")], "[null, null, null]"),
        ({np.int64(3): np.bool_(True)}, '{"3": true}'),
        (np.arange(6).reshape(2, 3), "[[0, 1, 2], [3, 4, 5]]"),
        (np.array(7), "7"),
        (np.float64(1) / 3, "0.3333333333333333"),
    ],
)
def test_a_number_is_written_as_what_it_is(value, text):
    assert dumps(value) == text


def test_ranks_tell_one_another_what_is_not_finite():
    told = [np.nan, np.inf, {"loss": np.float32("-inf")}, 1.0]
    read = loads(dumps(told, exact=True), exact=True)
    assert np.isnan(read[0])
    assert read[1:] == [np.inf, {"loss": -np.inf}, 1.0]
    assert loads("[NaN, Infinity, -Infinity, 2]") == [None, None, None, 2]


def test_a_name_that_is_no_text_is_written_so_that_every_reader_can_take_it():
    name = os.fsdecode(b"runs/\xff")
    assert dumps({"folder": name, "face": "\U0001f600"}) == (
        r'{"folder": "runs/\\udcff", "face": "\ud83d\ude00"}'
    )
    assert loads(dumps(name)) == "runs/\\udcff"
    assert loads(dumps([name], exact=True), exact=True) == [name]


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), {"a": [1j]}])
def test_what_json_has_no_word_for_is_refused(value):
    with pytest.raises(TypeError, match="has no place in JSON"):
        dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1,]",
        "nan",
        "\x00",
        b"\xff\xfe\xff",
        b'"\xed\xa0\x80"',
        '"\\ud800"',
        '{"\\uDC00": 1}',
        "[" * 200_000,
        "[" * 100 + "]" * 100,
        '{"a":' * 100_000,
        "1" * 5000,
    ],
)
def test_whatever_is_no_json_is_one_kind_of_error(text):
    with pytest.raises(ValueError):
        loads(text)
