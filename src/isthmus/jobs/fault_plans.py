"""What is to happen to which rank of a run, and when: from a file, or at random."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from isthmus.errors import SettingsError
from isthmus.jobs.plan import make_plan
from isthmus.jobs.settings import RunSettings
from isthmus.recovery.moments import KINDS, MOMENTS
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
    """

    kind: Literal[KINDS] = "kill"
    rank: Count
    step: Annotated[int, Field(ge=1)]
    moment: Literal[MOMENTS]
    number: Count = 0
    bit: Count = 0
    seconds: Annotated[float, Field(gt=0)] | None = None
    nbytes: Count = 0
    run: Count = 0

    @model_validator(mode="after")
    def _says_nothing_in_vain(self):
        of = {"number": "send", "bit": "flip", "seconds": "stop freeze", "nbytes": "full torn"}
        for name in sorted(self.model_fields_set & of.keys()):
            told = self.moment if name == "number" else self.kind
            if told not in of[name].split():
                raise ValueError(f"{name} is of {' or '.join(of[name].split())}, not of {told}")
        return self

    def __str__(self):
        kind = "" if self.kind == "kill" else f"{self.kind} "
        number = f" {self.number}" if self.moment == "send" else ""
        return f"{kind}rank {self.rank} in {self.moment}{number} of step {self.step}"


class Faults(FrozenModel):
    """The file of `--plan`: [[fault]] tables."""

    fault: Annotated[tuple[Fault, ...], Field(min_length=1)]


def planned_faults(path: Path) -> list[list[Fault]]:
    """Return the faults of each run that the file asks for. Raises SettingsError."""
    faults = check_table(Faults, read_toml(path, SettingsError), path, SettingsError).fault
    runs = sorted({each.run for each in faults})
    return [[each for each in faults if each.run == run] for run in runs]


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
                if each != "rebuild"
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
