"""MPI as compiled code calls it: its functions by their addresses, its handles as numbers, no GIL.

The functions are those that mpi4py itself calls, so its handles are right for them: pointers in Open
MPI, ints in MPICH and Intel MPI. An address is an argument, not a constant: so what is compiled can be
kept from one process to the next.
"""

import ctypes
import functools

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

FUNCTIONS = ("MPI_Isend", "MPI_Irecv", "MPI_Test", "clock_gettime", "nanosleep")
NUMBER, WORD = ir.IntType(32), ir.IntType(64)  # what C takes: an int; a pointer or a handle


@functools.cache
def addresses():
    """Return the address of each of the FUNCTIONS; LookupError says why it cannot be."""
    from mpi4py import MPI

    if config.DISABLE_JIT:
        raise LookupError("NUMBA_DISABLE_JIT is set")
    if MPI._sizeof(MPI.COMM_SELF) not in (4, 8):
        raise LookupError(f"its handles have {MPI._sizeof(MPI.COMM_SELF)} bytes")
    return tuple(map(address, FUNCTIONS))


def address(name):
    """Return the address of a function of MPI's or of the system's; LookupError where there is none."""
    from mpi4py import MPI

    try:
        found = getattr(ctypes.CDLL(MPI.__file__ if name.startswith("MPI") else None), name)
    except (OSError, AttributeError) as problem:
        raise LookupError(str(problem)) from None
    return ctypes.cast(found, ctypes.c_void_p).value


def why_not():
    """Return why compiled code cannot call MPI here, or None where it can."""
    try:
        addresses()
    except LookupError as problem:
        return str(problem)
    return None


def handle(thing):
    """Return the handle of an object of mpi4py's as a number."""
    from mpi4py import MPI

    return ctypes.c_int64(MPI._handleof(thing)).value


def no_requests(count):
    """Return room for `count` requests, uint8[count, bytes of one], none of which is under way."""
    from mpi4py import MPI

    nbytes = MPI._sizeof(MPI.REQUEST_NULL)
    none = np.frombuffer(handle(MPI.REQUEST_NULL).to_bytes(8, "little", signed=True), np.uint8)
    return np.tile(none[:nbytes], (count, 1))


def room_for_status():
    """Return room for one status."""
    from mpi4py import MPI

    return np.zeros(MPI._sizeof(MPI.Status), np.uint8)


def _call(kinds):
    """Return the signature and the code of a call of the C function at the address that comes first."""
    kind_of = {NUMBER: types.int32, WORD: types.int64}

    def codegen(_, builder, __, arguments):
        function = ir.FunctionType(NUMBER, kinds).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], function), arguments[1:])

    return types.int32(types.int64, *(kind_of[kind] for kind in kinds)), codegen


@intrinsic
def post(_, function, buffer, count, datatype, peer, tag, comm, request):
    """Call MPI_Isend or MPI_Irecv, of which `function` is the address; return the error code."""
    return _call([WORD, NUMBER, WORD, NUMBER, NUMBER, WORD, WORD])


@intrinsic
def ask(_, function, request, flag, status):
    """Call MPI_Test; return the error code."""
    return _call([WORD, WORD, WORD])


@intrinsic
def sum_in_place(_, function, in_place, total, count, datatype, operation, comm):
    """Call MPI_Allreduce; return the error code."""
    return _call([WORD, WORD, NUMBER, WORD, WORD, WORD])


@intrinsic
def read_clock(_, function, clock, where):
    """Call clock_gettime."""
    return _call([NUMBER, WORD])


@intrinsic
def sleep(_, function, how_long, left):
    """Call nanosleep."""
    return _call([WORD, WORD])


@intrinsic
def encode_by(_, function, vector, kept, wire, size, block, key, first):
    """Call an `encode` of `isthmus.compression.by_address`."""
    return _call([WORD] * 7)


@intrinsic
def decode_by(_, function, wire, vector, size, block):
    """Call a `decode` or an `add` of `isthmus.compression.by_address`."""
    return _call([WORD] * 4)


@intrinsic
def add_word(_, address, number):
    """Add to the int64 at an address."""

    def codegen(_, builder, __, arguments):
        where = builder.inttoptr(arguments[0], WORD.as_pointer())
        builder.store(builder.add(builder.load(where), arguments[1]), where)
        return ir.Constant(NUMBER, 0)

    return types.int32(types.int64, types.int64), codegen
