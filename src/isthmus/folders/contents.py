"""What the files of a run's folder hold: keys and types, as `reading` checks them."""

import math
from typing import Annotated, NotRequired

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

STRICT = ConfigDict(strict=True, extra="allow")  # a later version may tell more
Number = Annotated[float, Field(ge=-1e60, le=1e60)]
Seconds = Annotated[float, Field(ge=0, le=1e15)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Measured = Annotated[Number | None, AfterValidator(lambda value: math.nan if value is None else value)]
"""What may have been no finite number: the file says null then, the program NaN."""


class Table(TypedDict):
    """A table that may hold more than is named, and nothing of another type."""

    __pydantic_config__ = STRICT


class ClusterChoice(Table):
    """The settings' [cluster]."""

    links: str
    compute: str
    file: NotRequired[str]


class DataChoice(Table):
    """The settings' [data]."""

    train: str
    test: str
    validation: NotRequired[str | None]


class Kind(Table):
    """A class by its name."""

    kind: str


class AllreduceChoice(Table):
    """The settings' [allreduce]."""

    algorithm: str
    compressor: Kind | None


class Training(Table):
    """The settings' [training]."""

    epochs: NotRequired[Annotated[int, Field(ge=1, lt=2**31)]]


class SecurityChoice(Table):
    """The settings' [security]."""

    link: str


class Settings(Table):
    """What is read of a run's settings; they are all told."""

    cluster: ClusterChoice
    model: Kind
    allreduce: AllreduceChoice
    data: NotRequired[DataChoice]
    training: NotRequired[Training]
    security: NotRequired[SecurityChoice]


class Candidate(Table):
    """An allreduce that "auto" chose from."""

    name: str
    seconds: Seconds
    error: Number
    chunk_nbytes: Count


class Choice(Table):
    """What "auto" chose, and why."""

    reason: str
    candidates: list[Candidate]


class Start(Table):
    """An earlier start of a run that was resumed: how far it came."""

    started: str
    command: list[str]
    until_step: Count


class ReadersTold(Table):
    """How many shards of a set some sites may read alone."""

    sites: list[str]
    shards: Count


class DataTold(Table):
    """A set of samples that a run had; readers and sealed: where it has a policy."""

    samples: Count
    sha256: str
    readers: NotRequired[list[ReadersTold]]
    sealed: NotRequired[bool]


class ClientsTold(Table):
    """Of a run with clients: how many, how many a round wants, the least and the most samples of one."""

    count: Count
    wanted: Count
    samples: Annotated[list[Count], Field(min_length=2, max_length=2)]


class Provenance(Table):
    """run.json."""

    settings: Settings
    hosts: list[str]
    ranks: NotRequired[Count]
    started: str
    model_size: Count
    version: NotRequired[str]
    command: NotRequired[list[str]]
    commit: NotRequired[str | None]
    python: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    mpi_library: NotRequired[str]
    processor: NotRequired[str]
    emulated: NotRequired[list[str]]
    slurm_job: NotRequired[str | None]
    choice: NotRequired[Choice | None]
    rounds: NotRequired[str | None]
    clients: NotRequired[ClientsTold]
    tree: NotRequired[str | None]
    data: NotRequired[dict[str, DataTold]]
    resumed: NotRequired[str]
    earlier: NotRequired[list[Start]]
    succeeds: NotRequired[str]


class Prices(Table):
    """What is read of a plan's shadow prices."""

    link: dict[str, Measured]
    storage: list[Measured]


class PlanTable(Table):
    """plan.json."""

    shards_of_rank: list[list[Count]]
    samples_of_rank: list[Count]
    seconds_of_rank: list[Seconds]
    steps: Annotated[int, Field(ge=1, lt=2**31)]
    step_seconds: Seconds
    epoch_seconds: Seconds
    lower_bound_seconds: Measured
    gap: Measured
    terms: dict[str, Seconds]
    bound_by: str
    objective: NotRequired[str]
    staging_seconds: NotRequired[Measured]
    fair_staging_seconds: NotRequired[Measured]
    money: NotRequired[Measured]
    hash: NotRequired[str]
    sentences: NotRequired[list[str]]
    warnings: NotRequired[list[str]]
    shadow_prices: NotRequired[Prices]


class Link(Table):
    """Bytes that went one way."""

    source: str
    target: str
    sent_nbytes: Count
    predicted_nbytes: Count


class Step(Table):
    """Seconds, predicted and measured."""

    predicted_seconds: Seconds
    measured_seconds: Seconds


class Term(Step):
    """Seconds of a term, predicted and measured."""

    name: str


class Best(Table):
    """The epoch that the validation set liked best."""

    step: Count
    epoch: Count
    metrics: dict[str, dict[str, Measured]]


class Summary(Table):
    """summary.json."""

    terms: list[Term]
    steps: Count
    loss: Number | None
    accuracy: Number | None
    metrics: NotRequired[dict[str, Measured]]
    best: NotRequired[Best | None]
    stopped_early: NotRequired[str | None]
    parameter_hash: str
    dense_link_nbytes: Count
    received_nbytes: NotRequired[dict[str, Count]]
    links: list[Link]
    step: Step
