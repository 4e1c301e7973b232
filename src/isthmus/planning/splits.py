"""Which layers of a model run where the data is, and which beyond the link.

Layer splits: Kang et al. 2017 (Neurosurgeon), doi:10.1145/3037697.3037698. `split_programme` has the
programmes.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.cluster.cluster import Cluster
from isthmus.compression.compressor import Compressor
from isthmus.errors import PlanError
from isthmus.planning.split_programme import Costs, least_latency, least_period, least_period_of_chain
from isthmus.planning.tasks.graph import in_order
from isthmus.quantities import real, whole
from isthmus.timing.stages import coding_seconds

WORTH_SAYING = 1e-3
"""Share of the seconds that 10 % more must save to be told in a sentence."""


@dataclass(frozen=True)
class Layer:
    """One layer of a model, or its data: what computing it takes at both ends, and what it gives.

    entries: of its output, for one request. inputs: names of the layers that it reads, the one before it
    if None; the first reads nothing, and is the data. nbytes: of its output when that is sent as it is,
    in place of what `activations` says, as of data that is no float32.
    """

    name: str
    source_seconds: float
    target_seconds: float
    entries: int
    inputs: Collection[str] | None = None
    nbytes: int | None = None


@dataclass(frozen=True)
class Split:
    """Where layers run, and what a request takes then.

    seconds: of one request with `objective` "latency", of each of a stream with "period"; the mean over
    rates, if some were given. sent: the layers whose outputs cross the link, `nbytes` in all.
    terms: the seconds of "source", "send", "target" and "back" of a request alone.
    source_only_seconds, input_sent_seconds: what it takes if nothing is sent, or the data itself;
    infinite where that cannot be.
    """

    objective: str
    seconds: float
    lower_bound_seconds: float
    gap: float
    source_layers: tuple[str, ...]
    target_layers: tuple[str, ...]
    sent: tuple[str, ...]
    nbytes: int
    terms: dict[str, float]
    source_only_seconds: float
    input_sent_seconds: float
    sentences: tuple[str, ...]


def plan_split(
    cluster: Cluster,
    layers: Sequence[Layer | Mapping[str, Any]],
    *,
    source: str,
    target: str,
    activations: Compressor | None = None,
    objective: str = "latency",
    answer_at: str = "source",
    rates: npt.ArrayLike | None = None,
) -> Split:
    """Return the Split of a model's layers between two sites that answers soonest, or most often.

    layers: each a Layer, or a dict of one's fields; a chain, or a graph by their `inputs`. Those without
        inputs are the data, which is at the source.
    source, target: names of sites; one rank computes at each.
    activations: the compressor of what crosses the link; float32 if None.
    objective: "latency", one request alone, nothing at the same time; or "period", a stream of requests
        where source, link, target and the way back work on different ones.
    answer_at: "source" or "target", where what no layer reads is needed. It goes back as it is.
    rates: bytes per second of the link lately, in place of the file's; the mean over them is made least.

    The latency is exact, by linear programme, and so is the period of a chain; that of a graph is by
    integer programme, with its gap. Raises ValueError for numbers and names that make no sense, and
    PlanError where layers that one end cannot run (infinite seconds) leave no split.
    """
    _one_of("objective", objective, ("latency", "period"))
    _one_of("answer_at", answer_at, ("source", "target"))
    made = [each if isinstance(each, Layer) else _layer(each) for each in layers]
    inputs = _inputs(made)
    costs, nbytes = _costs(cluster, made, inputs, (source, target), activations, rates, answer_at)
    latency = objective == "latency"
    find = least_latency if latency else least_period_of_chain if _is_chain(inputs) else least_period
    here, bound = find(costs)
    return _split(costs, nbytes, here, bound, objective, (source, target))


@dataclass(frozen=True, eq=False)
class ChainSplits:
    """All splits of a chain of layers, for a link whose rate changes while requests are answered.

    splits: that with the data alone at the source first, that with all layers there last, as planned at
    the rate of the cluster file.
    fixed_seconds: float64[splits], of a request but for its bytes on the link.
    link_nbytes: float64[splits], those bytes.
    """

    splits: tuple[Split, ...]
    fixed_seconds: npt.NDArray[np.float64]
    link_nbytes: npt.NDArray[np.float64]

    def seconds_at(self, rates: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return what a request takes, float64[rates, splits], at bytes per second of the link."""
        return self.fixed_seconds + self.link_nbytes / np.atleast_1d(np.asarray(rates, float))[:, None]

    def best(self, seconds_per_byte: float) -> int:
        """Return the number of the split that is soonest, by the mean over rates of 1 / rate."""
        return int((self.fixed_seconds + self.link_nbytes * seconds_per_byte).argmin())


