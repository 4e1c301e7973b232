"""Numbers that callers give, of Python, NumPy or another library: one rule for what a number is."""

import math
import numbers

LEAST_WEIGHT = 1e-300
"""Of a rank without samples: nothing beside any other's, and a site where all are so has a mean."""


def whole(name, value, least=None):
    """Return the whole number `value` as an int; ValueError, which says `name`, if it is none.

    NumPy's integers are whole numbers, and so are arrays of one without dimensions, and floats without
    a fraction; booleans and text are not. least: the smallest that will do.
    """
    number = _python(value)
    if not _is_number(number) or not math.isfinite(number) or number != int(number):
        raise ValueError(f"{name} must be a whole number, not {_shown(value)}")
    if least is not None and number < least:
        raise ValueError(f"{name} must {_at_least(least)}, not {_shown(number)}")
    return int(number)


def real(name, value, least=None, most=None):
    """Return the number `value` as a float; ValueError, which says `name`, if it is none or not finite.

    least, most: the smallest and the largest that will do.
    """
    number = _python(value)
    if not _is_number(number):
        raise ValueError(f"{name} must be a number, not {_shown(value)}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {_shown(number)}")
    if least is not None and number < least:
        raise ValueError(f"{name} must {_at_least(least)}, not {_shown(number)}")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most}, not {_shown(number)}")
    return float(number)


def slices(name, parts, size):
    """Return `parts`, slices of a vector of `size` entries, with whole numbers for bounds.

    A bound that is left out is the vector's. ValueError, which says `name`, for what is no such slice.
    """
    try:
        parts = list(parts)
    except TypeError:
        raise ValueError(f"{name} must be slices, not {_shown(parts)}") from None
    for part in parts:
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise ValueError(
                f"{name} must be slices of entries that follow each other, as in "
                f"slice(0, {size}), not {_shown(part)}"
            )
    return [
        slice(
            whole(name, 0 if part.start is None else part.start, least=0),
            whole(name, size if part.stop is None else part.stop, least=0),
        )
        for part in parts
    ]


def plain(value):
    """Return `value` with Python's numbers and lists for NumPy's, also inside of dicts and lists."""
    if isinstance(value, dict):
        return {_python(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    return value.tolist() if hasattr(value, "tolist") else value


def _python(value):
    """Return what has one number in it, a scalar or an array without dimensions, as Python's number."""
    alone = tuple(getattr(value, "shape", (None,))) == ()
    return value.item() if alone and hasattr(value, "item") else value


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _at_least(least):
    return "not be negative" if least == 0 else f"be at least {least}"


def _shown(value):
    return f"{value!r:.80}"
