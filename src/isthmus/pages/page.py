"""A page that needs nothing else, and its charts: SVG in the page's own ink, light or dark."""

import io
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from isthmus.files import write_text
from isthmus.picture_style import STYLE, drawing

WIDTH = 4.6  # inches of a chart: as wide as a phone at its own size; wide pages show two in a row
BUCKETS = 500  # of a thinned curve: at least one a pixel
MARKS = 40  # on a curve; more would run into each other
INK, CARD = "#010203", "#fdfcfb"  # stand for the colours of the page, which change with its light
CHART_STYLE = STYLE | {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"),
        INK,
    ),
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "patch.edgecolor": CARD,
    "patch.force_edgecolor": True,
    "hatch.color": CARD,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "path.simplify": False,
    "text.parse_math": False,
}


def write_page(path, template, **values):
    """Render `template`, a file beside this one, to `path`, whole or not at all."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["breakable"] = breakable
    text = pages.get_template(template).render(**values)
    write_text(path, text.encode(errors="backslashreplace").decode())  # names that are no UTF-8


def breakable(text, longest=12):
    """Return `text` as HTML; what is longer than `longest` may be broken after its dots and slashes."""
    from markupsafe import Markup, escape

    if len(text) <= longest:
        return escape(text)
    return Markup("").join(
        part + Markup("<wbr>") if part in "./_-→" else part for part in map(escape, text)
    )


@contextmanager
def chart(made, title, height=2.6):
    """Give axes to draw on; add (title, SVG) to the list `made` when they are drawn."""
    with drawing(CHART_STYLE, WIDTH, height) as figure:
        yield figure.subplots()
        made.append((title, _svg(figure)))


def legend_above(axis, columns, **options):
    """Put the legend over the axes, where it hides nothing."""
    axis.legend(
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=2.2,
        **options,
    )


def thin(x, y, buckets=BUCKETS):
    """Return the part of a curve that can be seen, as two arrays.

    x: ascending; y: as long. The curve's ends and the least and the most of each of `buckets` equal
    parts of x are kept, so that no peak is lost; what is not finite is left out.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if x.size <= 2 * buckets:
        return x, y
    bucket = ((x - x[0]) / max(x[-1] - x[0], np.finfo(float).tiny) * buckets).astype(int)
    order = np.lexsort((y, bucket))
    starts = np.flatnonzero(np.diff(bucket[order], prepend=-1))
    least, most = order[starts], order[np.append(starts[1:], x.size) - 1]
    kept = np.unique(np.concatenate([[0], least, most, [x.size - 1]]))
    return x[kept], y[kept]


def draw_curve(axis, x, y, **look):
    """Draw a curve, thinned, with a marker on some of its points where there are many."""
    x, y = thin(x, y)
    axis.plot(x, y, markevery=max(1, len(x) // MARKS), **look)


def milliseconds(seconds):
    """Return seconds as text in ms; a dash for None."""
    return "–" if seconds is None else f"{1e3 * seconds:.3f}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def relative(predicted, measured):
    """Return the error of a prediction as text; a dash where nothing was predicted or measured."""
    return f"{100 * (predicted / measured - 1):+.1f}\u00a0%" if predicted and measured else "–"


def _svg(figure):
    """Return the picture as SVG that scales with its place on the page."""
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "var(--ink)").replace(CARD, "var(--card)")
