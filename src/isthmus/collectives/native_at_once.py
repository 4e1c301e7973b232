"""Sums that are one call of compiled code, from the vector to its mean.

Of a short vector Python takes longer than the links do: after a wait its code is in no cache.
"""

from isthmus.collectives import native_loop as loop
from isthmus.kernels.compiled import compiled
from isthmus.links import native_mpi

native = compiled(nogil=True, calls=(loop, native_mpi))


@native
def begin_at_once(plan, given, vector, share):
    """Begin a call of the main thread with one array, which is all that this rank gives.

    given: room for the table of it. share: the bits of the float32.
    """
    given[0, 0], given[0, 1], given[0, 2] = vector.ctypes.data, 0, len(vector)
    plan[loop.SHARE], plan[loop.BESIDE], plan[loop.FINITE] = share, 0, 1
    for stage in range(loop.REDUCE, loop.BROADCAST + 1):
        plan[stage] = 0
    plan[loop.NOW] = loop.clock(plan)


@native
def end_at_once(plan):
    """End it; return whether the sum is finite."""
    for stage in range(loop.REDUCE, loop.BROADCAST + 1):
        plan[loop.UNTOLD + stage - loop.REDUCE] += plan[stage]
    finite = plan[loop.FINITE] != 0
    plan[loop.FINITE] = 1
    return finite


@native
def exchange_at_once(plan, rows, pieces, given, total, vector, share, turn, key):
    """Overwrite `total` with the sum of what all ranks give; return whether it is finite."""
    begin_at_once(plan, given, vector, share)
    plan[loop.TOTAL], plan[loop.TURN], plan[loop.AWAITED] = total.ctypes.data, turn, 1
    loop.start(plan, rows, pieces, given, 0, len(rows), key)
    loop.finish(plan, rows, pieces, key)
    return end_at_once(plan)
