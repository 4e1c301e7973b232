"""What is to happen to which rank of a run, and when: from a file, or at random."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from isthmus.cluster.cluster import Cluster
from isthmus.errors import SettingsError
from isthmus.jobs.plan import make_plan
from isthmus.jobs.settings import RunSettings
from isthmus.recovery.moments import ANY_STEP, KINDS, LINK_KINDS, MOMENTS
from isthmus.toml_files import FrozenModel, check_table, read_toml

Count = Annotated[int, Field(ge=0)]
WRITES = ("report", "checkpoint")
"""Moments at which the rank that writes the run's folder writes to it."""


class Fault(FrozenModel):
    """What happens to a rank, by its number in the cluster, at a moment of a step, counted from 1.

    kind: "kill"; "stop" for `seconds`; "freeze": stopped, and killed after so many; "flip" a `bit`,
    counted from the first, of the parameters, or of the message where the moment is "send"; "full": no
    file can be longer than `nbytes` from now on; "torn": the process is killed as it writes a file's
    next byte beyond so many. number: of a message of that step, for "send". run: which of several runs
    it is for.

    Where sites are jobs of their own, what happens as the rank comes there may be to the link `between`
    two sites: "cut", "close" or "slow", at `bytes_per_second`, for `seconds`, None: for ever, or "flip",
    of a `bit` of what crosses it next. "wait":
    the rank waits until sites that are to come back have called, so many seconds at most. A site with
    `back_after` is started again so many seconds after it has ended. "settle": as a site has noticed
    that another one is gone, and "join": as message `number` is sent while a site comes back, in
    whichever step.
    """

    kind: Literal[(*KINDS, *LINK_KINDS, "wait")] = "kill"
    rank: Count
    step: Annotated[int, Field(ge=1)] | None = None
    moment: Literal[MOMENTS]
    number: Count = 0
    bit: Count = 0
    seconds: Annotated[float, Field(gt=0)] | None = None
    nbytes: Count = 0
    between: tuple[str, str] | None = None
    bytes_per_second: Annotated[float, Field(gt=0)] | None = None
    back_after: Annotated[float, Field(ge=0)] | None = None
    run: Count = 0

    @model_validator(mode="after")
    def _says_nothing_in_vain(self):
        links = " ".join(LINK_KINDS)
        of = {
            "number": "send join",
            "bit": "flip",
            "seconds": f"stop freeze wait {links}",
            "nbytes": "full torn",
            "between": f"{links} flip",
            "bytes_per_second": "slow",
            "back_after": "kill stop freeze torn cut close",
        }
        for name, kinds in of.items():
            told = self.moment if name == "number" else self.kind
            if name in self.model_fields_set and told not in kinds.split():
                raise ValueError(f"{name} is of {kinds.replace(' ', ' or ')}, not of {told}")
        for name in ("between", "bytes_per_second"):
            if self.kind in of[name].replace(" flip", "").split() and getattr(self, name) is None:
                raise ValueError(f"{name} is missing, of {self.kind}")
        if (self.step is None) != (self.moment in ANY_STEP):
            raise ValueError(
                f"step is of all moments but {' and '.join(ANY_STEP)}, which are of whichever step it is"
            )
        return self

    @property
    def of_sites(self) -> bool:
        """Whether it can happen only where sites are jobs of their own."""
        return (
            self.kind not in KINDS
            or self.between is not None
            or self.moment in ANY_STEP
            or self.back_after is not None
        )

    def site(self, cluster: Cluster, listen: Sequence[str]) -> str:
        """Return the site that is harmed: that which calls, where it is a link.

        listen: the sites that others call, the first hub first.
        """
        if self.between is not None:
            order = [*listen, *(name for name in cluster.names if name not in listen)]
            return max(self.between, key=order.index)
        return cluster.names[cluster.site_of_rank[self.rank]]

    def __str__(self):
        kind = "" if self.kind == "kill" else f"{self.kind} "
        if self.between is not None:
            kind = f"{kind}{'-'.join(self.between)} by "
        number = f" {self.number}" if self.moment in ("send", "join") else ""
        step = "" if self.step is None else f" of step {self.step}"
        back = "" if self.back_after is None else f", back after {self.back_after:g} s"
        return f"{kind}rank {self.rank} in {self.moment}{number}{step}{back}"


class Faults(FrozenModel):
    """The file of `--plan`: [[fault]] tables."""

    fault: Annotated[tuple[Fault, ...], Field(min_length=1)]


