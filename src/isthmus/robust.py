"""Robust means: what is made of the sites' own means where some of them may send anything."""

from dataclasses import dataclass

from isthmus.quantities import whole

HOW = ("median", "trimmed", "krum")


@dataclass(frozen=True)
class RobustMean:
    """What takes the place of the mean over sites, which one site alone can lead anywhere.

    how: "median" and "trimmed": of each entry, the median, or the mean but for the `faulty` least and
    the `faulty` largest values (Yin et al. 2018, arXiv:1803.01498); "krum": the one site's vector that
    is nearest to most others (Blanchard et al. 2017, arXiv:1703.02757). faulty: sites that may send
    anything. Each site counts alike, however many samples it has. ValueError for what makes no sense.
    """

    how: str = "median"
    faulty: int = 1

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ValueError(f"a robust mean must be one of {', '.join(HOW)}, not {self.how!r:.80}")
        object.__setattr__(self, "faulty", whole("faulty", self.faulty, least=1))

    @property
    def least_sites(self) -> int:
        """Of fewer, what the faulty ones send could be all that counts."""
        return 2 * self.faulty + (3 if self.how == "krum" else 1)

    @property
    def whole(self) -> bool:
        """Whether it needs all entries of all sites before it can tell any."""
        return self.how == "krum"

    def cut(self, sites: int) -> int:
        """Return how many of the values of an entry, each way, do not count."""
        return self.faulty if self.how == "trimmed" else (sites - 1) // 2

    def check_sites(self, sites: int) -> None:
        """Raise ValueError where there are too few sites."""
        if sites < self.least_sites:
            more = self.least_sites - 2 * self.faulty
            raise ValueError(
                f"{self.how} with {self.faulty} faulty takes {self.least_sites} sites at least "
                f"(2 x {self.faulty} + {more}), not {sites}; name fewer, or leave it out"
            )
