"""What a failure says: one block for the whole job, also where many ranks fail at once."""

import signal
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.errors import IsthmusError, MachineError, ranks_in_words
from isthmus.json_text import dumps, loads

TAG = 79
SECONDS_FOR_OTHERS = 1.0
SECONDS_FOR_THE_FIRST = 10.0
LONGEST = 1000  # characters of a message: what travels stays short enough to be sent without asking
GO_ON = "a run with checkpoints goes on with `isthmus train RUN.toml --resume FOLDER`"
LOST = "its process is gone"
LOST_LINE = (
    f"{LOST}: killed from outside, or by a crash; look into `dmesg` on its host for the "
    "kernel's out-of-memory killer"
)
STALL = "a step that does not end"
REPORT = "run again with `isthmus --debug ...` and report the traceback"


@dataclass(frozen=True)
class Place:
    """Where a rank was when its run failed: `problem.place` of the exception that ends the run.

    hosts, sites, tiers: of each cluster rank. folder: the run's, or None before it has one.
    checkpoint: the step of the last one, or None. home: the cluster rank of the job's rank 0. seen: the
    ranks whose processes are seen from here; of them, gone: those that were killed -> their step and
    phase, signalled: those that a signal told to end, and failing: those that tell an error. job: the
    ranks that were started together; empty: all.
    """

    rank: int
    step: int
    phase: str
    hosts: tuple
    sites: tuple
    tiers: tuple
    folder: Path | None
    checkpoint: int | None
    home: int = 0
    seen: tuple = ()
    gone: dict = field(default_factory=dict)
    signalled: tuple = ()
    failing: tuple = ()
    job: tuple = ()


def last_words(problem, comm, speaks):
    """Return the lines with which this process ends its job; none where another speaks for it.

    comm: all ranks of the job, or None where MPI was not started. speaks: whether this process prints
    what all ranks have to say. An exception that not all ranks raise together is told by the first
    rank that has one.
    """
    failure, place = failure_of(problem), getattr(problem, "place", None)
    if comm is not None and comm.size > 1 and not getattr(problem, "everywhere", False):
        failures = failures_of_all(comm, failure, place.rank if place else comm.rank)
        if failures is None:
            time.sleep(SECONDS_FOR_THE_FIRST)  # it ends this process before that
            return []
        return failure_lines(failures, place)
    if not speaks:
        return []
    if place is None or place.step == 0:  # nothing has begun: the line is enough
        return [f"isthmus: {failure['line']}"]
    ranks = getattr(problem, "ranks", ()) or range(len(place.hosts))
    return failure_lines(dict.fromkeys(ranks, failure), place, named=False)


def failure_of(problem):
    """Return what an exception says, as JSON: its kind and code, one line, and where it came from."""
    kind, text = type(problem).__name__, " ".join(str(problem).split())[:LONGEST]
    place = getattr(problem, "place", None)
    code, line = 1, f"unexpected {kind}: {text}; {REPORT}"
    if isinstance(problem, IsthmusError):
        code, line = problem.exit_code, text
    elif isinstance(problem, MemoryError):
        code = MachineError.exit_code
        line = (
            f"out of memory: {text or kind}; take a smaller training.batch_size, fewer ranks a "
            "host, or more hosts"
        )
    elif type(problem).__module__.startswith("mpi4py"):
        code = MachineError.exit_code
        line = f"MPI fails: {text}; look at the hosts and networks with `mpirun ... isthmus check`"
    frame = traceback.extract_tb(problem.__traceback__)[-1:]
    source = f"{Path(frame[0].filename).name}:{frame[0].lineno}" if frame else ""
    return {
        "kind": kind,
        "code": code,
        "line": line,
        "source": source,
        "step": place.step if place else 0,
        "phase": place.phase if place else "preparation",
    }


def failures_of_all(comm, mine, rank, seconds=SECONDS_FOR_OTHERS):
    """Return cluster rank -> failure for all ranks that fail within `seconds`, on the first of them.

    None on the others that fail: the first one speaks for them. Ranks that do not fail are not waited
    for; they may be in the middle of a message, or lost. mine: JSON. rank: this rank in the cluster.
    """
    import numpy as np
    from mpi4py import MPI

    wire = np.frombuffer(dumps([rank, mine], exact=True).encode(), np.uint8).copy()
    peers = [peer for peer in range(comm.size) if peer != comm.rank]
    told, requests = {comm.rank: [rank, mine]}, []
    for peer in peers:
        with suppress(MPI.Exception):  # it is lost
            requests.append(comm.Isend(wire, peer, TAG))
    end = time.monotonic() + seconds
    while len(told) < comm.size and time.monotonic() < end:
        for peer in peers:
            theirs = told.get(peer) or _told_by(comm, peer)
            if theirs is not None:
                told[peer] = theirs
        time.sleep(0.002)
    for request in requests:
        with suppress(MPI.Exception):
            request.Test()
    return dict(sorted(told.values(), key=lambda each: each[0])) if min(told) == comm.rank else None


def _told_by(comm, peer):
    """Return what `peer` tells of its failure; None where it tells nothing, or is lost.

    Asked of one rank alone: with one lost, MPI's fault tolerance refuses what may come from any.
    """
    import numpy as np
    from mpi4py import MPI

    status = MPI.Status()
    with suppress(MPI.Exception):
        if comm.Iprobe(peer, TAG, status):
            theirs = np.empty(status.Get_count(MPI.BYTE), np.uint8)
            comm.Recv(theirs, peer, TAG)
            return loads(theirs.tobytes(), exact=True)
    return None


