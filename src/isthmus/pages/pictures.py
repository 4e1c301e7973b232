"""The charts of a report, and the picture of a scaling study."""

import io
import itertools
import math

import numpy as np

from isthmus.folders.metrics import metrics_of
from isthmus.pages.page import INK, chart, draw_curve, legend_above, milliseconds
from isthmus.picture_style import COLOURS, HATCHES, STYLE, drawing
from isthmus.registry import STAGES, Stage

PREDICTED, MEASURED, DENSE = "#999999", "#0072B2", "#E69F00"
UNKNOWN = Stage("", "#555555", "")  # a term that another version of isthmus has told
BARS = 24  # of a chart; more cannot be read, and the tables tell them all
BANDS = 100  # of a stack over time


def draw_all(run):
    """Return part of the page -> (title, SVG) of each of its charts, none where there are no numbers."""
    made = {"learning": [], "time": [], "plan": [], "links": []}
    if run.steps:
        _draw_learning(made["learning"], run)
    draw_stacks(made["time"], "A step by term", stacks_of(run))
    if run.steps:
        _draw_terms(made["time"], run.terms)
        _draw_every_step(made["time"], run)
        _draw_terms_over_time(made["time"], run.steps)
    _draw_allocation(made["plan"], run.plan, run.cluster)
    if run.summary and run.summary["links"]:
        _draw_links(made["links"], run.summary)
    return made


def stacks_of(run, before=""):
    """Return the bars of a run for `draw_stacks`: predicted, and measured if it has made steps."""
    return [
        (
            before + kind,
            {name: seconds[column] for name, *seconds in run.terms},
            run.step_seconds[column],
        )
        for column, kind in enumerate(("predicted", "measured"))
        if column == 0 or run.steps
    ]


def draw_stacks(made, title, stacks):
    """Add a chart of bars that are stacked from terms, with a line across each for the whole step.

    stacks: (label, {term: seconds}, seconds of a step), a bar each.
    """
    labels, tables, steps = zip(*stacks)
    terms = list(dict.fromkeys(term for seconds in tables for term in seconds))
    whole = max(*steps, *(sum(seconds.values()) for seconds in tables))
    rows = -(-len(terms) // 3)
    with chart(made, title, 1.0 + 0.36 * len(stacks) + 0.2 * rows) as axis:
        left = np.zeros(len(stacks))
        for term in terms:
            stage = STAGES.get(term, UNKNOWN)
            values = np.array([seconds.get(term, 0.0) for seconds in tables])
            axis.barh(
                range(len(stacks)),
                1e3 * values,
                0.7,
                1e3 * left,
                color=stage.colour,
                hatch=stage.hatch,
                label=term,
            )
            for place, value in enumerate(values):
                if value > 0.14 * whole:  # wide enough for its name
                    axis.text(
                        1e3 * (left[place] + value / 2),
                        place,
                        f"{1e3 * value:#.3g}",
                        ha="center",
                        va="center",
                        fontsize=9,
                        color="black",
                        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "linewidth": 0},
                    )
            left += values
        for place, step in enumerate(steps):
            axis.vlines(1e3 * step, place - 0.42, place + 0.42, color=INK, linewidth=2)
            axis.text(
                1e3 * (max(step, left[place]) + 0.015 * whole),
                place,
                f"{1e3 * step:#.3g}",
                va="center",
                fontsize=9,
            )
        axis.set(
            yticks=range(len(stacks)),
            yticklabels=labels,
            xlabel="ms (medians; the line is a whole step)",
            xlim=(0, 1150 * whole or 1),
            ylim=(len(stacks) - 0.4, -0.6),
        )
        axis.grid(axis="y", visible=False)
        legend_above(axis, 3)


def draw_scaling(scaling, kind):
    """Return the bytes of a picture ("svg" or "png") of a study: edge sites and link rates."""
    with drawing(STYLE, 12, 3.8) as figure:
        axes = figure.subplots(1, 3)
        for axis, study, key, scale, unit in (
            (axes[0], "edge_sites", "step_seconds", 1e3, "ms a step"),
            (axes[1], "link_rates", "step_seconds", 1e3, "ms a step"),
            (axes[2], "edge_sites", "busiest_link", 100, "busiest link, % in use"),
        ):
            points = scaling[study]
            names = list(dict.fromkeys(point["compressor"] for point in points))
            for name, colour, mark in zip(names, COLOURS, "osD^"):
                own = [point for point in points if point["compressor"] == name]
                axis.plot(
                    [point["value"] for point in own],
                    [scale * point[key] for point in own],
                    color=colour,
                    marker=mark,
                    markersize=4,
                    linewidth=1.2,
                    label=name,
                )
            axis.set(
                xlabel=study.replace("_", " ").replace("link rates", "link rate, times the file's"),
                ylabel=unit,
                xscale="log",
            )
            axis.grid(alpha=0.25)
        axes[0].set(title="more edge sites", yscale="log")
        axes[1].set(title="other links", yscale="log")
        axes[2].set(title="use of the links", ylim=(0, 105))
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            frameon=False,
            ncols=len(names),
            loc="outside lower center",
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    return buffer.getvalue()