def plan_splits(
    cluster: Cluster,
    layers: Sequence[Layer | Mapping[str, Any]],
    *,
    source: str,
    target: str,
    activations: Compressor | None = None,
    answer_at: str = "source",
) -> ChainSplits:
    """Return all splits of a chain, of which the one soonest on average is chosen anew as rates change.

    Arguments are those of `plan_split`, and `best` takes what it would take for the same rates. Raises
    ValueError for numbers and names that make no sense, and for layers that are no chain; PlanError
    where layers that one end cannot run leave no split.
    """
    _one_of("answer_at", answer_at, ("source", "target"))
    made = [each if isinstance(each, Layer) else _layer(each) for each in layers]
    inputs = _inputs(made)
    if not _is_chain(inputs):
        raise ValueError(
            "layers must be a chain, each reading the one before it; plan_split takes graphs"
        )
    costs, nbytes = _costs(cluster, made, inputs, (source, target), activations, None, answer_at)
    costs.bounds(len(made))  # PlanError where a layer can run at neither end
    splits, fixed, sent = [], [], []
    for place in range(1, len(made) + 1):
        here = np.arange(len(made)) < place
        split = _split(costs, nbytes, here, math.inf, "latency", (source, target))
        crosses = costs.crossing(here)
        splits.append(split)
        fixed.append(split.seconds - float(costs.send[:, crosses].sum()))
        sent.append(float((nbytes[crosses] + cluster.overhead_nbytes).sum()))
    if not np.isfinite(fixed).any():
        raise PlanError("layers that one end cannot run leave no split; give them finite seconds there")
    return ChainSplits(tuple(splits), np.array(fixed), np.array(sent))


def _one_of(name, value, known):
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(known)}, not {value!r}")


def _is_chain(inputs):
    return inputs == [[number - 1] if number else [] for number in range(len(inputs))]


def _split(costs, nbytes, here, bound, objective, ends):
    """Return the Split where the layers with here[layer] are at the source; `bound`: none is sooner."""
    latency, (source, target) = objective == "latency", ends

    def judged(here):
        return sum(costs.latency_terms(here).values()) if latency else costs.period(here)

    seconds, terms, sent = judged(here), costs.latency_terms(here), costs.crossing(here)
    others = {
        "all": judged(np.ones(here.size, bool)),  # at the source
        "data": judged(costs.is_data),
    }
    bound = min(bound, seconds)
    return Split(
        objective=objective,
        seconds=seconds,
        lower_bound_seconds=bound,
        gap=seconds / bound - 1 if bound > 0 else 0.0,
        source_layers=tuple(np.array(costs.names)[here].tolist()),
        target_layers=tuple(np.array(costs.names)[~here].tolist()),
        sent=tuple(np.array(costs.names)[sent].tolist()),
        nbytes=int(nbytes[sent].sum()),
        terms=terms,
        source_only_seconds=others["all"],
        input_sent_seconds=others["data"],
        sentences=(
            _what(costs, here, nbytes, target, seconds, others),
            *_prices(costs.busy(here), latency, seconds, source, target),
        ),
    )


def _layer(table):
    try:
        return Layer(**table)
    except TypeError:
        raise ValueError(
            f"layers: {table!r:.80} must have name, source_seconds, target_seconds and entries, and may "
            "have inputs and nbytes"
        ) from None


def _inputs(layers):
    """Return the numbers of the layers that each reads; ValueError or PlanError for what cannot be."""
    names = [layer.name for layer in layers]
    number = {name: index for index, name in enumerate(names)}
    if not names:
        raise ValueError("layers must have one at least")
    if len(number) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"layers: {twice!r} stands there twice; give each a name of its own")
    inputs, outputs = [], [[] for _ in names]
    for index, layer in enumerate(layers):
        whole(f"layer {layer.name!r}: entries", layer.entries, least=0)
        before = names[max(0, index - 1) : index] if layer.inputs is None else layer.inputs
        before = [before] if isinstance(before, str) else list(dict.fromkeys(before))
        if unknown := [name for name in before if name not in number]:
            raise ValueError(f"layer {layer.name!r} reads {unknown[0]!r}, and no layer is called so")
        inputs.append([number[name] for name in before])
        for name in before:
            outputs[number[name]].append((index, 0))
    in_order([[(u, 0) for u in before] for before in inputs], outputs, names, "layers read each other")
    return inputs


