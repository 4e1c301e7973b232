"""What a step has changed, kept so that it is undone where not all ranks have made it."""

from typing import Any

import numpy as np

from isthmus.devices import to_host
from isthmus.training.buffers import copied


class Undoing:
    """Of one rank's Training, `training`, where ranks may go.

    whole_steps: whether the last step may be undone, as not all ranks may have made it; else only what a
    step changes before all have its sum.
    """

    def __init__(self, training: Any):
        self.training, self.whole_steps = training, False
        self._kept: dict[int, dict[str, np.ndarray]] = {}  # step -> what was changed since, as it was
        self._spare: dict[str, np.ndarray] = {}  # copies that nobody needs any more
        self._held: tuple[list[Any], int, int] | None = None  # (rows, the last step told, the step)

    def before_step(self) -> None:
        """Keep what a step changes while gradients are summed.

        What sums remember needs no copy while one step alone may be undone: a sum writes elsewhere than
        where it reads.
        """
        changed = self.training.changed_at_once()
        kept: dict[str, np.ndarray] = {}
        if not self.whole_steps:
            kept = self.training.remembered_by_sums()
            changed = {name: array for name, array in changed.items() if name not in kept}
        self._kept[self.training.state.step] = kept | self._copied(changed)

    def before_update(self) -> None:
        """Keep what the update changes, once this rank has the sum.

        All ranks have made the step before, as they have sent their part of this one's sum.
        """
        state = self.training.state
        kept = self._kept.pop(state.step, {})
        if self.whole_steps:
            for each in self._kept.values():
                self._spare |= each
            memory = {f"optimiser/{name}": each for name, each in state.optimiser.items()}
            kept |= self._copied({"parameters": state.parameters} | memory)
        self._kept = {state.step: kept} if self.whole_steps else {}

    def arrays_after(self, step: int) -> dict[str, np.ndarray]:
        """Return name -> array as it was after `step`, the last one or the one before that."""
        return copied(self.training.arrays() | self._kept.get(step, {}))

    def _copied(self, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return name -> copy of each of `arrays`, on the host, in memory of older ones that fit."""
        made = {}
        for name, array in arrays.items():
            spare, own = self._spare.pop(name, None), to_host(array)
            if spare is None or (spare.shape, spare.dtype) != (own.shape, own.dtype):
                spare = np.empty_like(own)
            np.copyto(spare, own)
            made[name] = spare
        return made

    def hold_rows(self) -> None:
        """Note what was measured and not told yet, in case a rank goes while it is told."""
        training = self.training
        self._held = [*training.rows], training.told_step, training.state.step

    def release_rows(self) -> None:
        """Forget what `hold_rows` has noted, where all of it is known to be told."""
        if not self.whole_steps:
            self._held = None

    def forget(self) -> None:
        """Keep nothing: the training is where it was once before."""
        self._kept.clear()
        self._held = None

    @property
    def untold(self) -> tuple[list[Any], int]:
        """(rows, the last step that was told): what was measured since."""
        rows, told, _ = self._held or ([*self.training.rows], self.training.told_step, 0)
        return rows, told

    def go_back(self, step: int, redo: bool, arrays: dict[str, np.ndarray] | None = None) -> None:
        """Have the training be where it was after `step`, its last one or the one before that.

        redo: whether it was then, too, that what is due after it had not been done. arrays: as they were
        after `step`, which may then be any step before; None: those that are kept here.
        """
        training, held = self.training, self._held
        rows, told = [*training.rows], training.told_step
        if held is not None and (held[2] > step or (redo and held[2] == step)):
            rows, told, _ = held
        training.load(step, self.arrays_after(step) if arrays is None else arrays)
        self.forget()
        training.rows, training.told_step = rows[: step - told], told
