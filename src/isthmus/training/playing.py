"""The training loop of clients: a step of the job is a round, in which a rank plays its own in turn."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isthmus.devices import out_of_memory, synchronise
from isthmus.links.agreement import gather_json
from isthmus.training.loop import Training
from isthmus.training.optimisers.clipping import clipping_factor


@dataclass(frozen=True)
class Turn:
    """What a client does in a round.

    batch_size: most samples of one of its batches. epochs: passes over its own samples; or steps: how
    many batches it takes, in as many passes as they need.
    """

    batch_size: int
    epochs: int = 1
    steps: int | None = None

    def batches(self, samples: int) -> Iterator[tuple[int, int, int]]:
        """Yield (pass, first, last) of each batch of a client with so many samples."""
        bounds = [*range(0, samples, self.batch_size), samples]
        made = (
            (epoch, first, last)
            for epoch in (range(self.epochs) if self.steps is None else itertools.count())
            for first, last in itertools.pairwise(bounds)
        )
        return itertools.islice(made, self.steps)


MOST_TOLD = 1000
"""Clients of a round that are told by number; of more only how many there were."""


class ClientTraining(Training):
    """One rank's part in a job whose strategy plays clients, all with the one model that it has.

    rows: client -> its rows of `local`. turn: what each does in a round. The optimiser begins anew with
    every client in every round. See `Training` for the rest.
    """

    def __init__(self, *arguments, rows: dict[int, slice], turn: Turn, **named):
        super().__init__(*arguments, **named)
        self.rows_of, self.turn = rows, turn
        self._fresh = {name: array.copy() for name, array in self.state.optimiser.items()}

    def steps(self) -> Iterator[None]:
        """Make the rounds that are left, and yield after each."""
        while self.state.step < self.recipe.total_steps:
            before = self.member.stage_seconds
            with self.instruments.step(self.state.step + 1) as measured:
                loss, samples = self._round(measured.phase)
            self._note(loss, samples, measured, before)
            self.state.step += 1
            yield

    def _round(self, phase):
        """Play this rank's clients of a round, and exchange; return their summed loss, and samples."""
        member, total, seen = self.member, 0.0, 0
        self._held = 0.0
        for client in member.draw():
            with np.errstate(all="ignore"):  # what is not finite is found where the client leaves
                loss, samples, travelled = self._play(client, phase)
                kept = member.leave(client, self.state.parameters, travelled)
            if kept:
                total, seen = total + loss, seen + samples
        with phase("allreduce"):
            member.after_step(self.state.parameters)
        self.finite, self.non_finite_ranks = member.finite, []
        if not member.finite:
            self._refuse_exchange()
        return total, seen

    def _play(self, client, phase):
        """Have a client learn from the anchor on; return its summed loss, its samples and its way."""
        state, recipe, member, rows = self.state, self.recipe, self.member, self.rows_of[client]
        rate = recipe.learning_rate_of(state.step)
        member.visit(client, state.parameters)
        for name, array in state.optimiser.items():
            array[...] = self._fresh[name]
        total, samples, batches, length = 0.0, 0, 0, rows.stop - rows.start
        for epoch, first, last in self.turn.batches(length):
            if first == 0:
                order = member.clients.order(client, state.step, epoch, length) + rows.start
            features, targets = self.local.at(order[first:last])
            with phase("compute"):
                self.model.begin_step(recipe.seed, client, (state.step << 32) + batches)
                total += self._gradient(features, targets)
            with phase("update"):
                self.gradient *= np.float32(1 / len(targets))
                member.correct(self.gradient, state.parameters)
                scale = (
                    1.0 if recipe.clip_norm is None else clipping_factor(self.gradient, recipe.clip_norm)
                )
                recipe.optimiser.step(state.parameters, self.gradient, state.optimiser, rate, scale)
                synchronise(state.parameters)
            samples, batches = samples + len(targets), batches + 1
        return total, samples, batches * rate

    def _gradient(self, features, targets):
        """Leave the batch's gradient in `gradient`; return the summed loss."""
        parameters = self.state.parameters
        try:
            loss = self.model.gradient(parameters, features, targets, self.gradient)
        except MemoryError as problem:
            batch = f"a batch of {len(targets)} samples in round {self.state.step + 1}"
            self.member.changes.fail(out_of_memory(batch, problem))
            loss = np.nan
            self.gradient[:] = np.nan
        synchronise(self.gradient)
        if self.hold_seconds is not None:
            self._held += self.hold_seconds(len(targets))
            if (left := self._held - self.instruments.so_far("compute")) > 0:
                time.sleep(left)
        return loss

    def told_of(self, step):
        """Return what metrics.jsonl tells of the clients of a step, counted from 1."""
        member = self.member
        drawn, _ = member.clients.drawn(step - 1, member.wanted, member.strategy.by)
        return {"clients": drawn.tolist()} if len(drawn) <= MOST_TOLD else {"clients": len(drawn)}

    def gather_dropped(self):
        """Return [round, client] of all that were dropped since the last call, at home. Collective."""
        mine, self.member.dropped[:] = list(self.member.dropped), []
        return sorted(itertools.chain(*gather_json(self.tiers.world, mine)))
