"""The allreduces that a strategy may use, made alike on all ranks."""

from typing import TYPE_CHECKING, Any

from isthmus.collectives.allreduce import Allreduce
from isthmus.quantities import LEAST_WEIGHT

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers


class Sums:
    """Makes allreduces of vectors of one size, as a job's settings have them.

    tiers: the communicators. size: entries of the parameters. weight: this rank's share.
    arguments: of `Allreduce`, for what crosses sites.
    """

    def __init__(self, tiers: "Tiers", size: int, weight: float, **arguments: Any):
        self.tiers, self.size, self.arguments = tiers, size, arguments
        self.weight = max(weight, LEAST_WEIGHT)

    def of_all(self, **changes: Any) -> Allreduce:
        """Return the Allreduce over all ranks: what crosses sites is compressed. Collective."""
        return Allreduce(self.tiers, self.size, weight=self.weight, **(self.arguments | changes))

    def of_part(self, part: slice) -> Allreduce:
        """Return the Allreduce over all ranks of one slice of the vector, in one piece. Collective."""
        compressor = self.arguments.get("compressor")
        given = self.arguments | {"buckets": None, "compressor": compressor and compressor.piece(part)}
        return Allreduce(self.tiers, part.stop - part.start, weight=self.weight, **given)

    def of_site(self) -> Allreduce:
        """Return the exact Allreduce over the ranks of this rank's site. Collective in the site."""
        kept = {name: self.arguments[name] for name in ("buckets", "like") if name in self.arguments}
        return Allreduce(self.tiers.within_site(), self.size, weight=self.weight, **kept)
