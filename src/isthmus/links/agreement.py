"""What the ranks of a communicator decide together, so that none waits for one that has failed."""

import numpy as np

from isthmus import errors, json_text
from isthmus.errors import IsthmusError, SealError, ranks_in_words
from isthmus.links.world import all_gather, all_gather_rows, broadcast


def require(comm, holds, error, message):
    """Raise `error(message)` on every rank of `comm` if `holds` is false on any of them."""
    bad = ranks_where(comm, not holds)
    if bad:
        _raise_everywhere(
            error, message if len(bad) == comm.size else f"{message} (on {ranks_in_words(bad)})", bad
        )


def together(comm, make):
    """Return `make()`; if it raises an IsthmusError on any rank, every rank raises the first.

    After a SealError nothing can be told to others any more: it is raised at once.
    """
    problem, result = None, None
    try:
        result = make()
    except SealError:
        raise
    except IsthmusError as caught:
        problem = caught
    raise_first(comm, problem)
    return result


def raise_first(comm, problem):
    """Raise on every rank of `comm` the first rank's `problem`, where any has one. Collective.

    problem: an IsthmusError or a ValueError; None on a rank where all is well.
    """
    bad = ranks_where(comm, problem is not None)
    if bad:
        first = bad[0]
        told = broadcast_json(comm, problem and [type(problem).__name__, str(problem)], first)
        everyone = len(bad) == comm.size
        _raise_everywhere(
            getattr(errors, told[0], ValueError),
            told[1] if everyone or comm.size == 1 else f"{told[1]} (on {ranks_in_words(bad)})",
            bad,
        )


def from_root(comm, make, root=0):
    """Return on every rank the JSON value that `make()` gives on `root`, or raise its error."""
    told = None
    if comm.rank == root:
        try:
            told = {"value": make()}
        except SealError:
            raise
        except IsthmusError as problem:
            told = {"error": type(problem).__name__, "message": str(problem)}
    told = broadcast_json(comm, told, root)
    if "error" in told:
        _raise_everywhere(getattr(errors, told["error"]), told["message"], [root])
    return told["value"]


def broadcast_json(comm, value, root=0):
    """Return the JSON `value` of `root` on every rank; it travels as a length and bytes.

    TypeError on every rank if it has no place in JSON.
    """
    text, problem = _text(value) if comm.rank == root else (b"", None)
    nbytes = np.array([len(text)], np.int64)
    broadcast(comm, nbytes, root)
    if not nbytes[0]:
        raise problem or TypeError(f"what rank {root} wants to tell has no place in JSON")
    buffer = np.frombuffer(text, np.uint8).copy() if comm.rank == root else np.empty(nbytes[0], np.uint8)
    broadcast(comm, buffer, root)
    return json_text.loads(buffer.tobytes(), exact=True)


def gather_json(comm, value):
    """Return on every rank the list of each rank's JSON `value`, in rank order.

    TypeError on every rank if that of any has no place in JSON.
    """
    text, problem = _text(value)
    everyone = all_gather_rows(comm, np.frombuffer(text, np.uint8))
    if wrong := [rank for rank, each in enumerate(everyone) if not each.size]:
        raise problem or TypeError(f"what {ranks_in_words(wrong)} wants to tell has no place in JSON")
    return [json_text.loads(each.tobytes(), exact=True) for each in everyone]


def ranks_where(comm, holds):
    """Return the ranks of `comm` where `holds` is true, on every rank. Collective."""
    return np.flatnonzero(np.concatenate(all_gather(comm, np.array([bool(holds)])))).tolist()


def _text(value):
    """Return `value` as JSON in bytes, and None; or b"" and the TypeError why it cannot be."""
    try:
        return json_text.dumps(value, exact=True).encode(), None
    except (TypeError, ValueError, RecursionError) as problem:
        return b"", TypeError(str(problem))


def _raise_everywhere(kind, message, ranks):
    error = kind(message)
    if isinstance(error, IsthmusError):
        error.everywhere = True
        error.ranks = ranks
    raise error


def ranks_on_host(comm):
    """Return the ranks of `comm` on this rank's host, itself among them, in order. Collective.

    By the hosts' names: under Slurm's nodes on one machine, Open MPI's ranks disagree about whom they
    share memory with, and its MPI_Comm_split_type never ends.
    """
    from mpi4py import MPI  # not at the top: `isthmus check` says so where MPI cannot be loaded

    hosts = gather_json(comm, MPI.Get_processor_name())
    return [rank for rank, host in enumerate(hosts) if host == hosts[comm.rank]]
