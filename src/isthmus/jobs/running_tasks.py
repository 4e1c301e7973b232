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


def run_tasks(tiers, graph, schedule, functions, paced=False):
    """Run all tasks; return float64[tasks, 2], their starts and ends since the first could. Collective.

    functions[task](inputs) gets {name: uint8 array} and gives what it passes on, an array or bytes of
    the length that the graph says, or {name: such} where it has several readers; a function that is None
    waits as long as was planned. paced: functions do so too, once they are done. Raises ModelError on a
    rank whose function raises or gives others.
    """
    world, rank_of, names = tiers.world, schedule.rank_of, graph.names
    require(
        world,
        MPI.Query_thread() >= MPI.THREAD_SERIALIZED,
        MachineError,
        "MPI was started for one thread alone, and messages travel while tasks run; leave "
        'mpi4py.rc.thread_level as it is, or set it to "serialized"',
    )
    order = sorted(range(graph.size), key=lambda task: (schedule.start[task], schedule.end[task], task))
    planned = {(each.source, each.target): number for number, each in enumerate(schedule.messages)}
    outputs = [
        sorted(pairs, key=lambda pair: planned.get((task, pair[0]), -1))
        for task, pairs in enumerate(graph.outputs)
    ]
    times, clock = np.zeros((graph.size, 2)), CommonClock(world, time.monotonic)
    with Mail(world) as mail:
        for task in order:  # from one rank to another in this order, so that both know which is which
            for after, edge in outputs[task]:
                if rank_of[after] == world.rank != rank_of[task]:
                    mail.expect(edge, np.empty(int(graph.nbytes[edge]), np.uint8), rank_of[task])
        begin = clock.start()
        for task in (task for task in order if rank_of[task] == world.rank):
            inputs = {names[source]: mail.wait(edge) for source, edge in graph.inputs[task]}
            times[task, 0] = time.monotonic() - begin
            planned_seconds = schedule.end[task] - schedule.start[task]
            if functions[task] is None:
                time.sleep(planned_seconds)
                given = {names[a]: np.zeros(int(graph.nbytes[e]), np.uint8) for a, e in outputs[task]}
            else:
                with OwnCode().running(f"task {names[task]}"):
                    given = functions[task](inputs)
                if paced:
                    done = time.monotonic() - begin - times[task, 0]
                    time.sleep(max(0.0, planned_seconds - done))
            times[task, 1] = time.monotonic() - begin
            for after, edge in outputs[task]:
                made = _bytes_of(given, names[task], names[after], int(graph.nbytes[edge]))
                mail.send(edge, made, rank_of[after])
    return maximum(world, times.reshape(-1)).reshape(times.shape)


def _bytes_of(given, task, name, wanted):
    """Return as uint8[wanted] what `task` has given for the task called `name`."""
    part = given.get(name) if isinstance(given, dict) else given
    if isinstance(part, bytes | bytearray | memoryview):
        part = np.frombuffer(part, np.uint8)
    if not isinstance(part, np.ndarray) or part.dtype.hasobject or part.nbytes != wanted:
        found = f"{part.nbytes:,} bytes" if isinstance(part, np.ndarray) else f"{part!r:.80}"
        raise ModelError(
            f"task {task}: gives {found} for task {name}, and the graph says {wanted:,} bytes; return "
            "those, or change nbytes of the edge"
        )
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


class Mail:
    """A rank's messages by edge, with a thread that has them travel while tasks run."""

    def __init__(self, world):
        self.world, self.open, self.here, self.over, self.problem = world, [], {}, False, None
        self.changed = threading.Condition()  # held for all that is here, MPI among it
        self.thread = threading.Thread(target=self._look_after, daemon=True)

    def expect(self, edge, room, source):
        """Have what comes next from rank `source` put into `room`."""
        with self.changed:
            self.open.append((self.world.Irecv(room, source), edge, room))

    def send(self, edge, made, target):
        """Start to send what an edge carries to rank `target`; at once where it is this one."""
        with self.changed:
            if target == self.world.rank:
                self.here[edge] = made
            else:
                self.open.append((self.world.Isend(made, target), None, made))

    def wait(self, edge):
        """Return what an edge carries, once it is here."""
        with self.changed:
            self.changed.wait_for(lambda: edge in self.here or self.problem)
            if self.problem:
                raise self.problem
            return self.here.pop(edge)

    def _look_after(self):
        while not self.over or self.open:
            with self.changed:
                try:
                    looked = [(request.Test(), edge, room) for request, edge, room in self.open]
                except Exception as problem:
                    self.problem = problem
                    self.changed.notify_all()
                    return
                self.here |= {edge: room for done, edge, room in looked if done and edge is not None}
                self.open = [each for each, (done, *_) in zip(self.open, looked) if not done]
                self.changed.notify_all()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, error_type, *_):
        if error_type is None:  # else the job ends, and others are not waited for
            self.over = True
            self.thread.join()
            if self.problem:
                raise self.problem
