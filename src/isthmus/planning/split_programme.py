"""The programmes of `plan_split`, on arrays: which layers run at the source.

    min  e . x + c . (1 - x) + s . (x - h) + L (1 - m) + b . (1 - x)    subject to
    x_v <= x_u,  h_u <= x_v    every layer v that reads u: once over the link, always
    h_u <= x_u,  m <= x_v      of every u that is read, and of every v that is not
    x = 1 of the data, 0 <= x, h, m <= 1

x_v = 1 where layer v runs at the source, for e_v seconds, and 0 where it takes the target c_v. h_u = 1
where all readers of u are at the source: an output that some layer reads beyond costs s_u, once for
all of them. The latency L is paid once, if anything is beyond, and b is the answer's way back. All
rows are differences, so that the matrix is totally unimodular and the programme gives whole numbers.
As minimum cuts: Hu et al. 2019 (DADS), doi:10.1109/INFOCOM.2019.8737614.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isthmus.errors import PlanError
from isthmus.planning.programme.silence import silent

NODES = 2_000
"""After which a period's integer programme stops, and its gap is told."""


class Busy(NamedTuple):
    """Seconds in which ends and ways work for one request; send: float64[rates]."""

    source: float
    send: np.ndarray
    target: float
    back: float


@dataclass(frozen=True)
class Costs:
    """What layers take at both ends, and their outputs between them.

    edges: int[edges, 2], a layer and one that reads it, in an order without circles. source, target,
    encode, decode, back: float64[layers], seconds; source and target may be infinite. send:
    float64[rates, layers]. latency, back_latency: paid once. is_data, is_answer: bool[layers].
    """

    names: list[str]
    edges: np.ndarray
    is_data: np.ndarray
    is_answer: np.ndarray
    source: np.ndarray
    target: np.ndarray
    encode: np.ndarray
    decode: np.ndarray
    send: np.ndarray
    back: np.ndarray
    latency: float
    back_latency: float

    def crossing(self, here):
        """Return bool[layers]: whose output a layer beyond reads, where `here` are at the source."""
        sent = np.zeros(here.size, bool)
        sent[self.edges[here[self.edges[:, 0]] & ~here[self.edges[:, 1]], 0]] = True
        return sent

    def busy(self, here):
        """Return the Busy of layers that run at the source where `here` is true."""
        sent = self.crossing(here)
        return Busy(
            float(self.source[here].sum() + self.encode[sent].sum()),
            self.send[:, sent].sum(1),
            float(self.target[~here].sum() + self.decode[sent].sum()),
            float(self.back[~here].sum()),
        )

    def latency_terms(self, here):
        """Return the seconds of a request alone by term, of which the mean over rates is the sum."""
        busy, beyond = self.busy(here), not here.all()
        return {
            "source": busy.source,
            "send": float(busy.send.mean()) + beyond * self.latency,
            "target": busy.target,
            "back": busy.back + beyond * self.back_latency,
        }

    def period(self, here):
        """Return the seconds from one request of a stream to the next, the mean over rates."""
        busy = self.busy(here)
        return float(np.maximum(busy.send, max(busy.source, busy.target, busy.back)).mean())

    def finite(self):
        """Return the seconds at source and target, with 0 for what is infinite and thereby fixed."""
        return [np.where(np.isfinite(each), each, 0.0) for each in (self.source, self.target)]

    def bounds(self, columns):
        """Return float64[columns, 2]: data at the source, and layers where they take finite seconds."""
        bounds = np.tile([0.0, 1.0], (columns, 1))
        size = len(self.names)
        bounds[:size][self.is_data | np.isinf(self.target), 0] = 1.0
        bounds[:size][np.isinf(self.source), 1] = 0.0
        if (bounds[:, 0] > bounds[:, 1]).any():
            name = self.names[int((bounds[:, 0] > bounds[:, 1]).argmax())]
            raise PlanError(
                f"layer {name!r} can run at neither end; give it finite seconds at one, and data those "
                "of the source"
            )
        return bounds

    def differences(self, columns):
        """Return the rows A of A v <= 0, v = (x, h, ...): what is over stays, what is read is sent."""
        size, (source, reader) = len(self.names), self.edges.T
        read = np.unique(source)
        return difference_rows(
            [*reader, *(size + source), *(size + read)], [*source, *reader, *read], columns
        )


