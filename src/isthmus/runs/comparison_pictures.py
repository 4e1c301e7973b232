"""The charts of a comparison: every run has a letter, a colour, dashes, a marker and a hatch."""

from isthmus.picture_style import COLOURS, DASHES, HATCHES, MARKERS
from isthmus.runs.page import chart, legend_above, thin
from isthmus.runs.pictures import draw_stacks, short, side_by_side

LINKS = 8  # of a chart; more cannot be read, and the table tells them all


def draw_comparison(letters, runs):
    """Return part of the page -> (title, SVG) of each of its charts."""
    made = {"learning": [], "time": [], "links": []}
    looks = [look(number, letter) for number, (letter, _) in enumerate(zip(letters, runs))]
    _draw_learning(made["learning"], runs, looks)
    stacks = []
    for letter, run in zip(letters, runs):
        stacks += [(f"{letter} {kind}", {name: seconds[column] for name, *seconds in run.terms})
                   for column, kind in enumerate(("predicted", "measured"))]
    draw_stacks(made["time"], "A step by term, predicted over measured", stacks)
    _draw_predictions(made["time"], runs, looks)
    if any(run.summary["links"] for run in runs):
        _draw_links(made["links"], runs, looks)
    return made


def look(number, letter):
    """Return how the curve of a run looks; no two of twelve look alike, in grey neither."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)],
            "linestyle": DASHES[(number + number // len(COLOURS)) % len(DASHES)], "label": letter}


def _draw_learning(made, runs, looks):
    """Accuracy and loss by seconds and by bytes, and the loss of every step."""
    def draw(title, lines, x, y, xlabel, ylabel, **more):
        with chart(made, title) as axis:
            for run, look in zip(runs, looks):
                axis.plot(*thin([x(line) for line in lines(run)], [y(line) for line in lines(run)]),
                          **look | more)
            axis.set(xlabel=xlabel, ylabel=ylabel)
            legend_above(axis, 6)

    def tests(run):
        return run.evaluations

    seconds, megabytes = "training seconds", "MB over the links"
    if all(run.evaluations for run in runs):
        for x, label in ((lambda line: line["seconds"], seconds),
                         (lambda line: line["link_nbytes"] / 1e6, megabytes)):
            if label == seconds or any(run.link_nbytes for run in runs):
                draw(f"Test accuracy by {label}", tests, x, lambda line: 100 * line["accuracy"],
                     label, "test accuracy, %", markersize=4)
        draw(f"Test loss by {seconds}", tests, lambda line: line["seconds"],
             lambda line: line["loss"], seconds, "loss, nats", markersize=4)
    draw("Loss of the training batches", lambda run: run.steps, lambda line: line["step"],
         lambda line: line["loss"], "step", "loss, nats", marker="", linewidth=0.8)


def _draw_predictions(made, runs, looks):
    """Seconds predicted against measured: the step large, its terms small."""
    with chart(made, "Predicted against measured", 3.2) as axis:
        values = []
        for run, look in zip(runs, looks):
            style = {"color": look["color"], "marker": look["marker"], "linestyle": ""}
            terms = [(1e3 * each, 1e3 * other) for _, each, other in run.terms if each and other]
            predicted, measured = (1e3 * seconds for seconds in run.step_seconds)
            for x, y in terms:
                axis.plot(x, y, **style, markersize=5, fillstyle="none")
            axis.plot(predicted, measured, **style, markersize=9, label=look["label"])
            values += [number for pair in terms for number in pair] + [predicted, measured]
        ends = [0.7 * min(values), 1.4 * max(values)]
        axis.plot(ends, ends, color="#888888", linewidth=1, label="as predicted")
        axis.fill_between(ends, [0.9 * end for end in ends], [1.1 * end for end in ends],
                          color="#888888", alpha=0.25, linewidth=0, label="10 % off")
        axis.set(xscale="log", yscale="log", xlabel="predicted, ms (small: single terms)",
                 ylabel="measured, ms")
        legend_above(axis, 4)


def _draw_links(made, runs, looks):
    """Bytes over each link, a bar a run, with the formula as a line across its end."""
    counted, formula = ([{(link["source"], link["target"]): link[key] / 1e6
                          for link in run.summary["links"]} for run in runs]
                        for key in ("sent_nbytes", "predicted_nbytes"))
    ends = list(dict.fromkeys(each for table in counted for each in table))
    busiest = sorted(ends, key=lambda each: -max(table.get(each, 0) for table in counted))[:LINKS]
    title = f"The {LINKS} busiest links" if len(ends) > LINKS else "Each link"
    with chart(made, f"{title}, counted; the line across is the formula",
               0.9 + len(busiest) * (0.15 + 0.2 * len(runs))) as axis:
        side_by_side(axis, [f"{short(source)} → {short(target)}" for source, target in busiest], [
            (look["label"], look["color"], HATCHES[number % len(HATCHES)],
             [table.get(each, 0.0) for each in busiest])
            for number, (look, table) in enumerate(zip(looks, counted))],
            [[table.get(each) for each in busiest] for table in formula])
        axis.set_xlabel("MB")
