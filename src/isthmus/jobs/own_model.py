"""`[model] kind = "my_models:make_net"`: a model of the user's own, in a run's settings."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, ValidationError

from isthmus.models.own import make_own, references
from isthmus.models.own_code import OwnCode
from isthmus.toml_files import FrozenModel

Sizes = tuple[Annotated[int, Field(ge=1)], ...]


class OwnModelSettings(FrozenModel):
    """Which function makes the model, with what it is called, and what is made of its scores.

    folder: where its module is looked for first, that of the settings; None: not known yet. sources:
    file -> SHA-256 of the modules, as `OwnCode.sources` finds them.
    """

    kind: str
    arguments: dict[str, Any]
    loss: str = "cross_entropy"
    metrics: tuple[str, ...] = ()
    inputs: Sizes | None = None
    folder: Path | None = None
    sources: dict[str, str] = Field(default_factory=dict)
    _made: Any = PrivateAttr(None)

    @classmethod
    def of(cls, table: dict[str, Any]) -> Self:
        """Make one from a settings file's table: what is no key of its own is an argument."""
        own = {name: table[name] for name in ("kind", "loss", "metrics", "inputs") if name in table}
        if isinstance(own.get("inputs"), int):
            own["inputs"] = [own["inputs"]]
        arguments = {
            name: tuple(given) if isinstance(given, list) else given
            for name, given in table.items()
            if name not in own
        }
        try:
            return cls(**own, arguments=arguments)
        except ValidationError as problem:
            first = problem.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}, not {first['input']!r}") from None

    def located(self, folder: Path) -> Self:
        """Return the settings with where the modules are, and what they hold. Raises ModelError."""
        named = references(self.kind, self.loss, self.metrics)
        return self.model_copy(update={"folder": folder, "sources": OwnCode(folder).sources(*named)})

    def make(self, threads: int) -> Any:
        """Return the Model, made once, for `threads` threads of a rank. Raises ModelError."""
        if self._made is None:
            self._made = make_own(
                self.kind,
                self.arguments,
                folder=self.folder,
                loss=self.loss,
                metrics=self.metrics,
                inputs=self.inputs,
                sources=self.sources or None,
                threads=threads,
            )
        return self._made