def _draw_learning(made, run):
    """The loss and the other metrics against seconds and against bytes over the links."""
    steps, tests = run.steps, run.evaluations
    sets = [
        (lines, look | {"marker": "o", "markersize": 4, "label": f"{name} set"})
        for name, lines, look in (
            ("test", tests, {"linestyle": "--", "color": "#D55E00"}),
            ("validation", run.validations, {"linestyle": ":", "color": "#009E73"}),
        )
        if lines
    ]
    against = [("training seconds", [line["seconds"] for line in steps], lambda line: line["seconds"])]
    if run.link_nbytes:
        against.append(
            (
                "MB over the links",
                [line["sent_nbytes"]["link"] / 1e6 for line in steps],
                lambda line: line["link_nbytes"] / 1e6,
            )
        )
    for label, at_step, place in against:
        with chart(made, f"Loss by {label}") as axis:
            draw_curve(
                axis,
                at_step,
                [line["loss"] for line in steps],
                color=PREDICTED,
                linewidth=0.7,
                label="training batch",
            )
            for lines, look in sets:
                draw_curve(
                    axis, [place(line) for line in lines], [line["loss"] for line in lines], **look
                )
            axis.set(xlabel=label, ylabel=loss_label([run]))
            legend_above(axis, 3)
    others = list(metrics_of(tests[-1]))[1:] if tests else []
    for name, (label, _, place) in itertools.product(others, against):
        with chart(made, f"Test {name} by {label}") as axis:
            for lines, look in sets:
                draw_curve(
                    axis,
                    [place(line) for line in lines],
                    [scaled(name, metrics_of(line).get(name, math.nan)) for line in lines],
                    **(look if len(sets) > 1 else look | {"linestyle": "-", "color": MEASURED}),
                )
            axis.set(
                xlabel=label, ylabel=metric_label(name) if len(sets) == 1 else metric_label(name)[5:]
            )
            if len(sets) > 1:
                legend_above(axis, 2)


def scaled(name, value):
    """Return a metric in the unit of its axis."""
    return 100 * value if name == "accuracy" else value


def metric_label(name):
    """Return what an axis of a metric says."""
    return f"test {name}, %" if name == "accuracy" else f"test {name}"


def loss_label(runs):
    """Return what an axis of the loss says: its unit where all runs have the one that has a unit."""
    classifiers = all("accuracy" in metrics_of(run.evaluations[-1]) for run in runs if run.evaluations)
    return "loss, nats" if classifiers else "loss"


def _draw_terms(made, terms):
    """Each term of the time model, predicted beside measured."""
    names = [name for name, *_ in terms]
    with chart(made, "Each term, predicted beside measured", 0.9 + 0.3 * len(terms)) as axis:
        side_by_side(
            axis,
            names,
            [
                ("predicted", PREDICTED, "///", [1e3 * predicted for _, predicted, _ in terms]),
                ("measured", MEASURED, "", [1e3 * measured for *_, measured in terms]),
            ],
        )
        axis.set_xlabel("ms a step (median of all steps)")


def _draw_every_step(made, run):
    """Seconds of each step, the slow ones too."""
    predicted, _ = run.step_seconds
    with chart(made, "Every step of the run") as axis:
        draw_curve(
            axis,
            [line["step"] for line in run.steps],
            [1e3 * line["step_seconds"] for line in run.steps],
            color=MEASURED,
            linewidth=0.7,
            label="measured",
        )
        axis.axhline(
            1e3 * predicted,
            color="#D55E00",
            linestyle="--",
            label=f"predicted, {milliseconds(predicted)} ms",
        )
        axis.set(xlabel="step", ylabel="ms", ylim=(0, None))
        legend_above(axis, 2)


