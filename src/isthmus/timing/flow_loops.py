"""The loops of `timing.flows`, compiled."""

import math

import numpy as np

from isthmus.kernels.compiled import compiled


@compiled
def events(first, pipe_of, capacities, caps, starts, left, order):
    """From one start or finish to the next, with rates constant in between; uses `left` up."""
    finish, rates = np.zeros(starts.size), np.zeros(starts.size)
    active = np.zeros(starts.size, np.bool_)
    one_pipe = pipe_of.size == starts.size and (pipe_of == pipe_of[0]).all()
    by_cap = np.argsort(caps)
    begun, running, now = 0, 0, 0.0
    while begun < starts.size or running:
        if running == 0:
            now = starts[order[begun]]
        while begun < starts.size and starts[order[begun]] <= now:
            active[order[begun]] = True
            begun, running = begun + 1, running + 1
        if one_pipe:
            fill_one(capacities[pipe_of[0]], caps, by_cap, active, running, rates)
        else:
            fill(first, pipe_of, capacities, caps, active, rates)
        later = starts[order[begun]] - now if begun < starts.size else math.inf
        passed = later
        for flow in range(starts.size):
            if active[flow]:
                passed = min(passed, left[flow] / rates[flow])
        now = now + passed if passed < later else starts[order[begun]]
        for flow in range(starts.size):
            if active[flow]:
                through = left[flow] / rates[flow] <= passed * (1 + 1e-12)
                left[flow] -= rates[flow] * passed
                if through:
                    finish[flow] = now
                    active[flow] = False
                    running -= 1
    return finish


@compiled
def fill_one(capacity, caps, by_cap, active, running, rates):
    """The same where all share one pipe: by rising cap, each takes its cap or an equal share."""
    for flow in by_cap:
        if active[flow]:
            rates[flow] = min(caps[flow], capacity / running)
            capacity -= rates[flow]
            running -= 1


@compiled
def fill(first, pipe_of, capacities, caps, active, rates):
    """Progressive filling: settle at once every flow at its cap and every pipe that binds its flows.

    A pipe's fair share only grows while flows are settled, so a cap below the shares of all its
    pipes holds, and so does a share that is the least of all pipes for every flow on the pipe.
    """
    left, free, limits = capacities.copy(), active.copy(), caps.copy()
    users = np.zeros(left.size, np.int64)
    for flow in np.flatnonzero(free):
        for place in range(first[flow], first[flow + 1]):
            users[pipe_of[place]] += 1
    while True:
        waiting = np.flatnonzero(free)
        if waiting.size == 0:
            return
        share, least = left / np.maximum(users, 1), np.full(left.size, math.inf)
        for flow in waiting:
            pipes = pipe_of[first[flow] : first[flow + 1]]
            for pipe in pipes:
                limits[flow] = min(limits[flow], share[pipe])
            for pipe in pipes:
                least[pipe] = min(least[pipe], limits[flow])
        for flow in waiting:
            pipes = pipe_of[first[flow] : first[flow + 1]]
            settled = limits[flow] >= caps[flow]
            for pipe in pipes:
                settled |= least[pipe] >= share[pipe]
            if settled:
                free[flow], rates[flow] = False, limits[flow]
                for pipe in pipes:
                    left[pipe] = max(0.0, left[pipe] - limits[flow])
                    users[pipe] -= 1
            else:
                limits[flow] = caps[flow]
