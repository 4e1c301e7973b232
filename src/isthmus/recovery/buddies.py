"""Residuals of leaders, copied to the second rank of their site, which leads the site after them.

A residual of some steps ago is not what the leader had: what was sent since is sent again in part. A
copy counts once all have agreed on what is done after its step.
"""

from typing import TYPE_CHECKING

import numpy as np

from isthmus.devices import to_host
from isthmus.recovery.handover import MEMORY

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers
    from isthmus.training.loop import Training

TAG = 79


class Buddies:
    """What this rank has of its leader's residual.

    copies: name -> array, as it was after `step`; empty where it has none. sent_nbytes: by this rank.
    """

    def __init__(self, tiers: "Tiers", training: "Training"):
        self.tiers, self.training = tiers, training
        self.step: int | None = None
        self.copies: dict[str, np.ndarray] = {}
        self.sent_nbytes = 0
        self._new: tuple[int, dict[str, np.ndarray]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of a copy that this rank sends."""
        leads = self.tiers.site.rank == 0 and self.tiers.site.size > 1
        return sum(array.nbytes for array in self._residuals().values()) if leads else 0

    def copy(self) -> None:
        """Copy the residual, as it is after this step; it counts once all agree that it is there."""
        site, new = self.tiers.site, {}
        for name, array in self._residuals().items() if site.size > 1 else ():
            if site.rank == 0:
                site.Send(np.array([array.size]), 1, TAG)
                site.Send(array, 1, TAG)
                self.sent_nbytes += array.nbytes
            elif site.rank == 1:
                size = np.empty(1, np.int64)
                site.Recv(size, 0, TAG)
                new[name] = np.empty(int(size[0]), array.dtype)
                site.Recv(new[name], 0, TAG)
        self._new = self.training.state.step, new

    def keep(self) -> None:
        """Take what was copied last in the place of what was copied before."""
        if self._new is not None:
            (self.step, self.copies), self._new = self._new, None

    def _residuals(self):
        arrays = self.training.arrays()
        return {
            name: np.array(to_host(arrays[name])) for name in sorted(arrays) if name.endswith(MEMORY)
        }
