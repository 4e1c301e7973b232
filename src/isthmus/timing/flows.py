"""Messages as fluids that share pipes fairly: what many TCP streams over the same links come to.

Max-min fairness: no flow can have more without taking it from one that has no more (Bertsekas and
Gallager 1992, "Data Networks", section 6.5.2). Bytes per second throughout; latencies are added by
whoever asks.
"""

import math
from collections import deque

import numpy as np


def max_min_rates(routes, capacities, caps=None):
    """Return float64[flows]: the max-min fair bytes per second of flows that run at the same time.

    routes: one tuple of pipes a flow, by number in `capacities`. caps: what a flow takes at most.
    """
    from isthmus.timing.flow_loops import fill

    caps = np.full(len(routes), math.inf) if caps is None else np.array(caps, float)
    rates = np.zeros(len(routes))
    fill(*_incidence(routes), np.array(capacities, float), caps, np.ones(len(routes), bool), rates)
    return rates


class FlowNetwork:
    """Flows on fixed routes, once a call: when is each of them through?"""

    def __init__(self, routes, capacities):
        self.routes = [tuple(route) for route in routes]
        self.capacities = np.asarray(capacities, float)
        users = np.bincount(
            [pipe for route in self.routes for pipe in route], minlength=self.capacities.size
        )
        # A pipe that one flow has for itself is a cap of that flow.
        self.own_caps = np.array(
            [
                min((self.capacities[pipe] for pipe in route if users[pipe] == 1), default=math.inf)
                for route in self.routes
            ]
        )
        self.shared = [tuple(sorted(pipe for pipe in route if users[pipe] > 1)) for route in self.routes]
        self.groups = _groups(self.shared)

    def finish_seconds(self, starts, nbytes, caps=math.inf):
        """Return float64[flows]: when flows that start at `starts` have sent their last byte.

        nbytes: of each flow, or of all alike.
        caps: what each can send at most, in bytes a second.
        """
        starts = np.asarray(starts, float)
        nbytes, caps = np.broadcast_to(nbytes, starts.shape), np.minimum(caps, self.own_caps)
        finish = starts + nbytes / caps
        for flows in self.groups:
            alike = (
                len({self.shared[flow] for flow in flows}) == 1
                and np.ptp(nbytes[flows]) == 0
                and len(set(caps[flows])) == 1
            )
            if alike:
                narrowest = self.capacities[list(self.shared[flows[0]])].min()
                finish[flows] = _alike(starts[flows], nbytes[flows[0]], narrowest, caps[flows[0]])
            else:
                finish[flows] = self._event_by_event(flows, starts[flows], nbytes[flows], caps[flows])
        return finish

    def _event_by_event(self, flows, starts, nbytes, caps):
        """Return when each of a group's flows is through, whatever their sizes and routes."""
        from isthmus.timing.flow_loops import events  # with Numba, which takes its time

        return events(
            *_incidence([self.shared[flow] for flow in flows]),
            self.capacities,
            caps,
            starts,
            nbytes.astype(float),
            np.argsort(starts, kind="stable"),
        )


def _alike(starts, nbytes, capacity, cap):
    """Flows of one size on one route share equally, so the first to start is the first through."""
    finish, order = np.empty(starts.size), np.argsort(starts, kind="stable")
    running, through = deque(), 0
    now = sent = 0.0  # what each of the running flows would have sent since the pipe was last idle
    for start in [*starts[order].tolist(), math.inf]:
        while running:
            rate = min(cap, capacity / len(running))
            done = now + (running[0] - sent) / rate
            if done > start:
                sent += rate * (start - now)
                break
            sent, now = running.popleft(), done
            finish[order[through]] = done
            through += 1
        if not running:
            sent = 0.0
        now = start
        running.append(sent + nbytes)
    return finish


def _incidence(routes):
    """Return all routes one after another: where each flow's begins (and the last ends), the pipes."""
    first = np.cumsum([0] + [len(route) for route in routes])
    return first, np.array([pipe for route in routes for pipe in route], np.int64)


def _groups(shared):
    """Return lists of the flows that share pipes with each other, directly or through others."""
    flows_of = {}
    for flow, route in enumerate(shared):
        for pipe in route:
            flows_of.setdefault(pipe, []).append(flow)
    groups, seen = [], set()
    for first in range(len(shared)):
        if first in seen or not shared[first]:
            continue
        group, waiting, pipes = [], [first], set()
        seen.add(first)
        while waiting:
            flow = waiting.pop()
            group.append(flow)
            for pipe in set(shared[flow]) - pipes:
                pipes.add(pipe)
                new = [other for other in flows_of[pipe] if other not in seen]
                seen.update(new)
                waiting += new
        groups.append(sorted(group))
    return groups