def difference_rows(less, more, columns):
    """Return the rows v_less - v_more of A v <= 0."""
    from scipy.sparse import csr_array

    rows = np.arange(len(less))
    ends = np.concatenate([less, more]).astype(int)
    return csr_array((np.repeat([1.0, -1.0], rows.size), (np.tile(rows, 2), ends)), (rows.size, columns))


def least_latency(costs):
    """Return (bool[layers]: at the source, the programme's value)."""
    from scipy.optimize import linprog
    from scipy.sparse import vstack

    size = len(costs.names)
    source, target = costs.finite()
    send, read = costs.send.mean(0) + costs.encode + costs.decode, np.unique(costs.edges[:, 0])
    late = costs.latency + costs.back_latency
    cost = np.concatenate([source - target - costs.back, np.zeros(size), [-late]])
    cost[read] += send[read]
    cost[size + read] = -send[read]
    answers = np.flatnonzero(costs.is_answer)
    rows = vstack(
        [costs.differences(cost.size), difference_rows([2 * size] * answers.size, answers, cost.size)]
    )
    scale = float(np.abs(cost).max()) or 1.0
    with silent():
        solved = linprog(
            cost / scale,
            rows,
            np.zeros(rows.shape[0]),
            bounds=costs.bounds(cost.size),
            method="highs-ds",
        )
    if solved.status != 0:
        raise no_split(costs)
    shares = solved.x[:size]
    assert np.all((shares < 1e-6) | (shares > 1 - 1e-6)), "a totally unimodular programme is whole"
    value = solved.fun * scale + target.sum() + costs.back.sum() + late
    return shares > 0.5, float(value) * (1 - 1e-9)


def least_period_of_chain(costs):
    """Return (bool[layers], the period) of the best place to cut a chain: all are looked at."""
    size = len(costs.names)
    cut = np.arange(1, size + 1) < size  # after each layer; the last place is no cut
    source = np.cumsum(costs.source) + cut * costs.encode
    target = np.append(np.cumsum(costs.target[:0:-1])[::-1], 0.0) + cut * costs.decode
    ends = np.maximum(np.maximum(source, target), cut * costs.back[-1])
    seconds = np.maximum(cut * costs.send, ends).mean(0)
    best = int(np.argmin(seconds))
    if not np.isfinite(seconds[best]):
        raise no_split(costs)
    return np.arange(size) <= best, float(seconds[best])


def least_period(costs):
    """Return (bool[layers], the bound) of a graph, by integer programme of x, h and a T a rate."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    size, count = len(costs.names), len(costs.send)
    source, target = costs.finite()
    read, none = np.unique(costs.edges[:, 0]), np.zeros(size)
    busy, limit = [], []
    for number, send in enumerate(costs.send):
        for kept, sent, gone in (
            (source, costs.encode, none),
            (none, send, none),
            (none, costs.decode, target),
            (none, none, costs.back),
        ):
            row = np.zeros(2 * size + count)
            row[:size] = kept - gone
            row[read] += sent[read]
            row[size + read] -= sent[read]
            row[2 * size + number] = -1.0
            busy.append(row)
            limit.append(-gone.sum())
    scale = float(np.abs(np.array(busy)[:, : 2 * size]).max()) or 1.0
    rows = np.array(busy)
    rows[:, : 2 * size] /= scale  # and T in units of it
    bounds = costs.bounds(2 * size + count)
    bounds[2 * size :, 1] = np.inf
    differences = costs.differences(2 * size + count)
    with silent():
        solved = milp(
            np.concatenate([np.zeros(2 * size), np.full(count, 1 / count)]),
            integrality=np.repeat([1, 0, 0], [size, size, count]),
            bounds=Bounds(bounds[:, 0], bounds[:, 1]),
            constraints=LinearConstraint(
                vstack([differences, csr_array(rows)]),
                ub=np.concatenate([np.zeros(differences.shape[0]), np.array(limit) / scale]),
            ),
            options={"node_limit": NODES, "mip_rel_gap": 1e-9},
        )
    if solved.x is None:
        raise no_split(costs)
    return solved.x[:size] > 0.5, float(solved.mip_dual_bound) * scale * (1 - 1e-6)


def no_split(costs):
    """Return the PlanError that names the layers which leave no split."""
    here, there = (
        ", ".join(name for name, only in zip(costs.names, np.isinf(each)) if only)
        for each in (costs.target, costs.source)
    )
    return PlanError(
        f"no split: what runs at the source alone ({here or 'the data'}) comes after what runs at the "
        f"target alone ({there}); give one of them finite seconds at the other end"
    )
