"""The picture of compare_peers: a row a cluster. Colours of Okabe and Ito: told apart by everybody."""

from peers.findings import busiest_nbytes
from study import plain_numbers, svg_text

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isthmus",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}
LINES = {
    "isthmus dense": ("#0072B2", "-"),
    "isthmus int8": ("#56B4E9", "-"),
    "isthmus int4": ("#009E73", "-"),
    "isthmus 1 bit": ("#CC79A7", "-"),
    "isthmus ring": ("#0072B2", ":"),
    "isthmus tree": ("#0072B2", "--"),
    "isthmus recursive": ("#0072B2", "-."),
    "isthmus auto": ("#F0E442", "-"),
    "isthmus mpi": ("#999999", "-"),
    "Gloo float32": ("#E69F00", "-"),
    "Gloo float16": ("#E69F00", "--"),
    "DDP float32": ("#D55E00", "-"),
    "DDP fp16 hook": ("#D55E00", "--"),
    "DDP PowerSGD rank 2": ("#D55E00", ":"),
    "Open MPI default": ("#999999", "-"),
    "Open MPI, best of all": ("#000000", "--"),
}
"""Program -> colour and stroke; the others are in the tables, Open MPI's also in its `best of all`."""


def draw(findings):
    """Return the SVG of what `findings` holds."""
    import matplotlib
    from matplotlib.figure import Figure

    clusters = findings.clusters
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 0.9 + 3.1 * len(clusters)), layout="constrained")
        rows = figure.subplots(len(clusters), 3, squeeze=False)
        for cluster, (sums, learning, cost) in zip(clusters, rows):
            draw_sums(sums, findings, cluster)
            if any(findings.jobs(cluster, name) for name in LINES):
                draw_learning(learning, findings, cluster)
                draw_cost(cost, findings, cluster)
            else:
                learning.set_visible(False)
                cost.set_visible(False)
        handles = {
            label: handle
            for axis in rows.flat
            for handle, label in zip(*axis.get_legend_handles_labels())
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=5, frameon=False)
        return svg_text(figure)


def draw_sums(axis, findings, cluster):
    """Seconds of an allreduce against the bytes of the vector."""
    curves = {
        name: [(nbytes, findings.seconds(cluster, name, nbytes)) for nbytes in findings.sizes]
        for name in LINES
    }
    best = [
        (nbytes, findings.best(cluster, nbytes, lambda name: name.startswith("Open MPI")))
        for nbytes in findings.sizes
    ]
    curves["Open MPI, best of all"] = [(nbytes, found and found[0]) for nbytes, found in best]
    for name, points in curves.items():
        points = [point for point in points if point[1] is not None]
        if points:
            colour, stroke = LINES[name]
            axis.plot(
                *zip(*points), color=colour, linestyle=stroke, marker="o", markersize=3, label=name
            )
    bound = [
        (nbytes, findings.wire_seconds(cluster, "isthmus dense", nbytes)) for nbytes in findings.sizes
    ]
    bound = [point for point in bound if point[1] is not None]
    if bound:
        axis.plot(*zip(*bound), color="#000000", linewidth=0.7, label="float32 bytes / rate of the link")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="bytes of the vector",
        ylabel="seconds",
        title=f"{cluster}: an allreduce",
    )


def draw_learning(axis, findings, cluster):
    """Test accuracy against seconds, every seed."""
    for name, (colour, stroke) in LINES.items():
        for number, job in enumerate(findings.jobs(cluster, name)):
            _, seconds, _, accuracy = zip(*job["curve"])
            axis.plot(
                seconds,
                [100 * value for value in accuracy],
                color=colour,
                linestyle=stroke,
                linewidth=1,
                label=name if number == 0 else None,
            )
    axis.set(xscale="log", xlabel="seconds of training", ylabel="test accuracy, %", title="learning")
    plain_numbers(axis.xaxis)


def draw_cost(axis, findings, cluster):
    """Seconds and bytes to the accuracy, a point a seed; hollow where it was not reached."""
    for name, (colour, _) in LINES.items():
        for job in findings.jobs(cluster, name):
            megabytes = busiest_nbytes(job) / 1e6
            axis.plot(
                job["seconds"],
                megabytes,
                marker=MARKERS.get(name, "o"),
                linestyle="none",
                color=colour,
                fillstyle="full" if job["reached"] else "none",
            )
            axis.annotate(
                name,
                (job["seconds"], megabytes),
                xytext=(6, -2),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
    axis.set(
        xscale="log", xlabel="seconds", ylabel="MB of the busiest site", title="cost of the accuracy"
    )
    if any(line.get_ydata()[0] > 0 for line in axis.lines):
        axis.set_yscale("log")
        plain_numbers(axis.yaxis)
    plain_numbers(axis.xaxis)
    axis.margins(x=0.25)


MARKERS = {"DDP fp16 hook": "s", "DDP PowerSGD rank 2": "^", "isthmus mpi": "s"}
