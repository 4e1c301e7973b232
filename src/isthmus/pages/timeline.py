"""The timeline of a report: a few steps of every rank, cloud above edge, and what crosses between."""

import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from isthmus.cures import explained
from isthmus.errors import SettingsError
from isthmus.json_text import loads
from isthmus.registry import STAGES

TEMPLATE = Path(__file__).with_name("timeline.html")
STEPS = 3  # that are drawn
SITES, RANKS = 6, 12  # at most; of more, the first sites, and of each site the first ranks
LEFT, RIGHT, TOP, LANE, BAND = 132, 920, 30, 26, 84  # of the picture, 960 units wide
LINES = 32  # wires of a step and a direction that are each drawn, not only the band of them
HATCHES = {  # matplotlib's, as the other charts use them: a path in a tile of 6 x 6
    "": "",
    "///": "M0 6L6 0",
    "//": "M1 5L4 2",
    "\\\\\\": "M0 0L6 6",
    "||": "M3 1V4",
    "|||": "M3 0V6",
    "---": "M0 3H6",
    "+++": "M0 3H6M3 0V6",
    "xxx": "M0 0L6 6M0 6L6 0",
}


class Piece(NamedTuple):
    """A span of a rank, or (name "wire") a message from `rank` to `target`; times in microseconds."""

    rank: int
    step: int
    name: str
    start: float
    end: float
    nbytes: int
    target: int | None = None


def timeline(folder, cluster):
    """Return the timeline of the run in `folder` as HTML, "" where there is no trace of a step.

    Raises SettingsError in one line if `trace.json` is damaged.
    """
    from jinja2 import Environment, StrictUndefined

    path = Path(folder, "trace.json")
    if not path.exists():
        return ""
    try:
        trace = loads(path.read_bytes())
        pieces, error_us = _pieces(trace["traceEvents"]), trace["otherData"]["clock_uncertainty_us"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise SettingsError(
            f"{path}: cannot be read: {explained(problem, 'the trace is damaged: remove it')}"
        ) from None
    if not pieces:
        return ""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        error_us=error_us,
        stages=STAGES,
        hatches=HATCHES,
        left=LEFT,
        right=RIGHT,
        lane=LANE,
        **draw(pieces, cluster),
    )


