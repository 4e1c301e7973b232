"""Read a TOML file into a checked, frozen model; whatever is wrong with it fits on one line."""

import difflib
import reprlib
import tomllib
import types
from pathlib import Path
from typing import TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from isthmus.cures import explained

Model = TypeVar("Model", bound="FrozenModel")


RULES = {
    "float_parsing": "must be a number", "float_type": "must be a number",
    "int_parsing": "must be a whole number", "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_parsing": "must be true or false", "bool_type": "must be true or false",
    "string_type": "must be text in quotes", "path_type": "must be a path in quotes",
    "dict_type": "must be a table", "model_type": "must be a table",
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
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: no such file; check the name and the folder you are in") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: "
                    f"{explained(problem, elsewhere='name a TOML file that you may read')}") from None
    except UnicodeDecodeError:
        raise error(f"{path}: is not text in UTF-8; save it as that") from None
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{path}: is not valid TOML: {problem}; mend that line") from None
    except RecursionError:
        raise error(f"{path}: has brackets in brackets beyond any use; mend the file") from None


def check_table(kind: type[Model], table: dict, path, error) -> Model:
    """Return `table` as a `kind`; raise `error` that names the file, the key and the cure."""
    try:
        return kind.model_validate(table)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        more = problem.error_count() - 1
        rest = f" (and {more} more)" if more else ""
        raise error(f"{path}: {_one_line(kind, first)}{rest}") from None


def _one_line(kind, problem):
    """Say in one line what pydantic found: the key, what is wrong, and the rule or a likely name."""
    where = _dotted(problem["loc"]) or "the whole"
    if problem["type"] == "extra_forbidden":
        known = _keys_at(kind, problem["loc"][:-1])
        name = str(problem["loc"][-1])
        close = difflib.get_close_matches(name, known, n=1)
        cure = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
        return f"{where}: no key is called {name!r}; {cure}"
    if problem["type"] == "missing":
        return f"{where}: this key is missing; add it"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{where}: {message}" if problem["loc"] else message
    rule = RULES.get(problem["type"]) or problem["msg"].replace("Input should", "must", 1)
    return f"{where}: {rule[0].lower()}{rule[1:]}, not {SHOWN.repr(problem['input'])}"


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
