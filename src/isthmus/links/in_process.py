"""Ranks that are threads of one process: what ran on many machines, on any one, with the same bits.

One thread runs at a time, and hands over where it waits for a message: so a job is played serially, in
an order that does not matter, because every sum is added in the order that messages have.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from isthmus.cluster.cluster import Cluster
from isthmus.links.comm import Request
from isthmus.links.tiers import Tiers, world_of

COLLECTIVE = 79
"""Tag of what the ranks of a site do together, in the place of MPI's own collectives."""
PATIENCE = 0.001
"""Seconds for which a rank that only asks whether a message is there lets the others run."""


class Abandoned(Exception):  # noqa: N818 - not an error of its own: another thread has that
    """Another rank of the process has failed, so that this one would wait for ever."""


def in_threads(ranks: int, act: Callable[["Table", int], Any]) -> list[Any]:
    """Return what `act(table, rank)` gives on each of so many ranks, played one at a time.

    Raises what the first rank raises that fails.
    """
    table = Table(ranks)
    results, threads = [None] * ranks, []

    def play(rank):
        with table.turn:
            try:
                results[rank] = act(table, rank)
            except Abandoned:
                pass
            except BaseException as problem:
                table.abandon(problem)
            table.ended.add(rank)
            table.wake(range(ranks))

    for rank in range(ranks):
        threads.append(threading.Thread(target=play, args=(rank,), daemon=True))
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as problem:  # Ctrl-C reaches the main thread alone
        table.problem = problem
        raise
    if table.problem is not None:
        raise table.problem
    return results


def tiers_in_process(table: "Table", cluster: Cluster, rank: int) -> Tiers:
    """Return the tiers of the thread that plays cluster rank `rank`; nothing is paced or sealed."""
    index = cluster.site_of_rank[rank]
    name = cluster.names[index]
    mine = cluster.ranks_of_site(name)
    site = InProcess(table, f"site {name}", mine, rank)
    first = [cluster.ranks_of_site(each)[0] for each in cluster.names]
    leaders = InProcess(table, "leaders", first, rank) if rank == mine[0] else MPI.COMM_NULL
    everyone = InProcess(table, "world", range(cluster.size), rank)
    return Tiers(
        cluster,
        world_of(cluster, everyone, site, leaders),
        site,
        leaders,
        cloud=MPI.COMM_NULL,
        edge=MPI.COMM_NULL,
        tier=cluster.sites[index].tier,
        site_name=name,
    )


class Table:
    """Where the threads meet: one has its turn, the others wait."""

    def __init__(self, ranks: int):
        self.turn = threading.Lock()
        self.of_rank = [threading.Condition(self.turn) for _ in range(ranks)]
        self.sent: dict[Any, deque[np.ndarray]] = defaultdict(deque)  # what nobody has asked for yet
        self.posted: dict[Any, deque[Arriving]] = defaultdict(deque)
        self.problem: BaseException | None = None
        self.ended: set[int] = set()

    def wait(self, rank: int, seconds: float | None = None) -> None:
        """Let the others run until there is something for `rank`, or for so many seconds."""
        self.check()
        self.of_rank[rank].wait(seconds)
        self.check()

    def check(self) -> None:
        if self.problem is not None:
            raise Abandoned

    def wake(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            self.of_rank[rank].notify_all()

    def abandon(self, problem: BaseException) -> None:
        self.problem = self.problem or problem


class InProcess:
    """A communicator of threads: the verbs of `Comm`, and what a site does together.

    name: tells it apart from others of the same table. ranks: the cluster ranks in it; mine: this one's.
    """

    def __init__(self, table: Table, name: str, ranks: Sequence[int], mine: int):
        self.table, self.name, self.ranks = table, name, ranks
        self.rank, self.size = list(ranks).index(mine), len(ranks)

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Request:  # noqa: N802
        """Copy the array at once, so that the request is done."""
        key = self.name, self.rank, dest, tag
        message = np.ascontiguousarray(buffer).reshape(-1).view(np.uint8)
        if self.table.posted[key]:
            self.table.posted[key].popleft().take(message)
        else:
            self.table.sent[key].append(message.copy())
        self.table.wake([self.ranks[dest]])
        return Sent()

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Request:  # noqa: N802
        key = self.name, source, self.rank, tag
        arriving = Arriving(self.table, self.ranks[self.rank], self.ranks[source], buffer)
        if self.table.sent[key]:
            arriving.take(self.table.sent[key].popleft())
        else:
            self.table.posted[key].append(arriving)
        return arriving

    def Send(self, buffer: Any, dest: int, tag: int = 0) -> None:  # noqa: N802
        self.Isend(buffer, dest, tag)

    def Recv(self, buffer: Any, source: int, tag: int = 0) -> None:  # noqa: N802
        self.Irecv(buffer, source, tag).Wait()

    def Bcast(self, buffer: Any, root: int = 0) -> None:  # noqa: N802
        if self.rank != root:
            self.Recv(buffer, root, COLLECTIVE)
            return
        for other in range(self.size):
            if other != root:
                self.Isend(buffer, other, COLLECTIVE)

    def Gatherv(self, own: Any, came: Sequence[Any], root: int = 0) -> None:  # noqa: N802
        """Have bytes of each rank one after another on `root`; came: the room, and how many of each."""
        if self.rank != root:
            self.Isend(own, root, COLLECTIVE)
            return
        room, nbytes = came
        first = 0
        for other, length in enumerate(nbytes):
            part = room[first : first + length]
            if other == root:
                part[:] = own
            else:
                self.Recv(part, other, COLLECTIVE)
            first += length

    def Allgatherv(self, own: Any, came: Sequence[Any]) -> None:  # noqa: N802
        self.Gatherv(own, came)
        self.Bcast(came[0])

    def Free(self) -> None:  # noqa: N802
        """Nothing is held."""


class Sent:
    """A message that is on its way, copied."""

    def Wait(self) -> None:  # noqa: N802
        """It is done."""

    def Test(self) -> bool:  # noqa: N802
        return True


class Arriving:
    """A message that a thread waits for."""

    def __init__(self, table: Table, rank: int, source: int, buffer: Any):
        self.table, self.rank, self.source, self.buffer = table, rank, source, buffer
        self.done = False

    def take(self, message: np.ndarray) -> None:
        self.buffer.reshape(-1).view(np.uint8)[: message.size] = message
        self.done = True

    def Wait(self) -> None:  # noqa: N802
        while not self.done:
            if self.source in self.table.ended:
                raise RuntimeError(f"rank {self.rank} waits for rank {self.source}, which has ended")
            self.table.wait(self.rank)

    def Test(self) -> bool:  # noqa: N802
        if not self.done:
            self.table.wait(self.rank, PATIENCE)
        return self.done
