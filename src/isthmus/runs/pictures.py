"""The pictures of a report, as SVG text, and of a scaling study."""

import io

from isthmus.picture_style import COLOURS as SITE_COLOURS
from isthmus.picture_style import STYLE

PREDICTED, MEASURED = "#999999", "#0072B2"
POINTS = 1200  # of a curve; more cannot be seen


def draw_all(run, plan, summary, metrics, cluster):
    """Return name -> SVG of every picture, empty where the run has no numbers for it."""
    import matplotlib
    steps = [line for line in metrics if line["kind"] == "step"]
    evaluations = [line for line in metrics if line["kind"] == "evaluation"]
    with matplotlib.rc_context(STYLE):
        pictures = {"learning": "", "terms": "", "links": "",
                    "allocation": _svg(_allocation(plan, cluster))}
        if steps:
            pictures["learning"] = _svg(_learning(steps, evaluations))
        if summary:
            pictures["terms"] = _svg(_terms(summary))
            if summary["links"]:
                pictures["links"] = _svg(_links(summary))
    return pictures


def draw_scaling(scaling, kind):
    """Return the bytes of a picture ("svg" or "png") of a study: edge sites and link rates."""
    import matplotlib
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(1, 3, 12, 3.8)
        for axis, study, key, scale, unit in (
                (axes[0], "edge_sites", "step_seconds", 1e3, "ms a step"),
                (axes[1], "link_rates", "step_seconds", 1e3, "ms a step"),
                (axes[2], "edge_sites", "busiest_link", 100, "busiest link, % in use")):
            points = scaling[study]
            names = list(dict.fromkeys(point["compressor"] for point in points))
            for name, colour, mark in zip(names, SITE_COLOURS, "osD^"):
                own = [point for point in points if point["compressor"] == name]
                axis.plot([point["value"] for point in own], [scale * point[key] for point in own],
                          color=colour, marker=mark, markersize=4, linewidth=1.2, label=name)
            axis.set(xlabel=study.replace("_", " ").replace("link rates", "link rate, times the file's"),
                     ylabel=unit, xscale="log")
            axis.grid(alpha=0.25)
        axes[0].set(title="more edge sites", yscale="log")
        axes[1].set(title="other links", yscale="log")
        axes[2].set(title="use of the links", ylim=(0, 105))
        figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=len(names),
                      loc="outside lower center")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    return buffer.getvalue()


def _axes(rows, columns, width, height, **options):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _svg(figure):
    """Return the picture as SVG that scales with its place on the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg"):]


def _learning(steps, evaluations):
    """Loss and accuracy against seconds and against bytes over the links."""
    figure, axes = _axes(2, 2, 9, 5.2, sharex="col", sharey="row")
    thin = steps[::max(1, len(steps) // POINTS)]
    columns = (("training seconds", [line["seconds"] for line in thin],
                [line["seconds"] for line in evaluations]),
               ("MB over the links", [line["sent_nbytes"]["link"] / 1e6 for line in thin],
                [line["link_nbytes"] / 1e6 for line in evaluations]))
    for column, (label, at_step, at_evaluation) in enumerate(columns):
        loss, accuracy = axes[0][column], axes[1][column]
        loss.plot(at_step, [line["loss"] for line in thin], color="#999999", linewidth=0.7,
                  label="training batch")
        loss.plot(at_evaluation, [line["loss"] for line in evaluations], color="#D55E00",
                  marker="o", markersize=4, label="test set")
        accuracy.plot(at_evaluation, [100 * line["accuracy"] for line in evaluations],
                      color="#0072B2", marker="o", markersize=4)
        accuracy.set_xlabel(label)
        for axis in (loss, accuracy):
            axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("loss, nats")
    axes[1][0].set_ylabel("test accuracy, %")
    axes[0][0].legend(frameon=False)
    return figure


def _allocation(plan, cluster):
    """Samples of each rank, and the time that they take in a step."""
    ranks = range(cluster.size)
    figure, (samples, seconds) = _axes(1, 2, 9, min(12, 1.2 + 0.32 * cluster.size), sharey=True)
    colours = [SITE_COLOURS[site % len(SITE_COLOURS)] for site in cluster.site_of_rank]
    samples.barh(ranks, plan["samples_of_rank"], color=colours)
    seconds.barh(ranks, [1e3 * value for value in plan["seconds_of_rank"]], color=colours)
    samples.set(yticks=list(ranks), yticklabels=[
        f"{cluster.names[site]} · rank {rank}" for rank, site in enumerate(cluster.site_of_rank)],
        xlabel="samples", title="what each rank holds")
    seconds.set(xlabel="ms of computing a step", title="and how long it computes")
    samples.invert_yaxis()
    for axis in (samples, seconds):
        axis.grid(axis="x", alpha=0.25)
    return figure


def _terms(summary):
    """Each term of the time model, predicted beside measured."""
    rows = [term for term in summary["terms"]
            if max(term["predicted_seconds"], term["measured_seconds"]) > 0]
    places = range(len(rows))
    figure, axis = _axes(1, 1, 9, 1.1 + 0.42 * len(rows))
    for shift, key, colour in ((-0.2, "predicted_seconds", PREDICTED),
                               (0.2, "measured_seconds", MEASURED)):
        axis.barh([place + shift for place in places], [1e3 * term[key] for term in rows], 0.38,
                  color=colour, label=key.partition("_")[0])
    axis.set(yticks=list(places), yticklabels=[term["name"] for term in rows],
             xlabel="ms a step (median of all steps)")
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.25)
    axis.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _links(summary):
    """Bytes over each link: sent, by the formula, and what dense float32 would have been."""
    links = summary["links"]
    places = range(len(links))
    ratio = summary["dense_link_nbytes"] / max(1, sum(link["sent_nbytes"] for link in links))
    figure, axis = _axes(1, 1, 9, 1.1 + 0.6 * len(links))
    for shift, colour, label, values in (
            (-0.27, "#E69F00", "dense float32", [ratio * link["sent_nbytes"] for link in links]),
            (0.0, PREDICTED, "formula", [link["predicted_nbytes"] for link in links]),
            (0.27, MEASURED, "sent", [link["sent_nbytes"] for link in links])):
        axis.barh([place + shift for place in places], [value / 1e6 for value in values], 0.25,
                  color=colour, label=label)
    axis.set(yticks=list(places), xlabel="MB",
             yticklabels=[f"{link['source']} → {link['target']}" for link in links])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.25)
    axis.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return figure
