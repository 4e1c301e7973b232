"""Whether MPI's own allreduce gives every rank the same bits: it promises that to nobody."""

from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from isthmus.collectives.allreduce import Allreduce
from isthmus.links.agreement import gather_json

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers

VECTORS, TIMES = 3, 2
"""How many vectors are summed, and how often each."""


def sums_alike(tiers: "Tiers", size: int) -> bool:
    """Return whether algorithm "mpi" gives all ranks the same bits of a sum of `size` entries, and the
    same when it is asked again. Collective.

    Asked with vectors of Gaussian entries over many powers of ten, where each order of adding rounds
    to other bits.
    """
    allreduce, found = Allreduce(tiers, size, "mpi"), []
    for number in range(VECTORS):
        draw = np.random.Generator(np.random.PCG64([number, tiers.world.rank]))
        vector = draw.standard_normal(size, np.float32)
        vector *= np.float32(10.0) ** draw.uniform(-4, 4, size).astype(np.float32)
        found.append([sha256(allreduce(vector).tobytes()).hexdigest() for _ in range(TIMES)])
    everyone = gather_json(tiers.world, found)
    return all(
        len({bits for rank in everyone for bits in rank[number]}) == 1 for number in range(VECTORS)
    )
