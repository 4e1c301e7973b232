"""What a name, or a table with `kind`, stands for: one of some classes, with its arguments."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def of_kind(what: str, value: str | Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """Return the `known` dataclass that `value` names, made with the arguments of the table.

    what: it is called so in messages. ValueError for a name or an argument that does not exist.
    """
    arguments = {"kind": value} if isinstance(value, str) else dict(value)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"kind of {what} must be one of {', '.join(known)}, not {kind!r:.80}")
    names = [field.name for field in fields(known[kind])]
    if unknown := [name for name in arguments if name not in names]:
        takes = f"takes {', '.join(names)}" if names else "takes no arguments"
        raise ValueError(f"{what} {kind!r} {takes}; there is no {unknown[0]!r}")
    return known[kind](**arguments)
