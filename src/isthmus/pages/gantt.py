"""The picture of a schedule: what every rank and every link does when."""

import io

from isthmus.picture_style import COLOURS, STYLE, drawing


def draw_schedule(table, kind):
    """Return the bytes of a picture ("svg" or "png") of what `jobs.schedule.plan_tasks` tells.

    A row for each rank that has a task and each pipe that a message takes; where tasks were run, what
    was measured stands below what was predicted.
    """
    tasks, measured = table["tasks"], "measured_seconds" in table
    ranks = sorted({(task["rank"], task["site"]) for task in tasks})
    pipes = sorted({pipe for message in table["messages"] for pipe in message["pipes"]})
    rows = {
        **{rank: place for place, (rank, _) in enumerate(ranks)},
        **{pipe: len(ranks) + place for place, pipe in enumerate(pipes)},
    }
    sites = list(dict.fromkeys(site for _, site in ranks))
    last = max(table["seconds"], table.get("measured_seconds", 0.0)) or 1.0
    with drawing(STYLE | {"text.parse_math": False}, 9, 1.4 + 0.45 * len(rows)) as figure:
        axis = figure.subplots()

        def bar(row, start, end, colour, words="", low=-0.4, high=0.4, **style):
            style = {"edgecolor": "white", "linewidth": 0.8} | style
            axis.barh(
                row + low,
                1e3 * (end - start),
                high - low,
                1e3 * start,
                align="edge",
                color=colour,
                **style,
            )
            if end - start > 0.012 * last * len(words):
                axis.text(
                    500 * (start + end),
                    row + (low + high) / 2,
                    words,
                    ha="center",
                    va="center",
                    fontsize=8,
                )

        for task in tasks:
            colour = COLOURS[sites.index(task["site"]) % len(COLOURS)]
            middle = 0.05 if measured else 0.4
            bar(
                rows[task["rank"]],
                task["start_seconds"],
                task["end_seconds"],
                colour,
                task["name"],
                high=middle,
                alpha=0.55,
            )
            if measured:
                times = task["measured_start_seconds"], task["measured_end_seconds"]
                bar(rows[task["rank"]], *times, colour, low=middle, hatch="///")
        for message in table["messages"]:
            end = message["start"] + message["busy_seconds"]
            for pipe in message["pipes"]:
                words = f"{message['source']} > {message['target']}"
                bar(rows[pipe], message["start"], end, "#BBBBBB", words)
        axis.axvline(1e3 * table["lower_bound_seconds"], color="black", linewidth=1, linestyle="--")
        axis.set(
            yticks=range(len(rows)),
            yticklabels=[*(f"{site}, rank {rank}" for rank, site in ranks), *pipes],
            xlabel="ms; dashed: no schedule ends before" + "; hatched: measured" * measured,
            xlim=(0, 1030 * last),
            title=f"{table['method']}: {1e3 * table['seconds']:.1f} ms",
        )
        axis.invert_yaxis()
        made = io.BytesIO()
        figure.savefig(made, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return made.getvalue()
