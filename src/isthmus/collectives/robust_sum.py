"""Robust means of sites: exact inside a site, and at the hub not added up but held against each other.

    inside a site   as `hierarchical` does: its leader has the weighted mean of its ranks
    up to the hub   all leaders send that to the hub, compressed once, whatever tree there is: who adds
                    up for others would hide what each has sent
    at the hub      median and trimmed mean entry by entry, as chunks come; krum once all are there
    down            as `hierarchical` does: compressed once, so that all ranks end with the same bits

A site that is not finite has all be not finite, as in a sum.
"""

from typing import TYPE_CHECKING

import numpy as np

from isthmus.collectives.chunk import length
from isthmus.collectives.hierarchical import Hierarchical
from isthmus.errors import NoDeviceError
from isthmus.links.on_device import Host
from isthmus.robust import RobustMean

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers


def shared_weight(combine: RobustMean | None, tiers: "Tiers", weights: list[float]) -> float:
    """Return of which weight a rank's own is its share: of that of its site where sites are held against
    each other, else of all ranks'. ValueError where a site, of whichever rank, has none."""
    if combine is None:
        return sum(weights)
    of_site = {
        name: sum(weights[rank] for rank in tiers.cluster.ranks_of_site(name))
        for name in tiers.cluster.names
    }
    for name, weight in of_site.items():
        if not weight:
            raise ValueError(
                f"all weights of site {name!r} are 0, and a robust mean counts every site: give one of "
                "its ranks a positive weight"
            )
    return of_site[tiers.site_name]


class RobustSum(Hierarchical):
    """The robust mean of what sites make of float32[size] over their ranks, in place.

    combine: a RobustMean; all else is the base's, with every site below the hub. Raises NoDeviceError
    for vectors that live on a GPU.
    """

    def __init__(self, combine: RobustMean, **given):
        super().__init__(**given)
        if not isinstance(self.residence, Host):
            raise NoDeviceError(
                "robust means are made on CPUs, and a vector is on a GPU; leave combine out"
            )
        self.combine, self.held = combine, []
        if not self.children:
            return
        from isthmus.kernels import robust  # with Numba, which takes its time

        self.loops, sites = robust, len(self.tree.parents)
        self.network = robust.sorting_network(sites)
        lengths = [length(chunk.whole) for bucket in self.buckets for chunk in bucket]
        self.chunks = len(lengths)
        self.place = np.empty(sites * (self.size if combine.whole else max(lengths, default=0)), "f4")
        self.apart = np.zeros((sites, sites))
        if combine.whole:  # compiled before they are needed
            robust.add_square_distances(np.zeros((sites, 1), "f4"), self.apart)
        else:
            robust.trimmed_mean(np.zeros((sites, 1), "f4"), 0, self.network, np.empty(1, "f4"))

    def _rise(self, total, key):
        """As the base; krum hands on what is chosen once all of it is there."""
        if not self.children or not self.combine.whole:
            super()._rise(total, key)
            return
        chunk = self.rising.popleft()
        rows = self._rows_of(chunk, self._place_of(chunk, total)[chunk.whole])
        if not self.held:
            self.apart[:] = 0
        self.loops.add_square_distances(rows, self.apart)
        self.clock.lap("decode")
        self.held.append(chunk)
        if len(self.held) < self.chunks:
            return
        chosen = nearest(self.apart, self.combine.faulty)
        for each in self.held:
            summed = self._place_of(each, total)[each.whole]
            summed[:] = np.nan if chosen is None else self._rows(each)[chosen]
            self._hand_on(each, summed, total[each.whole], key)
        self.held.clear()

    def _add_up(self, chunk, summed):
        rows = self._rows_of(chunk, summed)
        self.loops.trimmed_mean(rows, self.combine.cut(len(rows)), self.network, summed)

    def _rows_of(self, chunk, summed):
        """Return float32[sites, entries], what each site has sent of a chunk."""
        rows = self._rows(chunk)
        rows[self.index] = summed
        for child in self.children:
            chunk.compressor.decode(chunk.inboxes[child], rows[child])
        return rows

    def _rows(self, chunk):
        """Return the place of what sites have sent of a chunk, which is one run of memory."""
        sites, entries = len(self.tree.parents), length(chunk.whole)
        first = sites * chunk.whole.start if self.combine.whole else 0
        return self.place[first : first + sites * entries].reshape(sites, entries)


def nearest(apart: np.ndarray, faulty: int) -> int | None:
    """Return the number of the vector whose n - faulty - 2 nearest others are nearest to it.

    apart: float64[n, n], squared distances above the diagonal. The first of equals; None where a
    distance is not finite.
    """
    whole = apart + apart.T
    if not np.isfinite(whole).all():
        return None
    others = [np.sort(np.delete(row, number)) for number, row in enumerate(whole)]
    scores = [row[: len(row) - 1 - faulty].sum() for row in others]
    return int(np.argmin(scores))
