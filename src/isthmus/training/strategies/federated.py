"""Federated learning: in a round some clients learn on their own data, and the server unites them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isthmus.client import Local, Plain, local_of
from isthmus.outer import Average, Outer, outer_of
from isthmus.quantities import real, whole
from isthmus.training.strategies.client_rounds import Player
from isthmus.training.strategies.private_rounds import PrivatePlayer
from isthmus.training.strategies.strategy import Exchange, Strategy

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums

AVERAGE, PLAIN = Average(), Plain()
BY = ("chance", "speed")


@dataclass(frozen=True)
class Federated(Strategy):
    """Clients that are drawn begin at the anchor, and their weighted mean change moves it.

    A step of a job is a round. FedAvg (McMahan et al. 2017, arXiv:1602.05629) with `outer.Average()` and
    `client.Plain()`; FedAvgM, FedAdam, FedAdagrad and FedYogi (Reddi et al. 2021, arXiv:2003.00295) with
    those of `isthmus.outer`; FedProx and SCAFFOLD with those of `isthmus.client`.

    server: what is made of the mean change. local: how clients learn. Each may be a name or a table.
    participants: of a round: a share of all clients, as 0.25 or 1.0, or, as a whole number, how many.
    The change of one that is drawn with probability p counts 1 / p, so that the mean is that of all
    clients on average, however few are drawn.
    edge_rounds: the mean over a site's clients moves that site, so many times before the sites' mean
    change moves the anchor (hierarchical: Liu et al. 2020, arXiv:1905.06641).
    by: "chance", all clients have the same probability; "speed", it is in proportion to their speeds.
    ValueError for what makes no sense.
    """

    plays_clients: ClassVar[bool] = True

    server: Outer | str | dict[str, Any] = AVERAGE
    local: Local | str | dict[str, Any] = PLAIN
    participants: float = 0.25
    edge_rounds: int = 1
    by: str = "chance"

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", outer_of(self.server))
        if hasattr(self.server, "decay"):
            raise ValueError(
                "server sparse_loco goes by what the wires of a site leave out, and clients come and "
                "go; take another outer optimiser"
            )
        object.__setattr__(self, "local", local_of(self.local))
        object.__setattr__(self, "edge_rounds", whole("edge_rounds", self.edge_rounds, least=1))
        if isinstance(self.participants, float):
            share = real("participants", self.participants, most=1)
            if share <= 0:
                raise ValueError(f"participants must be a share above 0, or a number, not {share:g}")
        else:
            object.__setattr__(self, "participants", whole("participants", self.participants, least=1))
        if self.by not in BY:
            raise ValueError(f"by must be one of {', '.join(BY)}, not {self.by!r:.80}")
        if self.edge_rounds > 1 and self.local.controls:  # type: ignore[union-attr]
            raise ValueError(
                "scaffold has control variates of all clients, and no site has them between two "
                f"exchanges; take edge_rounds = 1, not {self.edge_rounds}, or another local"
            )

    def exchanges(self, steps: float) -> Iterator[Exchange]:
        # "bucketed" says that nothing is summed inside sites beside the exchange.
        vectors = 2.0 if self.local.controls else 1.0  # type: ignore[union-attr]
        number = self.edge_rounds
        while number < steps:
            yield Exchange(number, vectors, bucketed=self.edge_rounds == 1)
            number += self.edge_rounds
        if 0 < steps < math.inf:
            yield Exchange(int(steps), vectors, bucketed=self.edge_rounds == 1)

    def join(self, sums: "Sums", steps: float) -> Player:
        if sums.protection is not None:
            return PrivatePlayer(sums, self, steps)
        return Player(sums, self, steps)

    def number_of(self, clients: int) -> int:
        """Return how many of so many clients a round wants; ValueError where there are not as many."""
        if isinstance(self.participants, float):
            return max(1, round(self.participants * clients))
        if self.participants > clients:
            raise ValueError(
                f"participants must be at most {clients}, the number of clients, not {self.participants}"
            )
        return self.participants
