"""The one place that writes and reads JSON: NumPy's numbers are numbers, what is not finite is null."""

import json
import math

HALF = "\\ud"
"""With what JSON writes a half of a character, or the first of two halves."""


def dumps(value, indent=None, *, exact=False):
    """Return `value` as JSON that every reader takes.

    Numbers and arrays of NumPy are written as Python's are; NaN and infinities as null; bytes of a
    file's name that are no UTF-8 as Python writes them, "\\udcff". Where `exact` asks for it, between
    ranks of a job, which have to see the same, all three are written so that `loads` gives them back.
    Raises TypeError for what JSON has no word for.
    """
    try:
        text = json.dumps(value, indent=indent, default=_plain_leaf, allow_nan=exact)
    except (TypeError, ValueError):  # a number that is not finite, or a key of NumPy's: they are rare
        text = None
    if text is None or (HALF in text and not exact):
        text = json.dumps(_plain(value, exact), indent=indent, allow_nan=exact)
    return text


def quoted(text):
    """Return `text` in double quotes, as JSON has it, with every letter as it is."""
    return json.dumps(text, ensure_ascii=False)


def loads(text, *, exact=False):
    """Return what the JSON in `text` (str, or UTF-8 bytes) says; NaN and infinities are None.

    exact: they stay what they are. Raises ValueError for whatever is not JSON: also for brackets too
    deep to follow, and for text that no file can hold.
    """
    if not isinstance(text, str):
        text = str(text, "utf-8-sig")
    try:
        value = json.loads(text, parse_constant=None if exact else lambda _: None)
    except RecursionError:
        raise ValueError("brackets inside brackets, too many to follow") from None
    if not exact and _deeper_than(64, value):
        raise ValueError("brackets inside brackets, too many to follow")
    if not exact and HALF in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # half a character is a ValueError here
    return value


def _deeper_than(most, value):
    level = [value]
    for _ in range(most):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _plain_leaf(value):
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy, without importing it
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r:.80} has no place in JSON")


def _plain(value, exact):
    if isinstance(value, dict):
        return {_plain(key, exact): _plain(each, exact) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, exact) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), exact)
    if isinstance(value, float) and not exact and not math.isfinite(value):
        return None
    if isinstance(value, str) and not exact:
        return value.encode(errors="backslashreplace").decode()
    return value if isinstance(value, str | int | float | None) else _plain_leaf(value)
