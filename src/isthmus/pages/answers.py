"""The report of a stream of requests: predicted beside measured, and rules of dispatch side by side."""

from pathlib import Path

import numpy as np

from isthmus.errors import SettingsError
from isthmus.json_text import loads
from isthmus.pages.answer_words import activations_in_words
from isthmus.pages.page import chart, legend_above, milliseconds, relative, write_page
from isthmus.picture_style import COLOURS, DASHES, HATCHES
from isthmus.timing.requests import TERMS

SUMMARY = "summary.json"
SPREAD = ("mean", "p50", "p99")


def write_answers_report(folder):
    """Write `report.html` into the folder that `isthmus infer` has filled; return its path.

    Raises SettingsError in one line if its summary is not there or not of answers.
    """
    path = Path(folder) / SUMMARY
    try:
        made = loads(path.read_text(encoding="utf-8"))
        values = {"made": made, "headline": _headline(made), "rules": _rules(made)}
        values |= {"terms": _terms(made), "words": _words(made), "pictures": _pictures(made)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise SettingsError(
            f"{path}: cannot be read as what `isthmus infer` writes; run it again"
        ) from None
    page = Path(folder) / "report.html"
    write_page(page, "answers.html", name=Path(folder).absolute().name, **values)
    return page


def is_of_answers(folder):
    """Return whether a folder is one of answers, not of a training run."""
    return Path(folder, SUMMARY).exists() and Path(folder, "answers.npz").exists()


def _headline(made):
    """Return the numbers that come first, of the first rule: (value, what it is), as text."""
    run = next(iter(made["runs"].values()))
    predicted, measured = made["predicted"], run["measured"]
    numbers = [
        (
            f"{1e3 * measured['mean']:.1f} ms",
            f"a request (mean); predicted {1e3 * predicted['mean']:.1f} ms, "
            f"{relative(predicted['mean'], measured['mean'])}",
        ),
        (f"{1e3 * measured['p99']:.1f} ms", "99 of 100 requests take no longer"),
        (f"{run['from_cloud'] / run['requests']:.0%}", f"of {run['requests']:,} answered by the cloud"),
        (
            f"{run['sent_nbytes'] / 1e3:,.1f} kB",
            f"sent to it; {run['predicted_nbytes'] / 1e3:,.1f} by formula",
        ),
    ]
    if run["accuracy"] is not None:
        numbers.append((f"{run['accuracy']:.2%}", "right"))
    return numbers


def _words(made):
    """Return what was planned, in sentences."""
    plan = made["plan"]
    words = [f"Mode: {made['mode']}.", *([] if isinstance(plan, str) else plan["sentences"])]
    if len(made["considered"]) > 1:
        means = ", ".join(f"{mode} {milliseconds(each)}" for mode, each in made["considered"].items())
        words.append(f"Predicted means of what might be taken, ms: {means}.")
    if told := activations_in_words(made):
        words.append(told)
    return words


def _rules(made):
    """Return the columns of the table of rules of dispatch, and its rows, as text."""
    ranks = _asked_ranks(made)
    columns = [
        "dispatch",
        "mean, ms",
        "predicted",
        "p50",
        "p99",
        "late",
        "% right",
        "kB sent",
        "batches",
    ]
    rows = []
    for rule, run in made["runs"].items():
        measured = run["measured"]
        rows.append(
            [
                rule,
                *(milliseconds(each) for each in (measured["mean"], run["predicted"]["mean"])),
                *(milliseconds(measured[name]) for name in SPREAD[1:]),
                f"{run['late']:,}",
                "–" if run["accuracy"] is None else f"{100 * run['accuracy']:.2f}",
                f"{run['sent_nbytes'] / 1e3:,.1f}",
                f"{run['batches']:,}",
                *(f"{run['asked'][rank]:,}" for rank in ranks),
            ]
        )
    return [*columns, *(f"asked {made['sites'][rank]}, rank {rank}" for rank in ranks)], rows


def _asked_ranks(made):
    runs = made["runs"].values()
    return [rank for rank in range(len(made["sites"])) if any(run["asked"][rank] for run in runs)]


def _terms(made):
    """Return (rule, term, predicted, measured, error), as text."""
    return [
        (
            rule,
            name,
            milliseconds(run["predicted"][name]),
            milliseconds(run["measured"][name]),
            relative(run["predicted"][name], run["measured"][name]),
        )
        for rule, run in made["runs"].items()
        for name in (*TERMS, *SPREAD)
    ]


def _pictures(made):
    """Return (title, SVG) of each chart."""
    charts, runs = [], made["runs"]
    with chart(charts, "How long requests take") as axis:
        for place, (rule, run) in enumerate(runs.items()):
            axis.plot(
                1e3 * np.array(run["percentiles"]),
                range(101),
                color=COLOURS[place],
                linestyle=DASHES[place],
                label=rule,
            )
        axis.set(xlabel="ms from arrival to answer", ylabel="% of the requests", xscale="log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        legend_above(axis, 3)
    first = next(iter(runs.values()))
    bars = {"predicted": first["predicted"]} | {rule: run["measured"] for rule, run in runs.items()}
    terms = {label: [1e3 * table[name] for name in TERMS] for label, table in bars.items()}
    _grouped(charts, "By term, of the requests that have it", TERMS, terms, "ms (means)")
    ranks = _asked_ranks(made)
    if len(ranks) > 1:
        names = [f"rank {rank}" for rank in ranks]
        bars = {rule: [run["asked"][rank] for rank in ranks] for rule, run in runs.items()}
        _grouped(charts, "Which cloud rank was asked", names, bars, "requests")
    return charts


def _grouped(charts, title, names, bars, unit):
    """Add a chart of groups of bars: a group for each name, in it a bar for each label."""
    height = 0.8 / len(bars)
    with chart(charts, title, 1.0 + 0.12 * len(names) * len(bars) + 0.1 * len(bars)) as axis:
        for place, (label, values) in enumerate(bars.items()):
            axis.barh(
                np.arange(len(names)) - 0.4 + (place + 0.5) * height,
                values,
                height,
                color=COLOURS[place % len(COLOURS)],
                hatch=HATCHES[place % len(HATCHES)],
                label=label,
            )
        axis.set(yticks=range(len(names)), yticklabels=names, xlabel=unit)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        legend_above(axis, 2)
