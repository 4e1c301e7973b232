"""Kernels compiled before they are needed: no compiler is part of the first allreduce."""

import numpy as np

from isthmus import kernels
from isthmus.links.on_device import Host


def load_kernels():
    """Load Numba and the kernels that every allreduce needs, before anybody waits for this rank."""
    compile_kernels(Host(), np.float32(1), [], keeps=False)


def compile_kernels(residence, share, compressor_of_bucket, keeps):
    """Run each kernel of an allreduce once, on vectors that live in `residence`.

    share: this rank's. compressor_of_bucket: (slice, Compressor or None) pairs. keeps: whether there is
    a residual.
    """
    one = residence.zeros(1, "f4")
    kernel = kernels.for_array(one)
    kernel.scale(one, share, one)
    kernel.add(one, one.copy())
    kernel.all_finite(one)
    tried = []
    for part, given in compressor_of_bucket:
        compressor = None if given is None else given.piece(part)
        if compressor is None or compressor in tried:
            continue
        tried.append(compressor)
        entries = part.stop - part.start
        size = min(entries, compressor.grain or entries)
        chunk = residence.zeros(size, "f4")
        wire = residence.zeros(compressor.wire_nbytes(size), "u1")
        kept = chunk.copy() if keeps else None
        compressor.encode(chunk, wire, kept, state=residence.zeros(compressor.state_entries(size), "f4"))
        compressor.decode(wire, chunk)
        compressor.add_decoded(wire, chunk)
