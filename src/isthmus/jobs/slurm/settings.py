"""What a run asks of Slurm: the section `[slurm]` of its settings."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from isthmus.toml_files import FrozenModel

# These become words of `#SBATCH` lines: nothing that ends a word or a line may be in them.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:+&|()\[\]*-]+$")]


def _duration(text):
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ValueError(f"must be a time such as 01:30:00 or 1-12, not {text!r}")
    return text


Duration = Annotated[str, AfterValidator(_duration)]


class SlurmSiteSettings(FrozenModel):
    """Where the ranks of one site run."""

    partition: Word | None = None
    constraint: Word | None = None
    nodes: Annotated[int, Field(ge=1)] = 1
    memory: Word | None = None


class SlurmSettings(FrozenModel):
    """The job's time, how long before its end it is warned, who pays, and each site by name."""

    time: Duration = "01:00:00"
    warning_seconds: Annotated[int, Field(ge=1, le=65535)] = 120
    account: Word | None = None
    qos: Word | None = None
    site: dict[str, SlurmSiteSettings] = Field(default_factory=dict)