def interrupted_lines(number, place, speaks):
    """Return the lines of a process that the signal `number` has told to end; none if others speak.

    place: a rank's `Place` after the others had a moment to note theirs; None where no run is under way.
    """
    if place is None:
        return [f"isthmus: interrupted; {GO_ON}"] * speaks
    if place.failing:
        return []
    if place.gone:
        return lost_lines(place) if place.rank == min(set(place.seen) - place.gone.keys()) else []
    everybody = all_interrupted(place)
    if place.rank != (place.home if everybody else min(place.signalled, default=place.rank)):
        return []
    who = "" if everybody else f"{_named(place, place.signalled or [place.rank])}: "
    why = f" by {signal.Signals(number).name}" if who else ""
    if everybody and _elsewhere(place):
        why = f" by mpirun; if nobody stopped it, look at {_named(place, _elsewhere(place))}"
    return [f"isthmus: {who}interrupted in step {place.step}{why}; {_how_to_go_on(place)}"]


def all_interrupted(place):
    """Whether all ranks that are seen here were told to end, as by mpirun; of no run under way: True."""
    return place is None or set(place.signalled) >= set(place.seen)


def lost_lines(place):
    """Return the blocks of ranks whose process is gone, one for each point where they were."""
    failures = {
        rank: {
            "kind": LOST,
            "code": MachineError.exit_code,
            "line": LOST_LINE,
            "source": "",
            "step": step,
            "phase": phase,
        }
        for rank, (step, phase) in place.gone.items()
    }
    return failure_lines(failures, place)


def stalled_lines(line, ranks, place):
    """Return the block of a job that is ended because `ranks` have stalled."""
    failures = {
        rank: {
            "kind": STALL,
            "code": MachineError.exit_code,
            "line": line,
            "source": "",
            "step": place.step,
            "phase": place.phase,
        }
        for rank in ranks
    }
    return failure_lines(failures, place)


def _elsewhere(place):
    return sorted(set(place.job or range(len(place.hosts))) - set(place.seen))


def _named(place, ranks):
    return name_ranks(ranks, place.hosts, place.sites, place.tiers)


def _how_to_go_on(place):
    if place.folder is None:
        return "nothing was written"
    if place.checkpoint is None:
        return f"it has written no checkpoint (run.checkpoint_every) in {place.folder}"
    return (
        f"go on from the checkpoint of step {place.checkpoint} with `isthmus train RUN.toml "
        f"--resume {place.folder}`"
    )


def told_by_another(comm):
    """Return whether another rank has failed, and tells it."""
    if comm is None or comm.size == 1:
        return False
    from mpi4py import MPI

    for peer in range(comm.size):
        with suppress(MPI.Exception):  # a rank that is lost tells nothing
            if comm.Iprobe(peer, TAG):
                return True
    return False


def failure_lines(failure_of_rank, place=None, named=True):
    """Return the lines to print: a block for each different failure, with the ranks that have it.

    place: this rank's `Place`, which knows the job; without one (no run was under way) a block is its
    first line. named: whether that line begins with the ranks.
    """
    groups = {}
    for rank, failure in failure_of_rank.items():
        same = failure["kind"], failure["code"], failure["line"], failure["source"]
        groups.setdefault(same, []).append(rank)
    lines = []
    for (kind, code, line, source), ranks in groups.items():
        lines.append(f"isthmus: {ranks_in_words(ranks) + ': ' if named else ''}{line}")
        if place is not None:
            lines += _block(
                kind, code, line, source, ranks, [failure_of_rank[rank] for rank in ranks], place
            )
    return lines


def _block(kind, code, line, source, ranks, failures, place):
    steps = sorted({failure["step"] for failure in failures})
    phases = ", ".join(dict.fromkeys(failure["phase"] for failure in failures))
    cure = line.rpartition("; ")[2]
    job = "ended on all ranks"
    if place.folder is not None and place.checkpoint is not None:
        job += f"; its last checkpoint, of step {place.checkpoint}, is {place.folder / 'checkpoint.h5'}"
        cure += f"; then go on with `isthmus train RUN.toml --resume {place.folder}`"
    else:
        job += "; it has written no checkpoint (run.checkpoint_every)"
    words = {
        "rank": name_ranks(ranks, place.hosts, place.sites, place.tiers),
        "step": f"{', '.join(map(str, steps))}, phase {phases}",
        "cause": f"{kind} at {source}" if source else kind,
        "job": job,
        "to do": cure,
        "more": f"docs/errors/{code}.md{_where_more_is(ranks, place.folder, kind not in (LOST, STALL))}",
    }
    return [f"  {name:<6} {text}" for name, text in words.items()]


def _where_more_is(ranks, folder, traced):
    if folder is None:
        return ""
    logs = folder / "logs"
    what = "the traceback" if traced else "what came before"
    return f", and {what} in {log_path(folder, ranks[0]) if len(ranks) == 1 else logs}"


def log_path(folder, rank):
    """Return where a rank writes its log."""
    return Path(folder, "logs", f"rank{rank:04}.log")


def name_ranks(ranks, hosts, sites, tiers):
    """Write cluster ranks with their site, tier and hosts: "ranks 0-1 (site a, tier cloud, host n0)"."""
    of_site = {}
    for rank in ranks:
        of_site.setdefault((sites[rank], tiers[rank]), []).append(rank)
    return ", ".join(
        f"{ranks_in_words(members)} (site {site}, tier {tier}, host "
        f"{', '.join(dict.fromkeys(hosts[rank] for rank in members))})"
        for (site, tier), members in of_site.items()
    )
