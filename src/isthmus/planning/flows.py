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
    flow_of, pipe_of = _incidence(routes)
    caps = np.full(len(routes), math.inf) if caps is None else np.asarray(caps, float)
    return _fill(flow_of, pipe_of, np.asarray(capacities, float), caps)


class FlowNetwork:
    """Flows on fixed routes, once a call: when is each of them through?"""

    def __init__(self, routes, capacities):
        self.routes = [tuple(route) for route in routes]
        self.capacities = np.asarray(capacities, float)
        users = np.bincount([pipe for route in self.routes for pipe in route],
                            minlength=self.capacities.size)
        # A pipe that one flow has for itself is a cap of that flow.
        self.own_caps = np.array([min((self.capacities[pipe] for pipe in route if users[pipe] == 1),
                                      default=math.inf) for route in self.routes])
        self.shared = [tuple(sorted(pipe for pipe in route if users[pipe] > 1))
                       for route in self.routes]
        self.groups = _groups(self.shared)

    def finish_seconds(self, starts, nbytes, caps=math.inf):
        """Return float64[flows]: when flows of `nbytes` (one number or one each) that start at
        `starts` have sent their last byte; `caps`: what each can send at most, in bytes a second."""
        starts = np.asarray(starts, float)
        nbytes, caps = np.broadcast_to(nbytes, starts.shape), np.minimum(caps, self.own_caps)
        finish = starts + nbytes / caps
        for flows in self.groups:
            alike = (len({self.shared[flow] for flow in flows}) == 1
                     and np.ptp(nbytes[flows]) == 0 and len(set(caps[flows])) == 1)
            if alike:
                narrowest = self.capacities[list(self.shared[flows[0]])].min()
                finish[flows] = _alike(starts[flows], nbytes[flows[0]], narrowest, caps[flows[0]])
            else:
                finish[flows] = self._event_by_event(flows, starts[flows], nbytes[flows], caps[flows])
        return finish

    def _event_by_event(self, flows, starts, nbytes, caps):
        """From one start or finish to the next, with rates constant in between."""
        flow_of, pipe_of = _incidence([self.shared[flow] for flow in flows])
        left, finish = nbytes.astype(float), np.full(len(flows), np.nan)
        order, begun, now = np.argsort(starts, kind="stable"), 0, 0.0
        active = np.zeros(len(flows), bool)
        while begun < len(flows) or active.any():
            if not active.any():
                now = starts[order[begun]]
            while begun < len(flows) and starts[order[begun]] <= now:
                active[order[begun]] = True
                begun += 1
            rates = _fill(flow_of, pipe_of, self.capacities, caps, active)
            running = np.flatnonzero(active)
            needed = left[running] / rates[running]
            later = starts[order[begun]] - now if begun < len(flows) else math.inf
            passed = min(needed.min(), later)
            through = running[needed <= passed * (1 + 1e-12)]
            left[running] -= rates[running] * passed
            now = now + passed if passed < later else starts[order[begun]]
            finish[through] = now
            active[through] = False
        return finish


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


def _fill(flow_of, pipe_of, capacities, caps, active=None):
    """Progressive filling: settle at once every flow at its cap and every pipe that binds its flows.

    A pipe's fair share only grows while flows are settled, so a cap below the shares of all its
    pipes holds, and so does a share that is the least of all pipes for every flow on the pipe.
    """
    free = np.ones(caps.size, bool) if active is None else active.copy()
    rates, left = np.zeros(caps.size), capacities.copy()
    while free.any():
        here = free[flow_of]
        flow, pipe = flow_of[here], pipe_of[here]
        users = np.bincount(pipe, minlength=left.size)
        share = np.where(users > 0, left / np.maximum(users, 1), math.inf)
        limit = np.where(free, caps, math.inf)
        np.minimum.at(limit, flow, share[pipe])
        least = np.full(left.size, math.inf)
        np.minimum.at(least, pipe, limit[flow])
        settled = free & (limit >= caps)
        settled[flow[(least[pipe] >= share[pipe])]] = True
        rates[settled] = limit[settled]
        gone = settled[flow]
        left -= np.bincount(pipe[gone], weights=rates[flow[gone]], minlength=left.size)
        np.maximum(left, 0.0, out=left)
        free &= ~settled
    return rates


def _incidence(routes):
    """Return the pairs (flow, pipe) of all routes as two vectors."""
    flow_of = [flow for flow, route in enumerate(routes) for _ in route]
    return np.array(flow_of, int), np.array([pipe for route in routes for pipe in route], int)


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
