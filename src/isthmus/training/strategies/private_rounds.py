"""Rounds of clients of each of whom little is told: drawn in secret, clipped, and with noise.

Each client counts alike, and takes part with the same probability q whoever else does. A rank adds up
clipped changes over q and the number of its own clients, which is what is expected, whoever was there.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.training.strategies.client_rounds import KEPT, Player, Rounds

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums


class PrivatePlayer(Player):
    """One rank's part in such rounds. See `Player` for the rest."""

    def __init__(self, sums: "Sums", strategy: Rounds, steps: float):
        super().__init__(sums, strategy, steps)
        assert sums.protection is not None
        self.protection = sums.protection
        self.share = 1 / (self.protection.probability * max(1, len(self.clients.mine)))

    def draw(self) -> list[int]:
        kept, mine = self.protection, self.clients.mine
        places = kept.sampling.sampled(self.step, len(mine), kept.probability)
        self.share_of = {int(mine[place]): self.share for place in places}
        self.total[:] = 0
        self.total[KEPT] = 1  # of all ranks together: nobody is told how many there were
        return list(self.share_of)

    def leave(self, number: int, parameters: Any, travelled: float) -> bool:
        """Add what the client has learnt, clipped; nothing where it is not finite: nobody is told."""
        np.subtract(self.place, parameters, out=self.change)
        self.protection.clipped(self.change)
        self.change *= np.float32(self.share)
        self.total[:KEPT] += self.change
        return True

    def _send(self, parameters: Any) -> None:
        self.protection.add_noise(self.total[:KEPT], self.step, self.share)
        super()._send(parameters)
