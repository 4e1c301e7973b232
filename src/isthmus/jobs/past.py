"""What a job of other ranks than before goes on from, and how a rank that is new is told of it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.links.tiers import Tiers
from isthmus.planning.plan import Plan
from isthmus.recovery.buddies import Copies
from isthmus.recovery.ledger import Part
from isthmus.shards.access import admitted
from isthmus.shards.batches import LocalSamples
from isthmus.shards.manifest import Manifest
from isthmus.shards.scale import Scale
from isthmus.shards.scattering import room_for
from isthmus.training.measured import MEASURED
from isthmus.training.replicas import Kept, WentBackError, who_differs


@dataclass
class Past:
    """The job before, as one rank has it.

    placed: the shards of each rank of the whole cluster, by its numbers on sockets. step: the last one
    that counts; redo: whether what is due after it is to be done again. untold: (rows that were
    measured and not told, the last step that was).
    judged: the validation set's notes, None where there is none; best: its arrays. arrays: this rank's,
    None where it is new; kept: what it goes back to where bits have flipped; copies: of the residuals of
    others. back: that some have gone back to that, where it is not told yet. leads, speak: whether it
    has written the run's folder, and what prints lines.
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
    kept: Kept | None = None
    copies: Copies = field(default_factory=dict)
    back: WentBackError | None = None

    @classmethod
    def of(cls, job: Any, placed: list[list[int]]) -> "Past":
        """Return that of a rank that was there."""
        training, undoing = job.training, job.training.undoing
        step, known, kept = undoing.step, undoing.known, job.replicas.kept
        judged, best = known.judged or (None, None)
        return cls(
            settings=job.settings,
            plan=job.plan,
            placed=placed,
            path=job.path,
            parts=[*job.members.ledger.parts],
            step=step,
            redo=job.within_duties,
            untold=(known.rows, known.told),
            judged=judged,
            checkpoint=job.journal.checkpoint,
            local=training.local,
            sets=job.sets,
            model=training.model,
            leads=job.leads,
            speak=job.journal.speak,
            arrays=undoing.arrays_after(step),
            best=best,
            kept=kept,
            copies=job.buddies.until(step),
            back=job.replicas.untold if kept is not None and kept.step == step else None,
        )

    def of_equal_ranks(self, world: Any) -> "Past":
        """Return this, or what there was after the step before at which all ranks were equal, where
        they are not now. Collective."""
        found = who_differs(world, self.step, self.arrays, self.kept)
        if found is None:
            return self
        back, step = found
        rows, until = self.untold
        copies = {
            site: [each for each in copies if each.step <= step] for site, copies in self.copies.items()
        }
        return replace(
            self,
            step=step,
            redo=self.redo and step == self.step,
            untold=(rows[: step - until], until),
            arrays=self.kept and self.kept.arrays,
            copies={site: left for site, left in copies.items() if left},
            back=back,
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
