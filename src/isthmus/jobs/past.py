"""What a job of other ranks than before goes on from, and how a rank that is new is told of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.links.tiers import Tiers
from isthmus.planning.plan import Plan
from isthmus.recovery.ledger import Part
from isthmus.shards.access import admitted
from isthmus.shards.batches import LocalSamples
from isthmus.shards.manifest import Manifest
from isthmus.shards.scale import Scale
from isthmus.shards.scattering import room_for
from isthmus.training.measured import MEASURED


@dataclass
class Past:
    """The job before, as one rank has it.

    placed: the shards of each rank of the whole cluster, by its numbers on sockets. step: the last one
    that counts; redo: whether what is due after it is to be done again. untold: as `Undoing.untold`.
    judged: the validation set's notes, None where there is none; best: its arrays. arrays: this rank's,
    None where it is new; copies: of its leader's residual, as it was after `copied_step`. leads, speak:
    whether it has written the run's folder, and what prints lines.
    """

    settings: Any
    plan: Plan
    placed: list[list[int]]
    path: Path
    parts: list[Part]
    step: int
    redo: bool
    untold: tuple[list[Any], int]
    judged: dict[str, Any] | None
    checkpoint: int | None
    local: LocalSamples
    sets: dict[str, LocalSamples]
    model: Any
    leads: bool
    speak: Any
    arrays: dict[str, np.ndarray] | None = None
    best: dict[str, np.ndarray] | None = None
    copies: dict[str, np.ndarray] = field(default_factory=dict)
    copied_step: int | None = None

    @classmethod
    def of(cls, job: Any, placed: list[list[int]]) -> "Past":
        """Return that of a rank that was there."""
        training, validation = job.training, job.validation
        step = training.state.step
        began = job.within_duties and job.judged is not None and job.judged[0] == step
        judged = validation and (job.judged[1] if began else validation.to_json())
        return cls(
            settings=job.settings,
            plan=job.plan,
            placed=placed,
            path=job.path,
            parts=[*job.members.ledger.parts],
            step=step,
            redo=job.within_duties,
            untold=training.undoing.untold,
            judged=judged,
            checkpoint=job.journal.checkpoint,
            local=training.local,
            sets=job.sets,
            model=training.model,
            leads=job.leads,
            speak=job.journal.speak,
            arrays=training.undoing.arrays_after(step),
            best=validation and validation.arrays(),
            copies=job.buddies.copies,
            copied_step=job.buddies.step,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what those who are new are told."""
        sets = {"train": self.local} | self.sets
        scale = self.local.scale
        return {
            "plan": self.plan.to_dict(),
            "placed": self.placed,
            "path": str(self.path),
            "parts": [part.told() for part in self.parts],
            "step": self.step,
            "redo": self.redo,
            "until": self.untold[1],
            "judged": self.judged,
            "checkpoint": self.checkpoint,
            "manifests": {name: local.manifest.model_dump(mode="json") for name, local in sets.items()},
            "scale": scale and [scale.mean.tolist(), scale.std.tolist()],
        }

    @classmethod
    def told(cls, tiers: Tiers, table: dict[str, Any], settings: Any, speak: Any) -> "Past":
        """Return that of a rank that is new, who has no samples yet. Collective over its site."""
        scale = table["scale"] and Scale(*(np.array(each, np.float64) for each in table["scale"]))
        sets, folders = {}, settings.data.model_dump()
        for name, each in table["manifests"].items():
            manifest = Manifest.of(each, "manifest")
            access = admitted(tiers.within_site(), manifest, folders[name], settings.security.keys)
            sets[name] = LocalSamples(room_for(manifest, ()), 0, (), manifest, scale, access)
        step, until = table["step"], table["until"]
        return cls(
            settings=settings,
            plan=Plan.from_dict(table["plan"]),
            placed=table["placed"],
            path=Path(table["path"]),
            parts=[Part.of_line(each) for each in table["parts"]],
            step=step,
            redo=table["redo"],
            untold=([[0.0] * len(MEASURED) for _ in range(step - until)], until),
            judged=table["judged"],
            checkpoint=table["checkpoint"],
            local=sets.pop("train"),
            sets=sets,
            model=settings.make_model(),
            leads=False,
            speak=speak,
        )
