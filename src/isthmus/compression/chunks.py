"""How long a chunk is: the piece of a vector that is reduced, encoded and sent as one message."""

WIRE_NBYTES = 60 * 1024
"""Most bytes of a chunk's wire. Messages under Open MPI's eager limit for TCP (64 KiB) need no
rendezvous, which would queue behind the data that is already on a narrow link."""

FAST_BYTES_PER_SECOND = 2e9
"""More than a TCP connection carries: such a link is shared memory, or a network without that limit."""

FAST_SECONDS = 2e-4
"""Of a chunk on a fast link: what handing it over takes is little beside that."""

LONGEST_NBYTES = 1024 * 1024
"""Most bytes of a chunk's wire on a fast link: it is encoded and decoded while it is in the cache."""

SITE_ENTRIES = 64 * 1024
"""Entries of a chunk inside a site where the compressor must see the whole vector."""


def link_chunk_nbytes(links):
    """Return the most bytes of a chunk's wire over `links`, of which the slowest counts."""
    rate = min((link.bytes_per_second for link in links), default=0.0)
    if rate < FAST_BYTES_PER_SECOND:
        return WIRE_NBYTES
    return int(min(LONGEST_NBYTES, FAST_SECONDS * rate))


def chunk_entries(compressor, size, chunk_nbytes=WIRE_NBYTES):
    """Return the entries of a chunk on a link: most whole grains of at most `chunk_nbytes` of wire.

    A compressor that must see the whole vector makes one chunk of it.
    """
    if size == 0 or compressor.grain is None or compressor.wire_nbytes(size) <= chunk_nbytes:
        return max(size, 1)
    grain = compressor.grain
    return max(1, chunk_nbytes // compressor.wire_nbytes(grain)) * grain


def site_chunk_entries(compressor, size, chunk_nbytes=WIRE_NBYTES):
    """Return the entries of a chunk inside a site: the link's, cut further where that is long."""
    return min(chunk_entries(compressor, size, chunk_nbytes), SITE_ENTRIES)
