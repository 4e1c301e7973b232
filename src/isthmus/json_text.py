"""The one place that writes and reads JSON: NumPy's numbers are numbers, what is not finite is null."""

import json
import math


def dumps(value, indent=None, *, exact=False):
    """Return `value` as JSON that every reader takes.

    Numbers and arrays of NumPy are written as Python's are; NaN and infinities as null, or as Python
    reads them where `exact` asks for it: between ranks of a job, which have to see the same number.
    Raises TypeError for what JSON has no word for.
    """
    try:
        return json.dumps(value, indent=indent, default=_plain_leaf, allow_nan=exact)
    except (TypeError, ValueError):  # a number that is not finite, or a key of NumPy's: they are rare
        return json.dumps(_plain(value, exact), indent=indent, allow_nan=exact)


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
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # half a character is a ValueError here
    return value


def _deeper_than(most, value):
    level = [value]
    for _ in range(most):
        level = [inner for each in level if isinstance(each, dict | list)
                 for inner in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return False
    return True


def _plain_leaf(value):
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy, without importing it
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r:.80} has no place in JSON")


def _plain(value, exact):
    if isinstance(value, dict):
        return {_plain(key, True): _plain(each, exact) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, exact) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), exact)
    if isinstance(value, float) and not exact and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else _plain_leaf(value)
