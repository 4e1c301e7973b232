"""What ranks noted as Chrome's trace events, which Perfetto opens: a process a site, a thread a rank.

Spans of one rank do not overlap. "wait" is waiting for a rank that has not sent a message yet, or does
not take one yet. A span's bytes are those of the messages that were handed to MPI in it. Arrows are
messages between sites.
"""

from collections import defaultdict, deque
from typing import NamedTuple

from isthmus.files import replacing
from isthmus.json_text import dumps
from isthmus.links.traced import COLUMNS, RECEIVED, SENT
from isthmus.registry import SPANS

ROW = ("step", *COLUMNS)
STEP, KIND, AT, START, END, PEER, NBYTES, TAG = range(len(ROW))


class Message(NamedTuple):
    """A message from one rank to another.

    sent, expected: when its source handed it to MPI, and its target a place for it. sending, receiving:
    (start, end) of each of them doing nothing but wait for it; the target has it at the latter's end.
    """

    step: int
    source: int
    target: int
    nbytes: int
    sent: float
    expected: float
    sending: tuple[float, float]
    receiving: tuple[float, float]


class Span(NamedTuple):
    """What a rank did from `start` to `end`, and the bytes that it sent then."""

    step: int
    name: str
    start: float
    end: float
    site_nbytes: int = 0
    link_nbytes: int = 0


def write_trace(path, cluster, rows_of_rank, offsets):
    """Write the trace of float64[:, ROW] of each rank, which are on one clock.

    offsets: float64[comparisons, ranks, 2], what `clock_offsets` gave before and after the run.
    """
    errors = offsets[..., 1].max(axis=0)
    steps = next((rows[[0, -1], STEP].astype(int).tolist() for rows in rows_of_rank if len(rows)), [])
    told = {
        "program": "isthmus",
        "first_and_last_step": steps,
        "clock": "rank 0's; how far others were ahead of it, by ping-pong before and after the steps",
        "clock_uncertainty_us": round(1e6 * errors.max(), 3),
        "clocks": [
            {
                "rank": rank,
                "ahead_seconds": offsets[:, rank, 0].tolist(),
                "uncertainty_seconds": offsets[:, rank, 1].tolist(),
            }
            for rank in range(cluster.size)
        ],
    }
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(f'{{"displayTimeUnit": "ms",\n"otherData": {dumps(told)},\n"traceEvents": [\n')
        file.write(",\n".join(map(dumps, trace_events(cluster, rows_of_rank, errors))))
        file.write("\n]}\n")


def trace_events(cluster, rows_of_rank, errors):
    """Yield the events as dicts; errors: seconds, of each rank's clock."""
    yield from _names(cluster)
    sites, exchanged = cluster.site_of_rank, messages(rows_of_rank)
    origin = min(
        (rows[rows[:, KIND] < SENT, START].min() for rows in rows_of_rank if len(rows)), default=0.0
    )

    def event(kind, name, rank, moment, **more):
        return {
            "ph": kind,
            "name": name,
            "cat": "step",
            "pid": _process(cluster, sites[rank]),
            "tid": rank + 1,
            "ts": round(1e6 * (moment - origin), 3),
            **more,
        }

    waits = _waits(exchanged, errors)
    for rank, rows in enumerate(rows_of_rank):
        for span in spans(rows, waits[rank], rank, sites):
            sent = {
                name: getattr(span, name)
                for name in ("site_nbytes", "link_nbytes")
                if getattr(span, name)
            }
            yield event(
                "X",
                span.name,
                rank,
                span.start,
                dur=round(1e6 * (span.end - span.start), 3),
                args={"step": span.step, **sent},
            )
    for number, message in enumerate(exchanged):
        if sites[message.source] != sites[message.target]:
            told = {"id": number, "args": {"step": message.step, "nbytes": message.nbytes}}
            yield event("s", "wire", message.source, message.sent, **told)
            yield event("f", "wire", message.target, message.receiving[1], bp="e", **told)


def messages(rows_of_rank):
    """Return the Messages between ranks.

    Those between two ranks that have one tag are received in the order in which they are sent.
    """
    sent, found = defaultdict(deque), []
    for source, rows in enumerate(rows_of_rank):
        for step, _, at, start, end, target, _, tag in rows[rows[:, KIND] == SENT].tolist():
            sent[step, source, target, tag].append((at, (start, end)))
    for target, rows in enumerate(rows_of_rank):
        for step, _, at, start, end, source, nbytes, tag in rows[rows[:, KIND] == RECEIVED].tolist():
            sent_at, sending = sent[step, source, target, tag].popleft()
            found.append(
                Message(int(step), int(source), target, int(nbytes), sent_at, at, sending, (start, end))
            )
    return found


def spans(rows, waits, rank, site_of_rank):
    """Return the Spans of one rank in order, with `waits`, pairs of seconds in order, cut out."""
    found, waits = [], deque(waits)
    for step, kind, _, start, end, *_ in rows[rows[:, KIND] < SENT].tolist():
        pieces = []
        while waits and waits[0][0] < end:
            first, last = waits.popleft()
            first, last = max(first, start), min(last, end)
            pieces += [(SPANS[int(kind)], start, first), ("wait", first, last)]
            start = max(start, last)
        pieces.append((SPANS[int(kind)], start, end))
        found += [Span(int(step), *piece) for piece in pieces if piece[2] > piece[1]]
    place = 0
    for _, _, moment, _, _, peer, nbytes, _ in rows[rows[:, KIND] == SENT].tolist():
        while found[place].end < moment:
            place += 1
        # MPI's own allreduce does not tell to whom it sends: to other sites, if there are any.
        inside = site_of_rank[int(peer)] == site_of_rank[rank] if peer >= 0 else not any(site_of_rank)
        name = "site_nbytes" if inside else "link_nbytes"
        found[place] = found[place]._replace(**{name: getattr(found[place], name) + int(nbytes)})
    return found


def _waits(exchanged, errors):
    """Return rank -> when it waited for another that was not ready, as far as the clocks can tell."""
    waits = defaultdict(list)
    for message in exchanged:
        error = errors[message.source] + errors[message.target]
        for rank, (start, end), ready in (
            (message.source, message.sending, message.expected),
            (message.target, message.receiving, message.sent),
        ):
            if ready - start > error:
                waits[rank].append((start, min(ready, end)))
    return defaultdict(list, {rank: sorted(pairs) for rank, pairs in waits.items()})


def _names(cluster):
    """Yield what names and orders sites and ranks: the cloud above the edge."""
    cloud_first = sorted(cluster.sites, key=lambda site: site.tier != "cloud")
    for place, site in enumerate(cloud_first):
        named = {"ph": "M", "ts": 0, "pid": _process(cluster, cluster.names.index(site.name)), "tid": 0}
        text = site.name if site.name == site.tier else f"{site.name} ({site.tier})"
        yield {**named, "name": "process_name", "args": {"name": text}}
        yield {**named, "name": "process_sort_index", "args": {"sort_index": place}}
        for rank in cluster.ranks_of_site(site.name):
            named = {**named, "tid": rank + 1}
            yield {**named, "name": "thread_name", "args": {"name": f"rank {rank}"}}
            yield {**named, "name": "thread_sort_index", "args": {"sort_index": rank}}


def _process(cluster, site):
    """Return the number of a site: no thread's, and not 0, which Perfetto takes for an idle core."""
    return cluster.size + 1 + site
