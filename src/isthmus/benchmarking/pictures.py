"""Seconds by size, both on logarithmic axes, with what the model says and what bounds them."""

from isthmus.files import replacing
from isthmus.picture_style import COLOURS, STYLE, drawing

FORMATS = ("svg", "png")


def draw_by_size(results, curve_of, lines, folder, name, title):
    """Write `name`.svg and `name`.png to `folder`; return their paths.

    results: with "nbytes", "median_seconds" and "seconds_spread"; those with one `curve_of(result)`
    make one curve, with its quartiles as a band. lines: what else to draw of each curve, as
    (field in seconds, words, style of the line).
    """
    curves = {}
    for result in results:
        curves.setdefault(curve_of(result), []).append(result)
    with drawing(STYLE, 9, 5.5) as figure:
        axis = figure.subplots()
        for number, (label, points) in enumerate(curves.items()):
            _draw_curve(
                axis,
                label,
                points,
                lines,
                COLOURS[number % len(COLOURS)],
                "osD^vP"[number // len(COLOURS) % 6],
            )
        for _, words, style in lines:
            axis.plot([], [], style, color="#555555", linewidth=1, label=words)
        axis.set(xscale="log", yscale="log", xlabel="bytes", ylabel="seconds", title=title)
        axis.grid(alpha=0.25, which="both", linewidth=0.5)
        axis.legend(frameon=False, fontsize=8)
        paths = [folder / f"{name}.{kind}" for kind in FORMATS]
        for path, kind in zip(paths, FORMATS):
            with replacing(path) as partial:
                figure.savefig(
                    partial, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None
                )
    return [str(path) for path in paths]


def _draw_curve(axis, label, points, lines, colour, marker):
    sizes = [point["nbytes"] for point in points]
    axis.fill_between(
        sizes,
        *(
            [point["seconds_spread"][edge] for point in points]
            for edge in ("lower_quartile", "upper_quartile")
        ),
        color=colour,
        alpha=0.2,
        linewidth=0,
    )
    axis.plot(
        sizes,
        [point["median_seconds"] for point in points],
        color=colour,
        marker=marker,
        markersize=4,
        label=label,
    )
    for field, _, style in lines:
        drawn = [(size, point[field]) for size, point in zip(sizes, points) if point[field] > 0]
        if drawn:
            axis.plot(*zip(*drawn), style, color=colour, linewidth=1)
