"""A comparison of runs in words: the cards that come first, and a row of text for each thing."""

import math

from isthmus.folders.metrics import HIGHER_IS_BETTER, judged_by, metric_in_words
from isthmus.json_text import dumps
from isthmus.pages.page import milliseconds, relative
from isthmus.pages.protection import protection_rows
from isthmus.terminal import table_of


def parameter_words(told):
    """Return sentences on the runs' parameters."""
    found = told["parameters"]
    common, first = found["compared_steps"], found["first_difference"]
    if found["equal"]:
        words = ["All runs ended with the same parameters, bit for bit."]
    else:
        same = [" = ".join(group) for group in found["groups"] if len(group) > 1]
        words = [
            f"Equal parameters at the end, bit for bit: {'; '.join(same)}. No others are equal."
            if same
            else "No two runs ended with the same parameters."
        ]
    if first is not None:
        equal = max((step for step in common if step < first), default=None)
        words.append(
            f"All hashes were still equal after step {equal:,}, and not after step {first:,}."
            if equal is not None
            else f"They were no longer all equal after step {first:,}."
        )
    return words


def best(runs):
    """Return the cards that come first: (letter and value, what it is), as text."""

    def card(key, what, text, better=min):
        first = better(runs, key=key)
        last = (max if better is min else min)(runs, key=key)
        if key(first) == key(last):
            return text(first), f"{what}: all the same"
        return f"{first['letter']} · {text(first)}", f"{what}; {last['letter']}: {text(last)}"

    cards = [fastest(runs)]
    judged = {judged_by(run["metrics"]) for run in runs if run["metrics"]}
    name = judged.pop() if len(judged) == 1 else None
    if name in HIGHER_IS_BETTER and all(math.isfinite(metric(run, name)) for run in runs):
        first = card(
            lambda run: metric(run, name),
            f"best test {name}",
            lambda run: metric_in_words(name, metric(run, name), digits=1),
            max if HIGHER_IS_BETTER[name] else min,
        )
        cards.insert(0, first)
    if any(run["link_nbytes"] for run in runs):
        cards.append(
            card(
                lambda run: run["link_nbytes"],
                "fewest bytes over links",
                lambda run: f"{run['link_nbytes'] / 1e6:.1f} MB",
            )
        )
    equal = len({run["parameter_hash"] for run in runs}) == 1
    return [*cards, ("equal" if equal else "differ", "parameters at the end, bit for bit")]


def fastest(runs):
    """Return the card of the fastest step: of one run only where the others' spreads lie beyond its own.

    Runs of which the middle halves of the steps overlap with those of the run with the least median are
    named with it: which of them is faster, another try may tell otherwise.
    """

    def text(run):
        return f"{1e3 * run['measured_step_seconds']:.1f} ms"

    first = min(runs, key=lambda run: run["measured_step_seconds"])
    last = max(runs, key=lambda run: run["measured_step_seconds"])
    upper = max(first["step_seconds_quartiles"][1], first["measured_step_seconds"])
    equal = [
        run
        for run in runs
        if run is first or min(run["step_seconds_quartiles"][0], run["measured_step_seconds"]) <= upper
    ]
    if len(equal) == 1:
        value, what = f"{first['letter']} · {text(first)}", "fastest step (median)"
    else:
        letters = " and ".join(run["letter"] for run in equal)
        value, what = text(first), f"fastest step (median): {letters} within their spread"
    rest = f"{last['letter']}: {text(last)}" if len(equal) < len(runs) else "none is faster"
    return value, f"{what}; {rest}"


def facts(runs):
    """Return (what, a text a run) of what the runs came to."""

    def row(what, text):
        return what, [text(run) for run in runs]

    names = reversed(list(dict.fromkeys(name for run in runs for name in run["metrics"])) or ["loss"])
    return [
        *(row(f"test {name}", lambda run, name=name: _metric_or_dash(run, name)) for name in names),
        *([row("best by validation", _best_or_dash)] if any(run["best"] for run in runs) else []),
        row("steps", lambda run: f"{run['steps']:,}"),
        row("training, s", lambda run: f"{run['seconds']:.2f}"),
        row("a step, ms", lambda run: milliseconds(run["measured_step_seconds"])),
        row(
            "half of them, ms",
            lambda run: " – ".join(milliseconds(seconds) for seconds in run["step_seconds_quartiles"]),
        ),
        row("predicted, ms", lambda run: milliseconds(run["predicted_step_seconds"])),
        row(
            "prediction off by",
            lambda run: relative(run["predicted_step_seconds"], run["measured_step_seconds"]),
        ),
        row("over links, MB", lambda run: f"{run['link_nbytes'] / 1e6:.2f}"),
        row(
            "bytes as the formula",
            lambda run: (
                "equal"
                if all(link["sent_nbytes"] == link["predicted_nbytes"] for link in run["links"])
                else "differ"
            ),
        ),
        *protection_rows(runs),
        row("parameters", lambda run: run["parameter_hash"][:8]),
    ]


def term_rows(runs):
    """Return (term, a text a run: predicted and measured ms)."""
    names = dict.fromkeys(name for run in runs for name in run["terms"])
    return [
        (
            name,
            [
                " / ".join(
                    milliseconds(run["terms"][name][f"{kind}_seconds"])
                    for kind in ("predicted", "measured")
                )
                if name in run["terms"]
                else "–"
                for run in runs
            ],
        )
        for name in names
    ]


def link_rows(runs):
    """Return (link, a text a run: bytes counted, and the formula's where they differ)."""

    def text(run, ends):
        for link in run["links"]:
            if (link["source"], link["target"]) == ends:
                sent, predicted = link["sent_nbytes"], link["predicted_nbytes"]
                return f"{sent:,}" + ("" if sent == predicted else f" (formula {predicted:,})")
        return "–"

    ends = dict.fromkeys((link["source"], link["target"]) for run in runs for link in run["links"])
    return [(" → ".join(each), [text(run, each) for run in runs]) for each in ends]


def comparison_table(told):
    """Return what to print: a table with a column a run, and sentences."""
    columns = [("", "left"), *((run["letter"], "right") for run in told["runs"])]
    table = table_of(
        columns,
        [
            *(((what, *texts), "") for what, texts in facts(told["runs"])),
            *(((key, *texts), "cyan") for key, texts in in_words(told["settings"])),
        ],
    )
    return [
        *(f"{run['letter']}: {run['name']}" for run in told["runs"]),
        table,
        *parameter_words(told),
        f"page: {told['page']}",
    ]


def in_words(rows):
    """Return (key, a text a run) of `differences`."""
    return [(key, [_in_words(value) for value in values]) for key, values in rows.items()]


def _in_words(value):
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return " ".join(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else value if isinstance(value, str) else dumps(value)


def metric(run, name):
    """Return a metric of what a run came to; NaN where it has none of that name."""
    return run["metrics"].get(name, math.nan)


def _metric_or_dash(run, name):
    value = metric(run, name)
    return "–" if math.isnan(value) else metric_in_words(name, value)


def _best_or_dash(run):
    """Return what the validation set said of the epoch that it liked best, and which that was."""
    if not run["best"]:
        return "–"
    metrics = run["best"]["metrics"]
    name = judged_by(metrics)
    return f"{name} {metric_in_words(name, metrics[name])}, epoch {run['best']['epoch']}"
