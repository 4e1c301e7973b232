"""What a step, or a round, has changed, kept so that it is undone where not all ranks have made it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.devices import to_host
from isthmus.training.buffers import copied
from isthmus.training.validation import Validation


@dataclass(frozen=True)
class Known:
    """What a rank knew after `step`: rows that were measured since step `told`, and not told yet.

    judged: what the validation set had said, and the best parameters by it; None where there is none.
    """

    step: int
    rows: list[Any]
    told: int
    judged: tuple[dict[str, Any], dict[str, np.ndarray]] | None


class Undoing:
    """Of one rank's Training, `training`, where ranks may go.

    rounds: whether all that was made since ranks had the same parameters last is undone, as
    `Strategy.redone` has it; else what a step changes. whole_steps: whether the last step, or round, may
    be undone too, as not all ranks may have made it; else only one that not all have ended.
    judge: what the validation set has said; None where there is none.
    """

    def __init__(self, training: Any):
        self.training, self.rounds, self.whole_steps = training, False, False
        self.judge: Validation | None = None
        self._kept: dict[int, dict[str, np.ndarray]] = {}  # step -> what was changed since, as it was
        self._spare: dict[str, np.ndarray] = {}  # copies that nobody needs any more
        self._begun: Known | None = None  # as the round that is under way began
        self._known: dict[int, Known] = {}  # the same of each round that is kept
        self._held: Known | None = None  # before what is due after a step was done

    @property
    def step(self) -> int:
        """The step after which this rank may go on once more: its last, or that before its round."""
        return self.training.state.step if self._begun is None else self._begun.step

    def before_step(self) -> None:
        """Keep what a step changes while gradients are summed, or all that a round which begins changes.

        What sums remember needs no copy while one step alone may be undone: a sum writes elsewhere than
        where it reads.
        """
        training = self.training
        if self.rounds:
            if self._begun is None:
                known = self._now()
                self._kept[known.step] = self._copied(training.arrays())
                self._begun = self._known[known.step] = known
            return
        changed = training.changed_at_once()
        kept: dict[str, np.ndarray] = {}
        if not self.whole_steps:
            kept = training.remembered_by_sums()
            changed = {name: array for name, array in changed.items() if name not in kept}
        self._kept[training.state.step] = kept | self._copied(changed)

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

    def after_round(self) -> None:
        """Keep what only the round that has ended has changed, and nothing where all have ended it.

        All ranks have made the round before, as they have sent their part of what this one exchanges.
        """
        assert self._begun is not None
        step, self._begun = self._begun.step, None
        for each in [each for each in self._kept if each != step or not self.whole_steps]:
            self._spare |= self._kept.pop(each)
            del self._known[each]

    def arrays_after(self, step: int) -> dict[str, np.ndarray]:
        """Return name -> array as it was after `step`: the last one, or one to which ranks go back."""
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

    def _now(self) -> Known:
        """Return what this rank knows."""
        training, judge = self.training, self.judge
        judged = None if judge is None else (judge.to_json(), judge.arrays())
        return Known(training.state.step, [*training.rows], training.told_step, judged)

    def hold_rows(self) -> None:
        """Note what was measured and not told yet, in case a rank goes while it is told."""
        self._held = self._now()

    def release_rows(self) -> None:
        """Forget what `hold_rows` has noted, where all of it is known to be told."""
        if not self.whole_steps:
            self._held = None

    def forget(self) -> None:
        """Keep nothing: the training is where it was once before."""
        self._kept.clear()
        self._known.clear()
        self._held = self._begun = None

    @property
    def known(self) -> Known:
        """What this rank knew after `step`, before what is due then was done, if it is not done."""
        return self._begun or self._held or self._now()

    def go_back(self, step: int, redo: bool, arrays: dict[str, np.ndarray] | None = None) -> None:
        """Have the training be where it was after `step`, its last one, or one that is kept.

        redo: whether it was then, too, that what is due after it had not been done. arrays: as they were
        after `step`, which may then be any step before; None: those that are kept here.
        """
        training, held = self.training, self._held
        known = self._known.get(step) or self._now()
        if held is not None and (
            (redo and held.step == step) or (held.step > step and step not in self._known)
        ):
            known = held
        training.load(step, self.arrays_after(step) if arrays is None else arrays)
        self.forget()
        training.rows, training.told_step = known.rows[: step - known.told], known.told
        if self.judge is not None and known.judged is not None:
            self.judge.take_back(*known.judged)
