"""Read a TOML file into a checked, frozen model; whatever is wrong with it fits on one line."""

import difflib
import reprlib
import tomllib
import types
from pathlib import Path
from typing import TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from isthmus.cures import explained
from isthmus.quantities import plain

Model = TypeVar("Model", bound="FrozenModel")


TEXT = "utf-8-sig"
"""How files that people write are read: UTF-8, with or without the byte-order mark of some editors."""

RULES = {
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text in quotes",
    "path_type": "must be a path in quotes",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must have an entry at least",
}
"""What pydantic says at length, by its type of error."""

SHOWN = reprlib.Repr()
"""Writes what was found: as it is, or with dots in its middle where it is long or deep."""
SHOWN.maxstring = SHOWN.maxother = SHOWN.maxlong = 200
SHOWN.maxlist = SHOWN.maxdict = 20


class FrozenModel(BaseModel):
    """Settings that are checked when they are made, refuse unknown keys and do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_toml(path, error):
    """Return the table in the TOML file `path`; raise `error` in one line if there is none."""
    try:
        return tomllib.loads(Path(path).read_text(encoding=TEXT))
    except FileNotFoundError:
        raise error(f"{path}: no such file; check the name and the folder you are in") from None
    except OSError as problem:
        raise error(
            f"{path}: cannot be read: "
            f"{explained(problem, elsewhere='name a TOML file that you may read')}"
        ) from None
    except UnicodeDecodeError:
        raise error(f"{path}: is not text in UTF-8; save it as that") from None
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{path}: is not valid TOML: {problem}; mend that line") from None
    except RecursionError:
        raise error(f"{path}: has brackets in brackets beyond any use; mend the file") from None


def check_table(kind: type[Model], table: dict, path, error) -> Model:
    """Return `table` as a `kind`; raise `error` that names the file, the key and the cure."""
    try:
        return kind.model_validate(plain(table))
    except ValidationError as problem:
        faults = _faults(table, problem.errors(include_url=False))
        more = len(faults) - 1
        rest = f" ({more} more fault{'s' if more > 1 else ''} in this file)" if more else ""
        raise error(f"{path}: {_one_line(kind, *faults[0])}{rest}") from None


def _faults(table, problems):
    """Return (location, what pydantic found there) of each fault of `table`, unknown names first.

    What is none of several kinds of value is one fault: that of the kind which it is most like, or of
    all those that it is alike unlike.
    """
    faults = {}
    for problem in problems:
        place, depth = _place_in(table, problem["loc"])
        whole = depth == len(problem["loc"]) or problem["type"] == "missing"
        key = problem["loc"] if whole else problem["loc"][:depth]
        place = problem["loc"] if whole else place
        found = faults.setdefault(key, (place, []))
        if len(place) > len(found[0]):
            faults[key] = place, [problem]
        elif len(place) == len(found[0]):
            found[1].append(problem)
    return sorted(faults.values(), key=lambda fault: fault[1][0]["type"] != "extra_forbidden")


def _place_in(table, location):
    """Return the parts of `location` that lead into `table`, and how many at its start do.

    Others are pydantic's own: which kind of value it tried, or that a key is meant.
    """
    place, value, depth = [], table, None
    for number, part in enumerate(location):
        inside = (
            part in value
            if isinstance(value, dict)
            else (isinstance(part, int) and isinstance(value, list | tuple) and part < len(value))
        )
        if inside:
            value = value[part]
            place.append(part)
        elif depth is None:
            depth = number
    return tuple(place), len(location) if depth is None else depth


def _one_line(kind, location, problems):
    """Say in one line what pydantic found: the key, what is wrong, and the rule or a likely name."""
    where, problem = _dotted(location) or "the whole", problems[0]
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        return f"{where}: no key is called {name!r}; {likely(name, _keys_at(kind, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"{where}: this key is missing; add it"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{where}: {message}" if location else message
    rules = [
        RULES.get(each["type"]) or each["msg"].replace("Input should", "must", 1) for each in problems
    ]
    rule = " or ".join([rules[0], *(each.removeprefix("must be ") for each in rules[1:])])
    return f"{where}: {rule[0].lower()}{rule[1:]}, not {SHOWN.repr(problem['input'])}"


def likely(name, known):
    """Return the cure for an unknown key: the nearest of those that are `known`, or all of them."""
    return nearest(name, known) or f"known keys: {', '.join(sorted(known))}"


def nearest(name, known):
    """Return "did you mean ...?" where one of those that are `known` is like `name`, else ""."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _dotted(location):
    """Write ("site", 1, "ranks") as "site[1].ranks"."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _keys_at(kind, location):
    """Return the keys that the model found by following `location` from `kind` knows."""
    for part in location:
        if not isinstance(part, int) and kind is not None:
            field = _field(kind, part)
            kind = _model_in(field.annotation) if field else None
    if kind is None:
        return []
    return [field.alias or name for name, field in kind.model_fields.items()]


def _field(kind, key):
    for name, field in kind.model_fields.items():
        if key in (name, field.alias):
            return field
    return None


def _model_in(annotation):
    """Return the model class inside an annotation such as `tuple[Site, ...]` or `Network | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, Union, types.UnionType):
        for part in get_args(annotation):
            if (found := _model_in(part)) is not None:
                return found
    return None