def planned_faults(path: Path) -> list[list[Fault]]:
    """Return the faults of each run that the file asks for. Raises SettingsError."""
    faults = check_table(Faults, read_toml(path, SettingsError), path, SettingsError).fault
    runs = sorted({each.run for each in faults})
    return [[each for each in faults if each.run == run] for run in runs]


def listening(cluster: Cluster, named: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the sites that others call where each is a job of its own, the first hub first.

    named: as asked for; none: it is the hub of the cluster. Raises SettingsError where these cannot be.
    """
    for name in named:
        if name not in cluster.names:
            raise SettingsError(
                f"--listen {name}: {cluster.source} has no such site; it has {', '.join(cluster.names)}"
            )
    return tuple(name for name in cluster.names if name in named) or (cluster.names[cluster.hub],)


def tables_of(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Return faults as `recovery.faults` has them, each with its number among them as "fault"."""
    return [
        each.model_dump(mode="json", exclude_none=True) | {"fault": number}
        for number, each in enumerate(faults)
    ]


def check_faults(faults: Sequence[Fault], cluster: Cluster, listen: Sequence[str] = ()) -> None:
    """Raise SettingsError where faults cannot happen in a cluster.

    listen: the sites that others call, where each is a job of its own; none: they are one job.
    """
    for each in faults:
        if each.rank >= cluster.size:
            raise SettingsError(f"{each}: {cluster.source} has ranks 0 to {cluster.size - 1}")
        if each.of_sites and not listen:
            raise SettingsError(f"{each}: only sites that are jobs of their own know that; add --sites")
        if unknown := [name for name in each.between or () if name not in cluster.names]:
            raise SettingsError(
                f"{each}: {cluster.source} has no site {unknown[0]!r}; it has {', '.join(cluster.names)}"
            )
        if each.between is not None and (
            each.between[0] == each.between[1] or {*each.between}.isdisjoint(listen)
        ):
            raise SettingsError(
                f"{each}: {' and '.join(each.between)} have no connection; each site has one to "
                f"{', '.join(listen)}, which the others call"
            )
        if each.back_after is None:
            continue
        site = each.site(cluster, listen)
        if (site,) == (*listen,):
            raise SettingsError(f"{each}: with {site}, which the others call, all sites end")
        first = cluster.ranks_of_site(site)[0]
        if each.between is None and each.rank != first:
            raise SettingsError(
                f"{each}: site {site} goes on without that rank; rank {first} is its first"
            )


def random_faults(
    settings_path: Path, runs: int, seed: int, kinds: Sequence[str] = ("kill",)
) -> list[list[Fault]]:
    """Return one or two faults for each of so many runs, spread over ranks, steps and moments.

    kinds: of which each is one. Those of disks happen to rank 0, as it writes.
    """
    settings = RunSettings.from_toml(settings_path)
    plan, cluster, _ = make_plan(settings_path)
    total, draw = plan.steps * settings.training.epochs, np.random.default_rng(seed)
    every = {
        "evaluation": plan.steps,
        "report": plan.steps,
        "checkpoint": settings.run.checkpoint_every or 1,
    }
    made: list[list[Fault]] = []
    for number in range(runs):
        deaths = int(draw.integers(1, 3)) if cluster.size > 2 else 1
        faults = []
        for rank in draw.permutation(cluster.size)[:deaths].tolist():
            kind = kinds[int(draw.integers(len(kinds)))] if len(kinds) > 1 else kinds[0]
            moments = [
                each
                for each in (WRITES if kind in ("full", "torn") else MOMENTS)
                if each not in ("rebuild", *ANY_STEP)
                and (each != "checkpoint" or settings.run.checkpoint_every is not None)
                and (each != "send" or kind != "flip")
            ]
            moment = moments[int(draw.integers(len(moments)))]
            stride = min(every.get(moment, 1), total)
            step = stride * int(draw.integers(1, total // stride + 1))
            rank = 0 if kind in ("full", "torn") else rank
            more = {"bit": int(draw.integers(1 << 30))} if kind == "flip" else {}
            more |= {"number": int(draw.integers(4))} if moment == "send" else {}
            faults.append(Fault(kind=kind, rank=rank, step=step, moment=moment, run=number, **more))
        if deaths == 2 and faults[1].kind == "kill" and draw.random() < 0.3:
            # The second dies while the first is done without.
            faults[1] = Fault(rank=faults[1].rank, step=faults[0].step, moment="rebuild", run=number)
        made.append(faults)
    return made
