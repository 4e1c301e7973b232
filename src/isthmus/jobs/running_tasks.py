"""A schedule's tasks, run: each rank its own, in the order of the plan, with messages between them."""

import threading
import time

import numpy as np
from mpi4py import MPI

from isthmus.errors import MachineError, ModelError
from isthmus.links.agreement import require
from isthmus.links.common_clock import CommonClock
from isthmus.links.world import maximum
from isthmus.models.own_code import OwnCode

SECONDS_BETWEEN_LOOKS = 0.0005


def run_tasks(tiers, graph, schedule, functions):
    """Run all tasks; return float64[tasks, 2], their starts and ends since the first could. Collective.

    functions[task](inputs) gets {name: uint8 array} and gives what it passes on, an array or bytes of
    the length that the graph says, or {name: such} where it has several; None for a function stands for
    waiting as long as was planned. Raises ModelError on a rank whose function raises or gives others.
    """
    level = MPI.Query_thread()
    require(
        tiers.world,
        level >= MPI.THREAD_SERIALIZED,
        MachineError,
        "MPI takes calls from one thread alone, and messages travel while tasks run; ask it for "
        "mpi4py.rc.thread_level = 'serialized' or more",
    )
    times = np.zeros((graph.size, 2))
    own = [task for task in range(graph.size) if schedule.rank_of[task] == tiers.world.rank]
    clock = CommonClock(tiers.world, time.monotonic)
    mail = Mail(tiers.world, graph, schedule)
    begin = clock.start()
    with mail:
        for task in sorted(own, key=lambda each: (schedule.start[each], schedule.end[each], each)):
            inputs = {graph.names[source]: mail.wait(edge) for source, edge in graph.inputs[task]}
            times[task, 0] = time.monotonic() - begin
            given = None
            if functions[task] is None:
                time.sleep(schedule.end[task] - schedule.start[task])
            else:
                with OwnCode().running(f"task {graph.names[task]}"):
                    given = functions[task](inputs)
            times[task, 1] = time.monotonic() - begin
            for after, edge in mail.outputs(task):
                made = _bytes_for(graph, task, after, edge, given, functions[task] is None)
                mail.send(edge, schedule.rank_of[after], made)
    return maximum(tiers.world, times.reshape(-1)).reshape(times.shape)


def _bytes_for(graph, task, after, edge, given, holds):
    """Return the uint8 array that goes from `task` to `after`."""
    name, wanted = graph.names[after], int(graph.nbytes[edge])
    if holds:
        return np.zeros(wanted, np.uint8)
    part = given.get(name) if isinstance(given, dict) else given
    if isinstance(part, bytes | bytearray | memoryview):
        part = np.frombuffer(part, np.uint8)
    if not isinstance(part, np.ndarray) or part.dtype.hasobject or part.nbytes != wanted:
        found = f"{part.nbytes:,} bytes" if isinstance(part, np.ndarray) else f"{part!r:.80}"
        raise ModelError(
            f"task {graph.names[task]}: gives {found} for task {name}, and the graph says {wanted:,} "
            "bytes; return that, or change nbytes of the edge"
        )
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


class Mail:
    """A rank's messages, in a thread that looks after them while tasks run.

    Messages from one rank to another go in the order of the tasks that they come from, so that both
    know which is which.
    """

    def __init__(self, world, graph, schedule):
        self.world, self.schedule = world, schedule
        self.lock, self.changed, self.over = threading.Lock(), threading.Condition(), False
        self.here, self.open, self.problem = {}, [], None
        place = {(each.source, each.target): number for number, each in enumerate(schedule.messages)}
        self.after = [
            sorted(pairs, key=lambda pair: place.get((task, pair[0]), -1))
            for task, pairs in enumerate(graph.outputs)
        ]
        for task in sorted(range(graph.size), key=lambda t: (schedule.start[t], schedule.end[t], t)):
            for after, edge in self.after[task]:
                if schedule.rank_of[after] == world.rank != schedule.rank_of[task]:
                    room = np.empty(int(graph.nbytes[edge]), np.uint8)
                    request = world.Irecv(room, schedule.rank_of[task])
                    self.open.append((request, edge, room))

    def outputs(self, task):
        """Return (other task, edge) of what a task passes on, in the order in which it is sent."""
        return self.after[task]

    def send(self, edge, rank, made):
        """Start to send what an edge carries to the rank that needs it; at once where it is this one."""
        if rank == self.world.rank:
            self._keep(edge, made)
            return
        with self.lock:
            self.open.append((self.world.Isend(made, rank), None, made))

    def wait(self, edge):
        """Return what an edge carries, once it is here."""
        with self.changed:
            self.changed.wait_for(lambda: edge in self.here or self.problem)
        if self.problem:
            raise self.problem
        return self.here.pop(edge)

    def _keep(self, edge, made):
        with self.changed:
            self.here[edge] = made
            self.changed.notify_all()

    def _look_after(self):
        try:
            while not self.over or self.open:
                with self.lock:
                    looked = [(each[0].Test(), each) for each in self.open]
                    self.open = [each for done, each in looked if not done]
                for done, (_, edge, room) in looked:
                    if done and edge is not None:
                        self._keep(edge, room)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        except Exception as problem:
            with self.changed:
                self.problem = problem
                self.changed.notify_all()

    def __enter__(self):
        self.thread = threading.Thread(target=self._look_after, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, error_type, *_):
        if error_type is None:  # else the job ends, and others are not waited for
            self.over = True
            self.thread.join()
            if self.problem:
                raise self.problem
