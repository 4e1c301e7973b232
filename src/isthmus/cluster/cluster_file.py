"""What a cluster file holds, table by table, and what it may not say."""

import math
import re
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from isthmus.cluster.measured import VERSION, Calibration, Coding, Pass, SizeTable, Update, line
from isthmus.registry import ALGORITHMS
from isthmus.security.public_keys import key_bytes
from isthmus.toml_files import FrozenModel

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveOrInfinite = Annotated[float, Field(gt=0, allow_inf_nan=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Network(FrozenModel):
    """What joins the ranks of one site."""

    latency_seconds: NotNegative = 0.0
    bytes_per_second: PositiveOrInfinite = math.inf
    messages: SizeTable | None = None  # written by `isthmus calibrate`

    def line(self, nbytes: float) -> tuple[float, float]:
        """Return the latency in seconds and the bytes per second that hold for `nbytes` bytes."""
        return line(self, "messages", nbytes)


class Site(FrozenModel):
    """Ranks joined by a fast network; the first is the leader."""

    name: Annotated[str, Field(min_length=1)]
    tier: Literal["cloud", "edge"]
    ranks: Annotated[int, Field(ge=1)]
    samples_per_second: tuple[Positive, ...]
    storage_nbytes: PositiveOrInfinite = math.inf
    parent: str | None = None  # the site that adds this one's sum to its own
    relay: bool = True  # whether it may do so for others
    device: Literal["cpu", "gpu"] = "cpu"
    hosts: tuple[str, ...] = ()
    world_ranks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    network: Network = Network()
    price_per_second: NotNegative = 0.0  # money, for a second of computing on one rank
    public_key: str | None = None  # the line that `isthmus keys show` gives
    # Written by `isthmus calibrate`; an unmeasured cost counts as nothing.
    fixed_seconds: NotNegative = 0.0
    message_seconds: NotNegative = 0.0
    add_bytes_per_second: PositiveOrInfinite = math.inf
    encode_bytes_per_second: PositiveOrInfinite = math.inf
    decode_bytes_per_second: PositiveOrInfinite = math.inf
    memory_bytes_per_second: PositiveOrInfinite = math.inf
    host_copy_bytes_per_second: PositiveOrInfinite = math.inf  # from a GPU's memory and to it
    coding: tuple[Coding, ...] = ()
    update: tuple[Update, ...] = ()
    passes: tuple[Pass, ...] = ()  # over a vector, beside adding and coding it
    python_seconds: NotNegative = 0.0  # of a step: what is neither computing, nor a sum, nor an update

    @field_validator("samples_per_second", mode="before")
    @classmethod
    def _one_number_or_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else (value,)

    @field_validator("public_key")
    @classmethod
    def _is_a_public_key(cls, value: str | None) -> str | None:
        if value is not None:
            key_bytes(value)
        return value

    @model_validator(mode="after")
    def _one_rate_a_rank(self):
        rates = self.samples_per_second
        if len(rates) == 1 and self.ranks > 1:
            object.__setattr__(self, "samples_per_second", rates * self.ranks)
        elif len(rates) != self.ranks:
            raise ValueError(
                f"site {self.name!r}: samples_per_second has {len(rates)} numbers for "
                f"{self.ranks} ranks; give one number, or one a rank"
            )
        if self.world_ranks and len(set(self.world_ranks)) != self.ranks:
            raise ValueError(
                f"site {self.name!r}: world_ranks must name {self.ranks} different "
                f"ranks, not {list(self.world_ranks)}"
            )
        for host in self.hosts:
            if not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.%\w]*", host):
                raise ValueError(
                    f"site {self.name!r}: {host!r} is no name of a host; give names or "
                    "addresses alone, as in n1.edge.org"
                )
        if self.hosts and self.world_ranks:
            raise ValueError(f"site {self.name!r}: give hosts or world_ranks, not both")
        return self


class LinkTable(FrozenModel):
    """One `[[link]]` of a cluster file: both directions alike (`between`) or one (`from`, `to`)."""

    between: tuple[str, str] | None = None
    source: str | None = Field(None, alias="from")
    target: str | None = Field(None, alias="to")
    latency_seconds: NotNegative
    bytes_per_second: Positive
    shared: str | None = None
    price_per_byte: NotNegative = 0.0  # money
    streams: SizeTable | None = None  # written by `isthmus calibrate`
    messages: SizeTable | None = None

    @model_validator(mode="after")
    def _one_way_of_naming_ends(self):
        directed = self.source is not None and self.target is not None
        half = (self.source is None) != (self.target is None)
        if half or directed == (self.between is not None):
            raise ValueError('give either between = ["a", "b"] or both from = "a" and to = "b"')
        return self

    @property
    def ends(self) -> list[tuple[str, str]]:
        """The one or two (source, target) pairs that this table stands for."""
        if self.between is None:
            return [(self.source, self.target)]
        return [self.between, self.between[::-1]]


class ClusterTable(FrozenModel):
    """A cluster file as it is written."""

    hub: tuple[str, ...] = ()  # one site, or two, which exchange
    ring: tuple[str, ...] = ()  # all sites, in the order in which "ring" goes through them
    site: Annotated[tuple[Site, ...], Field(min_length=1)]
    link: tuple[LinkTable, ...] = ()
    calibration: Calibration | None = None

    @field_validator("hub", mode="before")
    @classmethod
    def _one_name_or_two(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _version_is_known(cls, table: Any) -> Any:
        """Before all else: a file of another version would be full of other mistakes."""
        found = table.get("calibration", {}) if isinstance(table, dict) else {}
        if isinstance(found, dict) and found.get("version", VERSION) != VERSION:
            raise ValueError(
                f"calibration.version: {found['version']!r} is not known to this isthmus, "
                f"which reads version {VERSION}; run `isthmus calibrate` again"
            )
        return table

    @model_validator(mode="after")
    def _names_agree(self):
        names = [site.name for site in self.site]
        if name := _twice(names):
            raise ValueError(f"two sites are called {name!r}; give each its own name")
        if host := _twice([host for site in self.site for host in site.hosts]):
            raise ValueError(f"host {host!r} is listed twice; a host belongs to one site")
        placed = [rank for site in self.site for rank in site.world_ranks]
        if len(set(placed)) != len(placed):
            raise ValueError("world_ranks of two sites name the same rank; a rank is in one site")
        keys = [key_bytes(site.public_key) for site in self.site if site.public_key is not None]
        if len(set(keys)) != len(keys):
            raise ValueError("two sites have one public_key; make a key for each: isthmus keys new SITE")
        known = set(names)
        if len(self.hub) > 2 or _twice(self.hub):
            raise ValueError(
                f"hub: names {len(self.hub)} sites; name one, or two different ones that exchange"
            )
        told = [(f"site[{number}].parent", site.parent) for number, site in enumerate(self.site)]
        tops = [(key, name) for key in ("hub", "ring") for name in getattr(self, key)]
        for key, name in [*tops, *told]:
            if name is not None and name not in known:
                raise ValueError(f"{key}: no site is called {name!r}; known sites: {', '.join(names)}")
        self._ring_is_closed(names)
        seen = set()
        for number, table in enumerate(self.link):
            for ends in table.ends:
                for name in ends:
                    if name not in known:
                        raise ValueError(
                            f"link[{number}]: no site is called {name!r}; "
                            f"known sites: {', '.join(names)}"
                        )
                if ends[0] == ends[1]:
                    raise ValueError(
                        f"link[{number}]: joins {ends[0]!r} to itself; "
                        "a site's own network goes under [site.network]"
                    )
                if ends in seen:
                    raise ValueError(
                        f"link[{number}]: a link from {ends[0]!r} to {ends[1]!r} is "
                        "given twice; keep one"
                    )
                seen.add(ends)
        return self

    def _ring_is_closed(self, names):
        if not self.ring:
            return
        if name := _twice(self.ring):
            raise ValueError(f"ring: goes through {name!r} twice; name each site once")
        if left := [name for name in names if name not in self.ring]:
            raise ValueError(f"ring: leaves out {', '.join(map(repr, left))}; name each site once")
        try:
            ALGORITHMS["ring"].check_relays(self.site)
        except ValueError as problem:
            raise ValueError(f"ring: {problem}") from None


def _twice(words):
    """Return the first word that is there more than once, or None."""
    return next((word for word, count in Counter(words).items() if count > 1), None)
