"""The charts of a comparison: every run has a letter, a colour, dashes, a marker and a hatch."""

import itertools
import math

from isthmus.folders.metrics import metrics_of
from isthmus.pages.page import chart, draw_curve, legend_above
from isthmus.pages.pictures import (
    draw_stacks,
    loss_label,
    metric_label,
    scaled,
    short,
    side_by_side,
    stacks_of,
)
from isthmus.picture_style import COLOURS, DASHES, HATCHES, MARKERS

LINKS = 8  # of a chart; more cannot be read, and the table tells them all


def draw_comparison(letters, runs):
    """Return part of the page -> (title, SVG) of each of its charts."""
    made = {"learning": [], "time": [], "links": []}
    looks = [look(number, letter, len(runs)) for number, (letter, _) in enumerate(zip(letters, runs))]
    _draw_learning(made["learning"], runs, looks)
    draw_stacks(
        made["time"],
        "A step by term, predicted over measured",
        [stack for letter, run in zip(letters, runs) for stack in stacks_of(run, f"{letter} ")],
    )
    _draw_predictions(made["time"], runs, looks)
    if any(run.summary["links"] for run in runs):
        _draw_links(made["links"], runs, looks)
    return made


def look(number, letter, count):
    """Return how the curve of one of `count` runs looks; no two of twelve look alike, in grey neither.

    The first are the widest, so that they can be seen under others that are equal.
    """
    wider = (count - number) / count
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[(number + number // len(COLOURS)) % len(DASHES)],
        "label": letter,
        "linewidth": 0.8 + 2.4 * wider,
        "markersize": 3 + 5 * wider,
    }


def _draw_learning(made, runs, looks):
    """The metrics that all runs have by seconds and by bytes, and the loss of every step."""

    def draw(title, lines, x, y, xlabel, ylabel, **more):
        with chart(made, title) as axis:
            for run, its_look in zip(runs, looks):
                draw_curve(
                    axis,
                    [x(line) for line in lines(run)],
                    [y(line) for line in lines(run)],
                    **its_look | more,
                )
            axis.set(xlabel=xlabel, ylabel=ylabel)
            legend_above(axis, 6)

    def tests(run):
        return run.evaluations

    seconds, megabytes = "training seconds", "MB over the links"
    if all(run.evaluations for run in runs):
        names = [list(metrics_of(run.evaluations[-1]))[1:] for run in runs]
        for name, (x, label) in itertools.product(
            [name for name in names[0] if all(name in each for each in names)],
            (
                (lambda line: line["seconds"], seconds),
                (lambda line: line["link_nbytes"] / 1e6, megabytes),
            ),
        ):
            if label == seconds or any(run.link_nbytes for run in runs):
                draw(
                    f"Test {name} by {label}",
                    tests,
                    x,
                    lambda line, name=name: scaled(name, metrics_of(line).get(name, math.nan)),
                    label,
                    metric_label(name),
                )
        draw(
            f"Test loss by {seconds}",
            tests,
            lambda line: line["seconds"],
            lambda line: line["loss"],
            seconds,
            loss_label(runs),
        )
    draw(
        "Loss of the training batches",
        lambda run: run.steps,
        lambda line: line["step"],
        lambda line: line["loss"],
        "step",
        loss_label(runs),
        marker="",
        linewidth=0.9,
    )


def _draw_predictions(made, runs, looks):
    """Milliseconds predicted against measured: the whole step large, its terms small."""
    with chart(made, "Predicted against measured; grey: within 10 %", 3.2) as axis:
        most = 0.0
        for run, its_look in zip(runs, looks):
            style = {"color": its_look["color"], "marker": its_look["marker"], "linestyle": ""}
            for _, predicted, measured in run.terms:
                axis.plot(1e3 * predicted, 1e3 * measured, **style, markersize=5, fillstyle="none")
            whole = [1e3 * seconds for seconds in run.step_seconds]
            axis.plot(*whole, **style, markersize=9, label=its_look["label"])
            most = max(most, *whole)
        ends = [0, 1.1 * most]
        axis.plot(ends, ends, color="#888888", linewidth=1)
        axis.fill_between(
            ends, [0, 0.9 * ends[1]], [0, 1.1 * ends[1]], color="#888888", alpha=0.25, linewidth=0
        )
        axis.set(
            xlabel="predicted, ms a step (small: single terms)",
            ylabel="measured, ms a step",
            xlim=ends,
            ylim=ends,
        )
        legend_above(axis, 6)


def _draw_links(made, runs, looks):
    """Bytes over each link, a bar a run, with the formula as a line across its end."""
    counted, formula = (
        [
            {(link["source"], link["target"]): link[key] / 1e6 for link in run.summary["links"]}
            for run in runs
        ]
        for key in ("sent_nbytes", "predicted_nbytes")
    )
    ends = list(dict.fromkeys(each for table in counted for each in table))
    busiest = sorted(ends, key=lambda each: -max(table.get(each, 0) for table in counted))[:LINKS]
    title = f"The {LINKS} busiest links" if len(ends) > LINKS else "Each link"
    with chart(
        made,
        f"{title}, counted; the line across is the formula",
        0.9 + len(busiest) * (0.15 + 0.2 * len(runs)),
    ) as axis:
        side_by_side(
            axis,
            [f"{short(source)} → {short(target)}" for source, target in busiest],
            [
                (
                    its_look["label"],
                    its_look["color"],
                    HATCHES[number % len(HATCHES)],
                    [table.get(each, 0.0) for each in busiest],
                )
                for number, (its_look, table) in enumerate(zip(looks, counted))
            ],
            [[table.get(each) for each in busiest] for table in formula],
        )
        axis.set_xlabel("MB")
