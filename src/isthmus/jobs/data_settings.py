"""The data of a run: [data] of its settings."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from isthmus.toml_files import FrozenModel

Positive = Annotated[float, Field(gt=0)]


class ScaleSettings(FrozenModel):
    """What is taken off features, and by what the rest is divided: for all of them, or one each."""

    mean: float | tuple[float, ...]
    std: Positive | tuple[Positive, ...]


class DataSettings(FrozenModel):
    """Folders of packed shards.

    cache, cache_nbytes: a folder on each rank's own disk for shards that it gets from others, of at most
    so many bytes a rank: the next job reads them there. None: nothing is kept.
    copies: 2: each shard is on a second rank as well, for when the first is gone.
    scale: "auto": features of floats are standardised by the training shards' means and deviations.
    """

    train: Path
    test: Path
    validation: Path | None = None
    scale: Literal["auto", "none"] | ScaleSettings = "auto"
    copies: Literal[1, 2] = 1
    cache: Path | None = None
    cache_nbytes: Annotated[int, Field(ge=1)] = 1 << 34
    site: str | None = None  # where the shards lie before they are brought to the ranks

    @field_validator("scale", mode="before")
    @classmethod
    def _is_a_word_or_two_numbers(cls, value):
        table = isinstance(value, dict) and value.keys() == {"mean", "std"}
        if not (table or isinstance(value, ScaleSettings) or value in ("auto", "none")):
            raise ValueError(
                f'must be "auto", "none" or {{ mean = NUMBER, std = NUMBER }}, not {value!r:.80}'
            )
        return value

    @property
    def folders(self):
        """Those that are given."""
        return [each for each in (self.train, self.test, self.validation) if each is not None]
