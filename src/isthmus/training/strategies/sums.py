"""The allreduces that a strategy may use, made alike on all ranks."""

from isthmus.collectives.allreduce import Allreduce


class Sums:
    """Makes allreduces of vectors of one size, as a job's settings have them.

    tiers: the communicators. size: entries of the parameters. weight: this rank's share.
    arguments: of `Allreduce`, for what crosses sites.
    """

    def __init__(self, tiers, size, weight, **arguments):
        self.tiers, self.size, self.weight, self.arguments = tiers, size, weight, arguments

    def of_all(self, **changes):
        """Return the Allreduce over all ranks: what crosses sites is compressed. Collective."""
        return Allreduce(self.tiers, self.size, weight=self.weight, **(self.arguments | changes))

    def of_site(self):
        """Return the exact Allreduce over the ranks of this rank's site. Collective in the site."""
        kept = {name: self.arguments[name] for name in ("buckets", "like") if name in self.arguments}
        return Allreduce(self.tiers.within_site(), self.size, weight=self.weight, **kept)
