"""What a byte over a link counts, where something else than seconds is made small."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isthmus.cluster.cluster import Cluster, Link


def price_of(cluster: "Cluster", least: str) -> "Callable[[Link], float] | None":
    """Return Link -> what a byte over it counts; None where seconds alone do.

    least: "seconds", "money", or the name of a link, what it shares or its two sites, either way round.
    Raises ValueError for a link that does not exist.
    """
    if least == "seconds":
        return None
    if least == "money":
        return lambda link: link.price_per_byte
    called = {f"{link.target}-{link.source}": link.name for link in cluster.links if not link.shared}
    called |= {link.name: link.name for link in cluster.links}
    if least not in called:
        names = ", ".join(dict.fromkeys(link.name for link in cluster.links))
        raise ValueError(f'no link is called {least!r}; take "seconds", "money", or one of {names}')
    return lambda link: float(link.name == called[least])
