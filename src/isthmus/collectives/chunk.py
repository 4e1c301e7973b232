"""A chunk of a vector on its way over the tree of sites."""

from dataclasses import dataclass

import numpy as np

from isthmus.compression.compressor import Compressor


@dataclass
class Encoded:
    """What a leader encodes of a chunk: a uint8 wire, and what the compressor keeps of it, before a
    call and after it, in turns."""

    wire: np.ndarray | None
    residuals: tuple = (None, None)
    states: tuple = (None, None)


@dataclass
class Chunk:
    """A piece of the vector that is encoded as one wire, and what it needs on its way.

    whole, pieces: slices of the vector; inside a site it travels in pieces. compressor: of its bucket.
    inboxes: other leader -> uint8, its wire. own: what goes up, or is the sum of all at a lone hub's;
    told: the sum of all at one of two leaders at the top. Off the leaders there is none of these. plain:
    two sites exchange the vector itself, and each adds what came where its own is: `own` has no wire.
    from_below, from_above, sent: requests under way.
    """

    whole: slice
    pieces: list[slice]
    compressor: Compressor
    inboxes: dict[int, np.ndarray]
    wire_nbytes: int
    plain: bool = False
    own: Encoded | None = None
    told: Encoded | None = None
    from_below: list = ()
    from_above: list = ()
    sent: list = ()
