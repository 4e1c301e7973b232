"""Rounds of clients: a rank plays its own one after another, with one model in memory.

What a rank adds up is w / (p W) (anchor - parameters) over its clients of the round: w is a client's
weight, p the probability with which it was drawn, and W the weight of all the rank's clients, which is
the rank's own among ranks. Two numbers travel behind it: the shares w / (p W) of clients that are in the
sum, and of those that were dropped because their change was not finite; the former take over the shares
of the latter. What crosses links is compressed by the leader of a site, whose error feedback is the
site's own: it takes part in every exchange, also where none of its clients does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from isthmus.devices import library_of, set_from_host, synchronise
from isthmus.training.strategies.strategy import Member

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums

KEPT, LOST = -2, -1  # where the shares are, behind the change


class Rounds(Protocol):
    """What a strategy says of its rounds."""

    @property
    def server(self) -> Any:
        """What is made of the mean change: of `isthmus.outer`."""

    @property
    def local(self) -> Any:
        """How clients learn: of `isthmus.client`."""

    @property
    def edge_rounds(self) -> int:
        """How often a site's clients move the site before the sites' mean change moves the anchor."""

    @property
    def by(self) -> str:
        """How clients are drawn."""

    def number_of(self, clients: int) -> int:
        """Return how many of so many clients a round wants."""


class Player(Member):
    """One rank's part in rounds of clients.

    In each round the caller asks whom to play (`draw`), and for each of them, in that order, sets the
    parameters out (`visit`), makes steps with `correct`ed gradients, and brings the parameters home
    (`leave`); then come the acts. dropped: (round, client) of all whose change was not finite.
    """

    def __init__(self, sums: "Sums", strategy: Rounds, steps: float):
        if sums.clients is None:
            raise ValueError("a federated strategy plays clients: give Sums(..., clients=Clients(...))")
        self.strategy, self.clients, self.total_steps = strategy, sums.clients, steps
        self.wanted = strategy.number_of(self.clients.count)
        self.several = strategy.edge_rounds > 1
        self.changes = sums.of_site(extra=2) if self.several else sums.of_all(extra=2)
        self.between = [sums.of_all(buckets=None)] if self.several else []
        self.of_controls = [sums.of_all(buckets=None)] if strategy.local.controls else []
        super().__init__(self.changes, *self.between, *self.of_controls)
        weights, mine = self.clients.weights, self.clients.mine
        self.weight = float(weights[mine].sum())
        self.place_of = {int(number): place for place, number in enumerate(mine)}
        self.share_of: dict[int, float] = {}  # of this rank's clients in the round
        self.dropped: list[tuple[int, int]] = []

    def begin(self, parameters: Any) -> None:
        library, size, dtype = library_of(parameters), parameters.size, parameters.dtype
        self.start = parameters.copy()
        self.place = parameters.copy() if self.several else self.start
        self.kept = self.strategy.server.begin(self.start)
        self.total, self.change = library.zeros(size + 2, dtype), library.empty(size, dtype)
        if self.of_controls:
            self.control, self.control_change = library.zeros(size, dtype), library.zeros(size, dtype)
            self.controls = library.zeros((len(self.place_of), size), dtype)

    def anchor(self, parameters: Any) -> Any:
        return self.start

    def draw(self) -> list[int]:
        """Return the numbers of this rank's clients of the round that comes, ascending."""
        clients = self.clients
        drawn, chances = clients.drawn(self.step, self.wanted, self.strategy.by)
        weights, rare = clients.weights, 1.0  # the weight of all by that of those who can be had
        if clients.available is not None:
            scope = clients.of_site if self.several else np.arange(clients.count)
            there = np.intersect1d(scope, clients.at_hand(self.step), assume_unique=True)
            rare = weights[scope].sum() / (weights[there].sum() or 1.0)
        self.share_of = {
            number: rare * weights[number] / chance / self.weight
            for number, chance in zip(drawn.tolist(), chances.tolist())
            if number in self.place_of and self.weight
        }
        self.total[:] = 0
        if self.of_controls:
            self.control_change[:] = 0
        return list(self.share_of)

    def visit(self, number: int, parameters: Any) -> None:
        """Have client `number` begin."""
        parameters[:] = self.place
        if self.of_controls:
            self.shift = self.control - self.controls[self.place_of[number]]

    def correct(self, gradient: Any, parameters: Any) -> None:
        """Change the gradient of the client's next step in place."""
        self.strategy.local.correct(gradient, parameters, self.place)
        if self.of_controls:
            gradient += self.shift

    def leave(self, number: int, parameters: Any, travelled: float) -> bool:
        """Add what the client has learnt; return False where it is not finite, and is dropped.

        travelled: the sum of the learning rates of its steps.
        """
        change, share, number_type = self.change, self.share_of[number], self.change.dtype.type
        library_of(change).subtract(self.place, parameters, out=change)
        finite = _is_finite(change)
        if finite and self.of_controls:
            moved = change / number_type(travelled)
            moved -= self.control
            if finite := _is_finite(moved):
                self.controls[self.place_of[number]] += moved
                moved *= number_type(self.clients.weights[number] / self.weight)
                self.control_change += moved
        if not finite:
            self.total[LOST] += number_type(share)
            self.dropped.append((self.step + 1, number))
            return False
        self.total[KEPT] += number_type(share)
        change *= number_type(share)
        self.total[:KEPT] += change
        return True

    def acts(self) -> list[Callable[[Any], None]]:
        super().acts()
        self.finite = True
        acts: list[Callable[[Any], None]] = [self._send, self._receive]
        if self.of_controls:
            acts += [self._send_controls, self._receive_controls]
        if self.several:
            self.agreed = self.step % self.strategy.edge_rounds == 0 or self.step == self.total_steps
            acts += [self._send_between, self._receive_between] * self.agreed
        return acts

    def state(self) -> dict[str, Any]:
        return super().state() | self._arrays()

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        for name, array in self._arrays().items():
            set_from_host(array, state[name])

    def _arrays(self) -> dict[str, Any]:
        named = {"anchor": self.start} | ({"place": self.place} if self.several else {})
        if self.of_controls:
            named |= {"control": self.control, "controls": self.controls.reshape(-1)}
        return named | {f"outer/{name}": array for name, array in self.kept.items()}

    def _send(self, parameters: Any) -> None:
        synchronise(self.total)
        for bucket in self.changes.buckets:
            self.changes.start(self.total[bucket])

    def _receive(self, parameters: Any) -> None:
        """Move by the mean change of the clients: the anchor, or the place of the site."""
        mean = self.changes.finish()
        kept, lost, change = float(mean[KEPT]), float(mean[LOST]), mean[:KEPT]
        if kept and lost:
            change *= change.dtype.type((kept + lost) / kept)
        finite = bool(library_of(change).isfinite(change).all()) and bool(kept or not lost)
        if finite and kept and self.several:
            self.place -= change
        elif finite and kept:
            self.strategy.server.move(self.place, change, self.kept)
        self.finite = finite or self.several  # a site whose clients are all lost stays where it is
        parameters[:] = self.place
        synchronise(parameters)

    def _send_controls(self, parameters: Any) -> None:
        synchronise(self.control_change)
        self.of_controls[0].start(self.control_change)

    def _receive_controls(self, parameters: Any) -> None:
        mean = self.of_controls[0].finish()
        if library_of(mean).isfinite(mean).all():
            self.control += mean
        else:
            self.finite = False

    def _send_between(self, parameters: Any) -> None:
        self.between[0].start(self.start - self.place)

    def _receive_between(self, parameters: Any) -> None:
        """Move the anchor by how far sites have come on average, and go on from there."""
        mean = self.between[0].finish()
        if library_of(mean).isfinite(mean).all():
            self.strategy.server.move(self.start, mean, self.kept)
        else:
            self.finite = False
        self.place[:] = self.start
        parameters[:] = self.start
        synchronise(parameters)


def _is_finite(vector: Any) -> bool:
    """Whether no entry is NaN or infinite: mostly told by one product, which may overflow."""
    return bool(np.isfinite(float(vector @ vector))) or bool(library_of(vector).isfinite(vector).all())