def _draw_terms_over_time(made, steps):
    """The terms of the steps one after the other, stacked, a mean of many steps where there are many."""
    ends = np.unique(np.linspace(0, len(steps), min(len(steps), BANDS) + 1).astype(int))
    names = list(steps[0]["terms"])
    rows = np.array([[line["terms"].get(name, 0.0) for name in names] for line in steps])
    means = 1e3 * np.add.reduceat(rows, ends[:-1]) / np.diff(ends)[:, None]
    each = max(np.diff(ends))
    with chart(made, "Terms over the run" + (f", means of {each} steps" if each > 1 else "")) as axis:
        total, worth_naming = np.zeros(len(means)), 0.02 * means.sum()
        edges = [steps[end]["step"] for end in ends[:-1]] + [steps[-1]["step"] + 1]
        for name, values in zip(names, means.T):
            stage = STAGES.get(name, UNKNOWN)
            if values.any():
                axis.stairs(
                    total + values,
                    edges,
                    baseline=total,
                    fill=True,
                    facecolor=stage.colour,
                    hatch=stage.hatch,
                    linewidth=0,
                    label=name if values.sum() > worth_naming else None,
                )
            total = total + values
        axis.set(xlabel="step", ylabel="ms a step", xlim=(edges[0], edges[-1]))
        legend_above(axis, 3)


def _draw_allocation(made, plan, cluster):
    """Samples of each rank, and the time that they take in a step; of each site where ranks are many."""
    sites = np.array(cluster.site_of_rank)
    samples, seconds = np.array(plan["samples_of_rank"]), np.array(plan["seconds_of_rank"])
    labels = [f"{short(cluster.names[site])} · {rank}" for rank, site in enumerate(sites)]
    each = "rank"
    if cluster.size > BARS:
        each, present = "site", np.arange(len(cluster.names))
        samples = np.array([samples[sites == site].sum() for site in present])
        seconds = np.array([seconds[sites == site].max() for site in present])
        labels, sites = [short(name) for name in cluster.names], present
    shown = np.sort(np.argsort(-samples, kind="stable")[:BARS])
    first = f"the {BARS} largest of {len(labels)}, " if len(labels) > BARS else ""
    for title, values, unit in (
        (f"What each {each} holds", samples, "samples"),
        (
            f"How long {'its slowest rank' if each == 'site' else 'it'} computes",
            1e3 * seconds,
            "ms of computing a step",
        ),
    ):
        with chart(made, title, 0.7 + 0.27 * len(shown)) as axis:
            bars = axis.barh(
                range(len(shown)),
                values[shown],
                0.75,
                color=[COLOURS[site % len(COLOURS)] for site in sites[shown]],
            )
            for bar, site in zip(bars, sites[shown]):
                bar.set_hatch(HATCHES[site // len(COLOURS) % len(HATCHES)])
            axis.set(
                yticks=range(len(shown)),
                yticklabels=[labels[place] for place in shown],
                xlabel=first + unit,
            )
            axis.invert_yaxis()
            axis.grid(axis="y", visible=False)


def _draw_links(made, summary):
    """Bytes over each link: what dense float32 would have been, the formula, and the count."""
    links = sorted(summary["links"], key=lambda link: -link["sent_nbytes"])[: BARS // 2]
    ratio = summary["dense_link_nbytes"] / max(1, sum(link["sent_nbytes"] for link in summary["links"]))
    title = f"The {len(links)} busiest links" if len(links) < len(summary["links"]) else "Each link"
    with chart(made, f"{title}, counted beside the formula", 0.9 + 0.45 * len(links)) as axis:
        side_by_side(
            axis,
            [f"{short(link['source'])} → {short(link['target'])}" for link in links],
            [
                (
                    "dense float32",
                    DENSE,
                    "\\\\\\",
                    [ratio * link["sent_nbytes"] / 1e6 for link in links],
                ),
                ("formula", PREDICTED, "///", [link["predicted_nbytes"] / 1e6 for link in links]),
                ("counted", MEASURED, "", [link["sent_nbytes"] / 1e6 for link in links]),
            ],
        )
        axis.set_xlabel("MB")


def side_by_side(axis, names, series, marks=()):
    """Draw horizontal bars in groups, one a name.

    series: (label, colour, hatch, a value a name); marks: for each of the series a value a name, or
    None, to be drawn as a line across its bar.
    """
    thickness = 0.8 / len(series)
    for number, (label, colour, hatch, values) in enumerate(series):
        places = np.arange(len(names)) + (number - (len(series) - 1) / 2) * thickness
        axis.barh(places, values, thickness, color=colour, hatch=hatch, label=label)
        for place, value in zip(places, marks[number] if marks else ()):
            if value is not None:
                axis.vlines(value, place - thickness / 2, place + thickness / 2, color=INK, linewidth=2)
    axis.set(yticks=range(len(names)), yticklabels=names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    legend_above(axis, 3 if len(series) <= 3 else 6)


def short(name):
    """Return a name that leaves room for its bar."""
    return name if len(name) <= 14 else f"{name[:13]}…"
