"""The settings of `strategies.py`: tables, rows, and what is trained and timed."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from strategies_program import arguments_of
from study import HERE, digest_of

import isthmus
from isthmus.benchmarking.options import named_compressor
from isthmus.toml_files import FrozenModel
from isthmus.training.strategies import STRATEGIES

Count = Annotated[int, Field(ge=1)]


class JobSettings(FrozenModel):
    """What is trained, and on what."""

    data: Path
    validation_shards: tuple[int, ...]
    hidden: tuple[Count, ...]
    batch_size: Count
    momentum: float
    learning_rates: tuple[float, ...]
    look_every: Count


class TimingSettings(FrozenModel):
    """Links, and how long a row is timed."""

    bytes_per_second: tuple[float, ...]
    latency_seconds: float
    seconds: float


class Table(FrozenModel):
    """A cluster, how the samples lie there, and what is to be reached; `samples_per_second` by site."""

    name: str
    split: Literal["iid", "by_class"] | float
    sites: Count
    ranks: Count
    samples_per_second: tuple[float, ...]
    place: Literal["testbed", "paced"]
    seconds_of: str | None = None
    epochs: Count
    seeds: tuple[int, ...]
    validation_target: float
    target: float

    def cluster(self, bytes_per_second, latency_seconds):
        """Return a star of sites around the first."""
        names = ["cloud", *(f"edge{number}" for number in range(1, self.sites))]
        network = {"latency_seconds": 5e-5, "bytes_per_second": 1e9}
        link = {"latency_seconds": latency_seconds, "bytes_per_second": bytes_per_second}
        return isthmus.Cluster(
            {
                "site": [
                    {
                        "name": name,
                        "tier": "edge" if number else "cloud",
                        "ranks": self.ranks,
                        "samples_per_second": self.samples_per_second[number],
                        "network": network,
                    }
                    for number, name in enumerate(names)
                ],
                "link": [{"between": [names[0], name], **link} for name in names[1:]],
            },
            source=self.name,
        )


class Row(FrozenModel):
    """A strategy, what it sends in, and the tables that it stands in.

    whole: table -> rates of links that it is run on from the start to the accuracy, too.
    turn: of strategies that play clients, what a client does in a round: arguments of `Turn`; each site
    is a client. epochs, look_every, momentum, learning_rates: where they are not the table's or the
    job's; `epochs` of clients are rounds. real_time: where what is learnt depends on who is how fast,
    the rates of links that every run is made on; learning rates are chosen on the last.
    """

    name: str
    strategy: dict[str, Any]
    compressor: str
    tables: tuple[str, ...]
    whole: dict[str, tuple[float, ...]] = {}  # noqa: RUF012  frozen
    turn: dict[str, int] | None = None
    epochs: Count | None = None
    look_every: Count | None = None
    momentum: float | None = None
    learning_rates: tuple[float, ...] = ()
    real_time: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _can_be_made(self):
        named_compressor(self.compressor)
        self.make()
        return self

    def make(self):
        arguments = arguments_of(self.strategy, self.turn)
        kind = arguments.pop("kind", None)
        if kind not in STRATEGIES:
            raise ValueError(f"kind of strategy must be one of {', '.join(STRATEGIES)}, not {kind!r}")
        try:
            return STRATEGIES[kind](**arguments)
        except TypeError as problem:
            raise ValueError(f"strategy {kind!r}: {problem}") from None

    @property
    def case(self):
        own = {name: getattr(self, name) for name in ("turn", "momentum")}
        given = {name: value for name, value in own.items() if value is not None}
        return {"strategy": self.strategy, "compressor": self.compressor} | given


class Study(FrozenModel):
    """strategies.toml."""

    results: Path
    launch_limit_seconds: float
    job: JobSettings
    timing: TimingSettings
    tables: tuple[Table, ...]
    rows: tuple[Row, ...]

    def rows_of(self, table):
        return [row for row in self.rows if table.name in row.tables]

    @cached_property
    def train(self):
        return isthmus.ShardSet.open((HERE / self.job.data / "train").resolve())

    @cached_property
    def train_shards(self):
        """The shards that are trained on: those that nothing is chosen by."""
        every = range(len(self.train.samples))
        return [number for number in every if number not in self.job.validation_shards]

    @cached_property
    def train_targets(self):
        return np.concatenate([self.train.read(number)["targets"] for number in self.train_shards])

    def digest_of(self, table, row):
        """Return what tells whether a result is of these settings: those that it may depend on."""
        job = self.job.model_dump(mode="json", exclude={"data", "learning_rates"})
        cluster = table.model_dump(
            mode="json", include={"split", "sites", "ranks", "samples_per_second"}
        )
        length = self.length_of(table, row), row.look_every, table.validation_target
        return digest_of([job, cluster, length, self.timing.latency_seconds])

    def length_of(self, table, row):
        """Return the epochs of a whole run, and the steps of each: of clients, rounds of a step."""
        steps = 1 if row.turn else round(len(self.train_targets) / self.job.batch_size)
        return row.epochs or table.epochs, steps
