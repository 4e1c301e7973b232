"""Which algorithm MPI uses for its own allreduce: asked of MPI, never guessed."""

import ctypes

from mpi4py import MPI

OPEN_MPI = {
    1: "basic linear",
    2: "nonoverlapping",
    3: "recursive doubling",
    4: "ring",
    5: "segmented ring",
    6: "rabenseifner",
}


def allreduce_algorithm():
    """Return the name of the allreduce that Open MPI's tuned component was told to use, or "unknown".

    MPI's tools interface says what is set. Where nothing is, Open MPI picks by size and ranks and tells
    nobody; where its component han is preferred and ranks are on several machines, han may stand before.
    """
    if _variable("coll_tuned_use_dynamic_rules") != 1 or (_variable("coll_han_priority") or 0) > (
        _variable("coll_tuned_priority") or 0
    ):
        return "unknown"
    return OPEN_MPI.get(_variable("coll_tuned_allreduce_algorithm"), "unknown")


def _variable(name):
    """Return the integer that MPI's control variable holds, or None where there is no such one."""
    library, ignored, index, value = ctypes.CDLL(MPI.__file__), *(ctypes.c_int() for _ in range(3))
    try:
        level = MPI.Query_thread()  # Open MPI takes what is asked for here for all of MPI's
        if library.MPI_T_init_thread(level, ctypes.byref(ignored)):
            return None
        try:
            if library.MPI_T_cvar_get_index(name.encode(), ctypes.byref(index)):
                return None
            handle = ctypes.c_void_p()
            if library.MPI_T_cvar_handle_alloc(index, None, ctypes.byref(handle), ctypes.byref(ignored)):
                return None
            known = library.MPI_T_cvar_read(handle, ctypes.byref(value)) == 0
            library.MPI_T_cvar_handle_free(ctypes.byref(handle))
            return value.value if known else None
        finally:
            library.MPI_T_finalize()
    except AttributeError:  # an MPI of before version 3
        return None
