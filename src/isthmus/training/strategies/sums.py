"""The allreduces that a strategy may use, made alike on all ranks."""

from typing import TYPE_CHECKING, Any

from isthmus.collectives.allreduce import Allreduce
from isthmus.privacy.protection import Protection
from isthmus.quantities import LEAST_WEIGHT
from isthmus.training.clients import Clients

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers


class Sums:
    """Makes allreduces of vectors of one size, as a job's settings have them.

    tiers: the communicators. size: entries of the parameters. weight: this rank's share; clients: whom
    it plays, whose weights that is the sum of, for strategies that play clients. protection: what is
    kept of clients, or of this rank's site; None: nothing.
    arguments: of `Allreduce`, for what crosses sites.
    """

    def __init__(
        self,
        tiers: "Tiers",
        size: int,
        weight: float,
        clients: Clients | None = None,
        protection: Protection | None = None,
        **arguments: Any,
    ):
        self.tiers, self.size, self.arguments = tiers, size, arguments
        self.weight, self.clients = max(weight, LEAST_WEIGHT), clients
        self.protection = protection

    def of_all(self, extra: int = 0, **changes: Any) -> Allreduce:
        """Return the Allreduce over all ranks: what crosses sites is compressed. Collective.

        extra: numbers behind the vector, which travel exactly, and then the vector in one piece.
        """
        given = self.arguments | changes
        if extra:
            given |= {
                "buckets": [slice(0, self.size), slice(self.size, self.size + extra)],
                "compressor": [given.get("compressor"), None],
            }
        return Allreduce(self.tiers, self.size + extra, weight=self.weight, **given)

    def of_part(self, part: slice) -> Allreduce:
        """Return the Allreduce over all ranks of one slice of the vector, in one piece. Collective."""
        compressor = self.arguments.get("compressor")
        given = self.arguments | {"buckets": None, "compressor": compressor and compressor.piece(part)}
        return Allreduce(self.tiers, part.stop - part.start, weight=self.weight, **given)

    def of_site(self, extra: int = 0) -> Allreduce:
        """Return the exact Allreduce over the ranks of this rank's site. Collective in the site.

        extra: numbers behind the vector.
        """
        names = ("like",) if extra else ("buckets", "like")
        kept = {name: self.arguments[name] for name in names if name in self.arguments}
        return Allreduce(self.tiers.within_site(), self.size + extra, weight=self.weight, **kept)
