"""What the lines of a run's metrics.jsonl hold: keys and types of each kind."""

from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter

from isthmus.folders.contents import Count, Measured, Number, Seconds, Table


class Line(Table):
    """A line of metrics.jsonl of any kind."""

    kind: str
    step: Count


class SentBytes(Table):
    """Bytes of all ranks since the run began."""

    site: Count
    link: Count


class StepLine(Line):
    """What a step took."""

    seconds: Seconds
    loss: Measured
    step_seconds: Seconds
    terms: dict[str, Seconds]
    sent_nbytes: SentBytes
    exchanged: NotRequired[bool]
    clients: NotRequired[list[Count] | Count]


class EvaluationLine(Line):
    """What the test set said."""

    seconds: Seconds
    link_nbytes: Count
    loss: Measured
    accuracy: Measured
    metrics: NotRequired[dict[str, Measured]]


class ValidationLine(EvaluationLine):
    """What the validation set said, and whether it liked no earlier epoch as well."""

    best: bool


class ReplicasLine(Line):
    """The hash that all ranks had."""

    hash: str


class NonFiniteLine(Line):
    """A gradient that was not finite."""

    ranks: list[Count]
    action: str


class Change(Table):
    """A rank whose pace has changed."""

    rank: Count
    before: Number
    after: Number


class ReplannedLine(Line):
    """Shards that moved, or would not have paid to."""

    seconds: Seconds
    changed: list[Change]
    shards: Count
    nbytes: Count
    moving_seconds: Seconds
    staying_seconds: Number
    predicted_seconds: Number
    predicted_moving_seconds: Number
    samples_of_rank: list[Count]


class MembersLine(Line):
    """Which ranks hold which shards from the step after this one on."""

    cluster: dict[str, Any]
    shards_of_rank: list[list[Count]]
    came_from: NotRequired[list[Count | None]]
    resumed: NotRequired[bool]
    residual_steps: NotRequired[list[Count | None]]


class SamplesLine(Line):
    """How many samples an epoch took once, how many more often, and how many of each shard never."""

    once: Count
    again: Count
    lost: dict[str, Count]


class LostLine(Line):
    """Ranks that died, how long it took to go on without them, steps that were made and were made again,
    shards that nobody could read, and when it was noticed, in seconds since 1970."""

    ranks: list[Count]
    seconds: Seconds
    undone: NotRequired[Count]
    never: list[Count]
    clock: NotRequired[Seconds]


class JoinedLine(Line):
    """Ranks that have come back, and how long it took to go on with them."""

    ranks: list[Count]
    seconds: Seconds


class LateLine(Line):
    """Sites that were not there after so many seconds, as the others began, and shards that nobody could
    read then."""

    sites: list[str]
    seconds: Seconds
    never: list[Count]


class RepairedLine(Line):
    """Ranks whose parameters were others than most ranks', no ranks if no majority tells; after which
    step that was found, when, in seconds since 1970, and since which step all is made again."""

    ranks: list[Count]
    found: Count
    clock: Seconds


class DroppedLine(Line):
    """Clients whose change was not finite, and was left out of their round."""

    clients: list[Count]


class ArrivalsLine(Line):
    """Changes that have arrived since all ranks were together last."""

    arrivals: list[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    staleness: list[Count]
    version: Count
    lost: Count
    steps_of_site: list[Count] | None = None


class LeftOutLine(Line):
    """Secure sums that went on without some sites, whose sums were not finite: [number, sites]."""

    sums: list[tuple[Count, list[Count]]]


LINES = {
    kind: TypeAdapter(table)
    for kind, table in {
        "step": StepLine,
        "evaluation": EvaluationLine,
        "validation": ValidationLine,
        "replicas": ReplicasLine,
        "non_finite": NonFiniteLine,
        "replanned": ReplannedLine,
        "dropped": DroppedLine,
        "members": MembersLine,
        "samples": SamplesLine,
        "lost": LostLine,
        "joined": JoinedLine,
        "late": LateLine,
        "repaired": RepairedLine,
        "arrivals": ArrivalsLine,
        "left_out": LeftOutLine,
    }.items()
}
ANY_LINE = TypeAdapter(Line)