def _costs(cluster, layers, inputs, ends, activations, rates, answer_at):
    """Return (Costs, float64[layers]: bytes of each output when it is sent)."""
    for name in ends:
        if name not in cluster.names:
            raise ValueError(f"no site is called {name!r}; known sites: {', '.join(cluster.names)}")
    if ends[0] == ends[1]:
        raise ValueError(f"source and target are both {ends[0]!r}; a split is between two sites")
    answers, nbytes = np.zeros((2, len(layers)))
    coding = np.zeros((2, len(layers)))
    for number, layer in enumerate(layers):
        if layer.nbytes is not None:
            answers[number] = nbytes[number] = whole(
                f"layer {layer.name!r}: nbytes", layer.nbytes, least=0
            )
            continue
        answers[number] = nbytes[number] = 4 * layer.entries
        if activations is not None:
            nbytes[number] = activations.wire_nbytes(layer.entries)
            for place, end in enumerate(ends):
                site = cluster.sites[cluster.names.index(end)]
                coding[place, number] = coding_seconds(site, activations, layer.entries)[place]
    latency, send = _line(cluster, *ends, nbytes)
    if rates is not None:
        lately = np.atleast_1d(np.asarray(rates, float))
        if lately.ndim != 1 or not lately.size or not (np.isfinite(lately) & (lately > 0)).all():
            raise ValueError("rates must be bytes per second above 0; leave out what was an outage")
        send = (nbytes + cluster.overhead_nbytes) / lately[:, None]
    read = {before for each in inputs for before in each}
    is_answer = np.array([number not in read for number in range(len(layers))])
    back_latency, back = _line(cluster, *ends[::-1], answers)
    goes_back = answer_at == "source"
    costs = Costs(
        names=[layer.name for layer in layers],
        edges=np.array([(u, v) for v, before in enumerate(inputs) for u in before], int).reshape(-1, 2),
        is_data=np.array([not before for before in inputs]),
        is_answer=is_answer,
        source=np.array([_seconds(layer, "source_seconds") for layer in layers]),
        target=np.array([_seconds(layer, "target_seconds") for layer in layers]),
        encode=coding[0],
        decode=coding[1],
        send=np.atleast_2d(send),
        back=np.where(is_answer & goes_back, back, 0.0),
        latency=latency,
        back_latency=back_latency if goes_back else 0.0,
    )
    return costs, nbytes


def _seconds(layer, end):
    value = getattr(layer, end)
    return value if value == math.inf else real(f"layer {layer.name!r}: {end}", value, least=0)


def _line(cluster, source, target, nbytes):
    """Return the latency of the way between two sites, and what it is busy with each of `nbytes`."""
    route, known = cluster.route(source, target), {}
    for each in set(nbytes.tolist()):
        lines = [link.line(each, "messages") for link in route]
        known[each] = sum(late for late, _ in lines), min(rate for _, rate in lines)
    busy = [(each + cluster.overhead_nbytes) / known[each][1] for each in nbytes.tolist()]
    return max(late for late, _ in known.values()), np.array(busy)


def _what(costs, here, nbytes, target, seconds, others):
    """Return the sentence that says what is sent, and whether splitting pays."""
    data = nbytes[costs.is_data].sum()
    ms = f"{1e3 * seconds:.3g} ms"
    alone, whole = (
        f"{1e3 * others[which]:.3g} ms" if math.isfinite(others[which]) else "not possible"
        for which in ("all", "data")
    )
    if here.all():
        return f"nothing is sent: {ms}, and {whole} if the data is"
    if (here == costs.is_data).all():
        larger = not (nbytes[~costs.is_data & ~costs.is_answer] < data).any()
        why = ", as all activations are larger" * larger
        return (
            f"no split pays{why}: the data itself, {data:,.0f} bytes, is sent to {target}; {ms}, and "
            f"{alone} with nothing sent"
        )
    sent = costs.crossing(here)
    names = ", ".join(name for name, crosses in zip(costs.names, sent) if crosses)
    pays = "the split pays" if seconds < min(others.values()) < math.inf else "split"
    return (
        f"{pays}: {names} sent to {target}, {nbytes[sent].sum():,.0f} bytes where the data is "
        f"{data:,.0f}; {ms}, {alone} with nothing sent, {whole} with "
        "the data"
    )


def _prices(busy, latency, seconds, source, target):
    """Yield what 10 % more of each end and way saves, to first order, the most worthwhile first.

    Of a period only what is busy longest counts.
    """
    worth = {
        f"10 % more speed at {source}": busy.source,
        f"10 % more on the link {source} > {target}": float(busy.send.mean()),
        f"10 % more speed at {target}": busy.target,
        f"10 % more on the link {target} > {source}": busy.back,
    }
    offers = sorted(worth.items(), key=lambda offer: -offer[1])
    for what, value in offers if latency else offers[:1]:
        if 0.1 * value >= WORTH_SAYING * seconds > 0:
            yield f"{what} saves {100 * value:.3g} ms a request"
