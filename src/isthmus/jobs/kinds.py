"""What settings name by its kind: a class of the library's, and the arguments it is made with."""

from dataclasses import fields
from typing import Any

from isthmus.toml_files import FrozenModel, nearest


class KindSettings(FrozenModel):
    """A class by its name in the file, and its arguments."""

    kind: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, value, known, what):
        """Make one from a name or a table with `kind`, trying the arguments out."""
        table = dict(value) if isinstance(value, dict) else {"kind": value}
        kind = table.pop("kind", None)
        if kind not in known:
            close = nearest(kind, known)
            raise ValueError(
                f"kind must be one of {', '.join(known)}, not {kind!r}" + (f"; {close}" if close else "")
            )
        arguments = {
            key: tuple(given) if isinstance(given, list) else given for key, given in table.items()
        }
        try:
            known[kind](**arguments)
        except TypeError:
            names = [each.name for each in fields(known[kind]) if each.init]
            unknown = next((name for name in arguments if name not in names), None)
            close = nearest(unknown, names)
            given = ", ".join(f"{name} = {value!r}" for name, value in arguments.items())
            wrong = (
                f"look at the types of {given}"
                if unknown is None
                else (f"there is no {unknown!r}" + (f", {close}" if close else ""))
            )
            raise ValueError(f"{what} {kind!r} takes {', '.join(names)}; {wrong}") from None
        return cls(kind=kind, arguments=arguments)
