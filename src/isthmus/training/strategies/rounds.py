"""Rounds: sites go their own ways, and now and then exchange how far each has come from the anchor.

The anchor is what all sites have in common. A site sends anchor - parameters, whole or in parts, the
mean over sites goes to the outer optimiser, which moves the anchor, and the strategy says how a site
goes on from there. Inside a site gradients are averaged exactly in every step, so that a site is one
worker with all its ranks' samples.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from isthmus.devices import library_of, set_from_host, synchronise
from isthmus.outer import Outer
from isthmus.training.strategies.strategy import Exchange, Member
from isthmus.vectors import part_bounds

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums


class Rounds(Protocol):
    """What a strategy says of its rounds."""

    fragments: int
    late: int
    after: int
    outer: Outer

    def exchanges(self, steps: float) -> Iterator[Exchange]:
        """Yield the exchanges of a run of `steps` steps, which may be infinite, in order."""

    def merged(self, anchor: Any, here: Any, sent: Any) -> Any:
        """Return with what a site goes on where its change came back late.

        anchor: where it has just moved to. here: the site's parameters now. sent: those when it sent.
        """


class Traveller(Member):
    """One rank's part in a strategy of rounds.

    One exchange at most is under way. Its mean is kept by `state`, which is why that is collective.
    """

    def __init__(self, sums: "Sums", strategy: Rounds, steps: float):
        size, parts = sums.size, part_bounds(sums.size, strategy.fragments)
        self.strategy, self.total_steps = strategy, steps
        self.parts = [slice(*ends) for ends in zip(parts, parts[1:])]
        self.of_all = sums.of_all() if strategy.after else None
        self.of_site = sums.of_site()
        self.changes = [sums.of_part(part) for part in self.parts]
        synchronous = [] if self.of_all is None else [self.of_all]
        super().__init__(*synchronous, self.of_site, *self.changes)
        self.longest = max(part.stop - part.start for part in self.parts) if size else 0
        self._go_to(0)

    def begin(self, parameters: Any) -> None:
        self.start = parameters.copy()
        self.kept = [self.strategy.outer.begin(self.start[part]) for part in self.parts]
        late = self.strategy.late > 0
        empty = library_of(parameters).zeros
        self.mean = empty(self.longest if late else 0, parameters.dtype)
        self.sent = empty(self.longest if late else 0, parameters.dtype)

    def anchor(self, parameters: Any) -> Any:
        return self.start if self.step > self.strategy.after else parameters

    def acts(self) -> list[Callable[[Any], None]]:
        super().acts()
        self.finite = True
        exchange = self.under_way
        if exchange is not None:
            if self.step < exchange.step + exchange.late:
                return [self._advance]
            return [lambda parameters: self._receive(parameters, exchange.part, late=True)]
        if self.following is None or self.step < self.following.step:
            self.agreed = False
            return []
        exchange, self.following = self.following, next(self.schedule, None)
        if exchange.bucketed:
            return [self._follow]
        if exchange.late:
            self.under_way, self.agreed = exchange, False
            return [lambda parameters: self._send(parameters, exchange.part)]
        if exchange.part is not None:
            self.agreed = False
            return [
                lambda parameters: self._send(parameters, exchange.part),
                lambda parameters: self._receive(parameters, exchange.part, late=True),
            ]
        self.agreed = True
        acts: list[Callable[[Any], None]] = []
        for part in range(len(self.parts)):
            acts.append(lambda parameters, part=part: self._send(parameters, part))
            acts.append(lambda parameters, part=part: self._receive(parameters, part))
        return acts

    def state(self) -> dict[str, Any]:
        """Return all that the next steps depend on. Collective while an exchange is under way."""
        if self.under_way is not None and not self.arrived:
            mean = self.changes[self.under_way.part or 0].finish()
            self.mean[: mean.size], self.arrived = mean, True
        kept = {
            f"outer/{part}/{name}": array
            for part, arrays in enumerate(self.kept)
            for name, array in arrays.items()
        }
        return super().state() | {"anchor": self.start, "mean": self.mean, "sent": self.sent} | kept

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._go_to(self.step)
        for name, array in (("anchor", self.start), ("mean", self.mean), ("sent", self.sent)):
            set_from_host(array, state[name])
        for part, arrays in enumerate(self.kept):
            for name, array in arrays.items():
                set_from_host(array, state[f"outer/{part}/{name}"])
        self.arrived = True

    def _go_to(self, step: int) -> None:
        """Find what is under way after `step`, and what follows."""
        self.schedule = iter(self.strategy.exchanges(self.total_steps))
        self.under_way, self.arrived = None, False
        self.following = next(self.schedule, None)
        while self.following is not None and self.following.step <= step:
            if step < self.following.step + self.following.late:
                self.under_way = self.following
            self.following = next(self.schedule, None)
        self._sum_gradients()

    def _sum_gradients(self) -> None:
        """Sum the next step's gradients over all ranks before step `after`, and over the site then."""
        self.gradients = self.of_all if self.step < self.strategy.after else self.of_site

    def _follow(self, parameters: Any) -> None:
        """End a synchronous step: where all are is the anchor."""
        self.agreed = True
        if self.step == self.strategy.after or self.step == self.total_steps:
            self.start[:] = parameters
        self._sum_gradients()

    def _advance(self, parameters: Any) -> None:
        if not self.arrived:
            self.changes[self.under_way.part or 0].advance()

    def _send(self, parameters: Any, number: int | None) -> None:
        """Start the exchange of how far a part of the parameters has come."""
        part, change = self.parts[number or 0], self.changes[number or 0]
        if self.sent.size:
            self.sent[: part.stop - part.start] = parameters[part]
        self.arrived = False
        change.start(self.start[part] - parameters[part])

    def _receive(self, parameters: Any, number: int | None, late: bool = False) -> None:
        """Take the mean of what was sent, move the anchor, and go on from there."""
        part, change = self.parts[number or 0], self.changes[number or 0]
        length = part.stop - part.start
        mean = self.mean[:length] if self.arrived else change.finish()
        self.under_way, self.arrived = None, False
        anchor, here = self.start[part], parameters[part]
        if not library_of(mean).isfinite(mean).all():  # the same on all ranks: back to the anchor
            self.finite = False
            here[:] = anchor
            return
        self.strategy.outer.move(anchor, mean, self.kept[number or 0])
        here[:] = self.strategy.merged(anchor, here, self.sent[:length]) if late else anchor
        synchronise(anchor)
