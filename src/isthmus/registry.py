"""Every algorithm of the allreduce and every stage of a step, told once: others ask here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Algorithm:
    """What one algorithm of the allreduce can do.

    own: isthmus sends its messages itself; False where MPI does.
    compresses: it takes a compressor; all others send exact float32.
    apart: somewhere each site's own sum is there, before it is added to those of others.
    relays: ranks of every site add up for others, or may; False where a tree of sites says who does.
    unpaced: why its links cannot be held to the rates of a cluster file; None where they can.
    most: entries of a vector; None: any number.
    """

    name: str
    own: bool = True
    compresses: bool = False
    apart: bool = False
    relays: bool = True
    unpaced: str | None = None
    most: int | None = None

    def check_compressor(self, compressor):
        """Raise ValueError where there is a compressor that this algorithm cannot use."""
        if compressor is not None and not self.compresses:
            able = " or ".join(f'"{row.name}"' for row in ALGORITHMS.values() if row.compresses)
            raise ValueError(
                f'algorithm "{self.name}" sends exact float32: a compressor needs algorithm = {able}'
            )

    def check_size(self, size):
        """Raise ValueError where a vector of `size` entries is too long for this algorithm."""
        if self.most is not None and size > self.most:
            able = ", ".join(f'"{row.name}"' for row in ALGORITHMS.values() if row.most is None)
            raise ValueError(
                f'algorithm "{self.name}" takes vectors of {self.most:,} entries at most, not {size:,}: '
                f"MPI counts them in 31 bits; use one of {able}"
            )

    def check_apart(self):
        """Raise ValueError where sums of sites are never there one by one."""
        if not self.apart:
            able = " or ".join(f'"{row.name}"' for row in ALGORITHMS.values() if row.apart)
            raise ValueError(
                f'algorithm "{self.name}" adds up on the way, and a robust mean is made of each site\'s '
                f"own sum: it takes algorithm = {able}"
            )

    def check_sealed(self):
        """Raise ValueError where the messages of this algorithm would cross links in clear."""
        if not self.own:
            able = ", ".join(f'"{row.name}"' for row in ALGORITHMS.values() if row.own)
            raise ValueError(
                f'algorithm "{self.name}" cannot be sealed: MPI sends its messages itself; use one of '
                f"{able}"
            )

    def check_between(self, sites, sealed):
        """Raise ValueError where this algorithm may not be used between a cluster's `sites`, whose links
        are sealed or not."""
        self.check_relays(sites)
        if sealed:
            self.check_sealed()

    def check_relays(self, sites):
        """Raise ValueError where one of the cluster's `sites` would add up for others and may not."""
        barred = [site.name for site in sites if not site.relay]
        if self.relays and barred and len(sites) > 2:
            able = " or ".join(f'"{row.name}"' for row in ALGORITHMS.values() if not row.relays)
            raise ValueError(
                f'algorithm "{self.name}" has every site add up for others, and site {barred[0]!r} has '
                f"relay = false; use {able}, or take that out of the cluster file"
            )

    def check_paced(self):
        """Raise ValueError where the links of this algorithm cannot be paced."""
        if self.unpaced:
            able = " or ".join(f'"{row.name}"' for row in ALGORITHMS.values() if not row.unpaced)
            raise ValueError(
                f'algorithm "{self.name}" cannot be paced: {self.unpaced}; use {able}, or real links'
            )


_SHARED_LINK = "several ranks of a site send over a link at the same time"

ALGORITHMS = {
    row.name: row
    for row in (
        Algorithm("mpi", own=False, unpaced="MPI sends its messages itself", most=(1 << 31) - 1),
        Algorithm("ring"),
        Algorithm("tree", unpaced=_SHARED_LINK),
        Algorithm("doubling", unpaced=_SHARED_LINK),
        Algorithm("recursive", unpaced=_SHARED_LINK),
        Algorithm("hierarchical", compresses=True, apart=True, relays=False),
    )
}
"""By name, in the order in which they are listed and tried."""


def algorithm_named(name):
    """Return the Algorithm called `name`; ValueError with those that there are."""
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, not {name!r}")
    return ALGORITHMS[name]


@dataclass(frozen=True)
class Stage:
    """A part of a step's time, and how it looks wherever it is drawn.

    colour: one of Okabe and Ito's, told apart by everybody. hatch: Matplotlib's, so that no colour is
    alone. of_allreduce: whether it is a stage of the allreduce. spans: whether a rank does it, from one
    moment to another; "python" is what it takes between them, and "wait" is left over.
    """

    name: str
    colour: str
    hatch: str
    of_allreduce: bool = True
    spans: bool = True


STAGES = {
    row.name: row
    for row in (
        Stage("compute", "#0072B2", "", of_allreduce=False),
        Stage("reduce", "#56B4E9", "///"),
        Stage("encode", "#009E73", "|||"),
        Stage("copy", "#8C564B", "||"),
        Stage("links", "#E69F00", "\\\\\\"),
        Stage("decode", "#CC79A7", "xxx"),
        Stage("broadcast", "#D55E00", "---"),
        Stage("update", "#F0E442", "+++", of_allreduce=False),
        Stage("python", "#000000", "..", of_allreduce=False, spans=False),
        Stage("wait", "#999999", "//", of_allreduce=False, spans=False),
    )
}
"""By name, in the order of a step: its terms, predicted and measured."""

ALLREDUCE_STAGES = tuple(name for name, row in STAGES.items() if row.of_allreduce)
SPANS = tuple(name for name, row in STAGES.items() if row.spans)