def middle_steps(pieces, count=STEPS):
    """Return {step: (start, end)} of `count` steps in a row that take as long as most in a row do."""
    starts, ends = defaultdict(lambda: math.inf), defaultdict(float)
    for piece in pieces:
        starts[piece.step] = min(starts[piece.step], piece.start)
        ends[piece.step] = max(ends[piece.step], piece.end)
    steps = sorted(starts)
    rows = [steps[first : first + count] for first in range(max(1, len(steps) - count + 1))]
    rows.sort(key=lambda row: ends[row[-1]] - starts[row[0]])
    return {step: (starts[step], ends[step]) for step in rows[len(rows) // 2]}


def draw(pieces, cluster):
    """Return all that the template draws, in its units."""
    steps = middle_steps(pieces)
    begin, end = min(start for start, _ in steps.values()), max(end for _, end in steps.values())
    scale = (RIGHT - LEFT) / (end - begin)
    cloud_first = sorted(range(len(cluster.sites)), key=lambda site: cluster.sites[site].tier != "cloud")
    sites = cloud_first[:SITES]
    lanes, bands, height = _places(cluster, sites)

    def at(moment):
        return round(LEFT + scale * (moment - begin))

    shown = [piece for piece in pieces if piece.step in steps]
    boxes = [
        (at(piece.start), lanes[piece.rank], at(piece.end) - at(piece.start), piece.name, _words(piece))
        for piece in shown
        if piece.target is None and piece.rank in lanes and at(piece.end) > at(piece.start)
    ]
    crossings = defaultdict(list)
    for piece in shown:
        if piece.target is not None:
            source, target = (cluster.site_of_rank[rank] for rank in (piece.rank, piece.target))
            if source in sites and target in sites:
                crossings[source, target, piece.step].append(piece)
    wires = [
        _wires(of_step, bands, sites, source, target, at)
        for (source, target, _), of_step in sorted(crossings.items())
    ]
    ticks = [(at(begin + tick), f"{tick / 1e3:g}") for tick in _ticks(end - begin)]
    return {
        "boxes": boxes,
        "wires": wires,
        "ticks": ticks,
        "height": height,
        "lanes": [
            (y, f"{_short(cluster.names[cluster.site_of_rank[rank]])} · rank {rank}")
            for rank, y in lanes.items()
        ],
        "bands": [
            (top, _crossing_words(crossings, site, len(steps))) for site, (top, _) in bands.items()
        ],
        "steps": [(at(start), step) for step, (start, _) in steps.items()],
        "names": [name for name in STAGES if any(box[3] == name for box in boxes)],
        "hidden": cluster.size - len(lanes),
        "step_ms": (end - begin) / len(steps) / 1e3,
    }


def _places(cluster, sites):
    """Return {rank: top of its lane}, {site: top and bottom of the band above it}, and the height.

    The first rank of a site, which speaks for it, is next to the band.
    """
    most = max(1, RANKS // len(sites)) if cluster.size > RANKS else RANKS
    lanes, bands, y = {}, {}, TOP
    for place, site in enumerate(sites):
        ranks = cluster.ranks_of_site(cluster.names[site])[:most]
        if place:
            bands[site] = y, y + BAND
            y += BAND
        for rank in ranks if place else reversed(ranks):
            lanes[rank] = y
            y += LANE + 4
    return lanes, bands, y + 40


def _wires(wires, bands, sites, source, target, at):
    """Return (polygon, lines, words) for the wires of one step from one site to another."""
    down = sites.index(target) > sites.index(source)
    top, bottom = bands[target if down else source]
    leaves, arrives = (top, bottom) if down else (bottom, top)
    sent, received = [at(wire.start) for wire in wires], [at(wire.end) for wire in wires]
    polygon = (
        (min(sent), leaves),
        (max(sent) + 1, leaves),
        (max(received) + 1, arrives),
        (min(received), arrives),
    )
    lines = [(first, leaves, last, arrives) for first, last in zip(sent, received)]
    nbytes = sum(wire.nbytes for wire in wires)
    seconds = 1e-6 * (max(wire.end for wire in wires) - min(wire.start for wire in wires))
    return (
        " ".join(f"{x},{y}" for x, y in polygon),
        lines if len(lines) <= LINES else [],
        f"{len(wires)} messages, {nbytes / 1e3:.4g} kB in {1e3 * seconds:.4g} ms",
    )


def _words(piece):
    """Return what is told of a span where it is pointed at."""
    sent = f", sends {piece.nbytes / 1e3:.4g} kB" if piece.nbytes else ""
    return f"{piece.name} {(piece.end - piece.start) / 1e3:.4g} ms{sent} (step {piece.step})"


def _crossing_words(crossings, site, steps):
    """Return how many kB a step go down to `site`, and how many up from it."""
    nbytes = {"↓": 0, "↑": 0}
    for (source, target, _), wires in crossings.items():
        if site in (source, target):
            nbytes["↓" if target == site else "↑"] += sum(wire.nbytes for wire in wires)
    return [f"{arrow} {count / 1e3 / steps:.4g} kB" for arrow, count in nbytes.items() if count]


def _pieces(events):
    """Return the Pieces that the events of a trace tell."""
    found, sent = [], {}
    for event in events:
        told = event.get("args", {})
        if event["ph"] == "X":
            found.append(
                Piece(
                    event["tid"] - 1,
                    told["step"],
                    event["name"],
                    event["ts"],
                    event["ts"] + event["dur"],
                    told.get("site_nbytes", 0) + told.get("link_nbytes", 0),
                )
            )
        elif event["ph"] == "s":
            sent[event["id"]] = event
        elif event["ph"] == "f":
            first = sent.pop(event["id"])
            found.append(
                Piece(
                    first["tid"] - 1,
                    told["step"],
                    "wire",
                    first["ts"],
                    event["ts"],
                    told["nbytes"],
                    event["tid"] - 1,
                )
            )
    return found


def _ticks(length):
    """Return some round numbers from 0 to `length`."""
    rough = length / 8
    unit = 10 ** math.floor(math.log10(rough))
    every = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [every * number for number in range(int(length / every) + 1)]


def _short(name):
    return name if len(name) <= 9 else f"{name[:8]}…"
