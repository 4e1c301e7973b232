"""Rounds: sites go their own ways, and now and then exchange how far each has come from the anchor.

The anchor is what all sites have in common. A site sends anchor - parameters, whole or in parts, the
mean over sites goes to the outer optimiser, which moves the anchor, and the strategy says how a site
goes on from there. Inside a site gradients are averaged exactly in every step, so that a site is one
worker with all its ranks' samples.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from isthmus.devices import library_of, set_from_host, synchronise
from isthmus.outer import Outer, check_feedback
from isthmus.training.strategies.strategy import Exchange, Member
from isthmus.vectors import part_bounds

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums

Act = Callable[[Any], None]


class Rounds(Protocol):
    """What a strategy says of its rounds."""

    @property
    def late(self) -> int:
        """Steps that are made while an exchange is under way."""

    def exchanges(self, steps: float) -> Iterator[Exchange]:
        """Yield the exchanges of a run of `steps` steps, which may be infinite, in order."""

    def merged(self, anchor: Any, here: Any, sent: Any) -> Any:
        """Return with what a site goes on when it is given back what it has sent, or a fragment.

        anchor: where it has just moved to. here: the site's parameters now. sent: those when it sent.
        """


class Traveller(Member):
    """One rank's part in a strategy of rounds.

    fragments: slices of like size that are exchanged on their own. after: steps that are synchronous
    first. One exchange at most is under way; `state` takes its mean, which is why that is collective.
    """

    def __init__(
        self, sums: "Sums", strategy: Rounds, steps: float, outer: Outer, fragments: int, after: int
    ):
        self.strategy, self.total_steps = strategy, steps
        self.outer, self.after, self.protection = outer, after, sums.protection
        told = sums.arguments
        check_feedback(outer, bool(told.get("compressor") and told.get("error_feedback", True)))
        self.decay = getattr(outer, "decay", None)  # of what wires leave out
        self.parts = [slice(*ends) for ends in pairwise(part_bounds(sums.size, fragments))]
        self.of_all = [sums.of_all()] if after else []
        self.of_site = sums.of_site()
        self.changes = [sums.of_part(part) for part in self.parts]
        super().__init__(*self.of_all, self.of_site, *self.changes)
        self.under_way: Exchange | None
        self.following: Exchange | None
        self.arrived: bool  # whether its mean is in `mean`
        self._go_to(0)

    def begin(self, parameters: Any) -> None:
        self.start = parameters.copy()
        self.kept = [self.outer.begin(self.start[part]) for part in self.parts]
        longest = max(part.stop - part.start for part in self.parts) if self.strategy.late else 0
        self.mean, self.sent = self.start[:longest] * 0, self.start[:longest] * 0

    def anchor(self, parameters: Any) -> Any:
        return self.start if self.step > self.after else parameters

    def acts(self) -> list[Act]:
        super().acts()
        self.finite = True
        if (exchange := self.under_way) is not None:
            if self.step < exchange.step + exchange.late:
                return [self._advance]
            return [partial(self._receive, exchange.part or 0, self.strategy.merged)]
        exchange = self.following
        self.agreed = False
        if exchange is None or self.step < exchange.step:
            return []
        self.following = next(self.schedule, None)
        if exchange.bucketed:
            return [self._follow]
        if exchange.late:
            self.under_way = exchange
            return [partial(self._send, exchange.part or 0)]
        if exchange.part is not None:
            return self._both(exchange.part, self.strategy.merged)
        self.agreed = True
        return [
            act for part in range(len(self.parts)) for act in self._both(part, lambda anchor, *_: anchor)
        ]

    def end(self, parameters: Any) -> None:
        """Exchange all that was not exchanged yet, where no run's length has told when. Collective."""
        if self.under_way is not None:
            self._receive(self.under_way.part or 0, self.strategy.merged, parameters)
        for part in range(len(self.parts)):
            for act in self._both(part, lambda anchor, *_: anchor):
                act(parameters)
        self.agreed = True

    def state(self) -> dict[str, Any]:
        """Return all that the next steps depend on. Collective while an exchange is under way."""
        if self.under_way is not None and not self.arrived:
            mean = self.changes[self.under_way.part or 0].finish()
            self.mean[: mean.size], self.arrived = mean, True
        return super().state() | self._arrays()

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._go_to(self.step)
        for name, array in self._arrays().items():
            set_from_host(array, state[name])
        self.arrived = True

    def _arrays(self) -> dict[str, Any]:
        named = {"anchor": self.start, "mean": self.mean, "sent": self.sent}
        for part, arrays in enumerate(self.kept):
            named |= {f"outer/{part}/{name}": array for name, array in arrays.items()}
        return named

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
        """Sum the next step's gradients over all ranks up to step `after`, and over the site then."""
        self.gradients = self.of_all[0] if self.step < self.after else self.of_site

    def _follow(self, parameters: Any) -> None:
        """End a synchronous step: where all are is the anchor."""
        self.agreed = True
        self.start[:] = parameters
        self._sum_gradients()

    def _both(self, number: int, merged: Callable[..., Any]) -> list[Act]:
        return [partial(self._send, number), partial(self._receive, number, merged)]

    def _advance(self, parameters: Any) -> None:
        """Take what has arrived, so that the hub of several sites does not wait until it is due."""
        if self.under_way is not None and not self.arrived:
            self.changes[self.under_way.part or 0].advance()

    def _send(self, number: int, parameters: Any) -> None:
        """Start the exchange of how far a part of the parameters has come."""
        part = self.parts[number]
        if self.sent.size:
            self.sent[: part.stop - part.start] = parameters[part]
        self.arrived = False
        if self.decay is not None:
            self.changes[number].decay(self.decay)
        change = self.start[part] - parameters[part]
        if self.protection is not None:  # all ranks of a site do the same, to the bit
            self.protection.add_noise(self.protection.clipped(change), self.step)
        self.changes[number].start(change)
        if self.strategy.late:
            self.changes[number].advance()  # the links have those steps to carry all of it

    def _receive(self, number: int, merged: Callable[..., Any], parameters: Any) -> None:
        """Take the mean of what was sent, move the anchor, and go on from there."""
        part = self.parts[number]
        length = part.stop - part.start
        mean = self.mean[:length] if self.arrived else self.changes[number].finish()
        self.under_way, self.arrived = None, False
        anchor, here = self.start[part], parameters[part]
        if library_of(mean).isfinite(mean).all():
            self.outer.move(anchor, mean, self.kept[number])
            here[:] = merged(anchor, here, self.sent[:length])
        else:  # on all ranks: back to the anchor, without what was learnt since
            self.finite = False
            here[:] = anchor
        synchronise(anchor)
