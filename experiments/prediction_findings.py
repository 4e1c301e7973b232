"""What the lines of prediction.jsonl say: errors, orders, choices, targets met or not, and a picture.

    python experiments/prediction_findings.py [RESULTS.jsonl]

Writes RESULTS.md and RESULTS.svg beside the lines. Every number is computed from the lines. An error is
|predicted / measured - 1|; measured is the median over rounds, which agree as well as most / least - 1.
"""

import json
import statistics
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from study import HERE, head, plain_numbers, row, svg_text, tell

from isthmus.picture_style import COLOURS, STYLE

RESULTS = HERE.parent / "data/measurements/prediction.jsonl"
MODELS = ("calibrated", "file", "n/B")
AGREES = 0.03
APART = 0.1
"""Two measured times that differ by less are the same to a planner: noise decides their order."""


@dataclass(frozen=True)
class Case:
    """One allreduce ("hierarchical, int8" of so many bytes) or plan (nbytes is None) on one cluster."""

    task: str
    cluster: str
    nbytes: int | None
    name: str
    rounds: tuple[float, ...]
    predicted: dict

    @property
    def seconds(self):
        return statistics.median(self.rounds)

    @property
    def agreement(self):
        """Most of the rounds over the least - 1; infinite of one round alone."""
        return max(self.rounds) / min(self.rounds) - 1 if len(self.rounds) > 1 else float("inf")

    def error(self, model):
        return abs(self.predicted[model] / self.seconds - 1)


def cases_of(lines):
    """Return the Cases that lines tell of, rounds together; a launch that failed tells of none."""
    rounds, predicted = {}, {}
    for line in lines:
        if line["task"] in ("allreduce", "epochs") and "failed" not in line:
            name = line.get("plan") or f"{line['algorithm']}, {line['compressor']}"
            key = line["task"], line["cluster"], line.get("nbytes"), name.removesuffix(", none")
            rounds.setdefault(key, []).append(line["seconds"])
            predicted[key] = line["predicted_seconds"]
    return [Case(*key, tuple(seconds), predicted[key]) for key, seconds in rounds.items()]


def groups_of(cases):
    """Return lists of the cases that one may choose among: of one cluster and size."""
    groups = {}
    for case in cases:
        groups.setdefault((case.cluster, case.nbytes), []).append(case)
    return list(groups.values())


def kendall(cases, model):
    """Return Kendall's tau-b of the predicted and the measured order; NaN of less than two."""
    from scipy.stats import kendalltau

    return correlation(kendalltau, cases, model)


def spearman(cases, model):
    """Return Spearman's rho of the predicted and the measured order; NaN of less than two."""
    from scipy.stats import spearmanr

    return correlation(spearmanr, cases, model)


def correlation(measure, cases, model):
    if len(cases) < 2:
        return float("nan")
    return float(
        measure([case.predicted[model] for case in cases], [case.seconds for case in cases]).statistic
    )


def pairs_right(cases, model):
    """Return how many pairs measured APART and more are predicted in their order, and of how many."""
    pairs = [
        (one, other)
        for one, other in combinations(sorted(cases, key=lambda case: case.seconds), 2)
        if other.seconds > (1 + APART) * one.seconds
    ]
    return sum(one.predicted[model] < other.predicted[model] for one, other in pairs), len(pairs)


def choice(cases, model):
    """Return (chosen, best, measured seconds of the chosen over those of the best - 1)."""
    chosen = min(cases, key=lambda case: case.predicted[model])
    best = min(cases, key=lambda case: case.seconds)
    return chosen, best, chosen.seconds / best.seconds - 1


def choosable(cases, exact=False):
    """Return the allreduces that isthmus would choose among: not MPI's own, which does as it likes."""
    return [case for case in cases if case.name != "mpi" and not (exact and ", " in case.name)]


def quantiles(cases, model):
    """Return the least quarter's, median, upper quarter's, 95th percentile's and worst error."""
    return np.quantile([case.error(model) for case in cases], (0.25, 0.5, 0.75, 0.95, 1)).tolist()


def targets(cases):
    """Yield (what, measured, wanted, met) with the calibrated file; of what was measured alone."""
    steady = [case for case in cases if case.agreement <= AGREES]
    restless = [case for case in cases if case.agreement > AGREES]
    if steady:
        _, median, _, most, _ = quantiles(steady, "calibrated")
        where = f"where rounds agree within {percent(AGREES)} ({len(steady)} of {len(cases)})"
        yield f"median error {where}", percent(median), "<= 5 %", median <= 0.05
        yield f"95th percentile {where}", percent(most), "<= 10 %", most <= 0.1
    if restless:
        median = quantiles(restless, "calibrated")[1]
        yield "median error elsewhere", percent(median), "<= 10 %", median <= 0.1
    better = quantiles(cases, "n/B")[1] / quantiles(cases, "calibrated")[1]
    yield "median error, times less than that of n/B", f"{better:.1f}", ">= 4", better >= 4
    plans = groups_of(case for case in cases if case.task == "epochs")
    if plans:
        tau = min(kendall(group, "calibrated") for group in plans)
        yield "Kendall's tau of plans, least of all clusters", f"{tau:.2f}", ">= 0.9", tau >= 0.9
        regret = max(choice(group, "calibrated")[2] for group in plans)
        yield (
            "chosen plan over the best, most of all clusters",
            percent(regret),
            "<= 3 %",
            regret <= 0.03,
        )


def tables(lines):
    """Yield the lines of a Markdown text with everything that was found."""
    first, cases = lines[0], cases_of(lines)
    yield (
        f"Made by `{first['command']}`, commit {first['commit']}, {first['processor']}, links "
        f"emulated ({first['place']}).{' ' * bool(first['note'])}{first['note']}"
    )
    if cases:
        yield from ["", "## Targets", "", *head("target", ["measured", "wanted", "met"])]
        for what, measured, wanted, met in targets(cases):
            yield row(what, [measured, wanted, "yes" if met else "**no**"])
        yield from error_tables(cases)
        sums = [case for case in cases if case.task == "allreduce"]
        yield from order_table(groups_of(sums))
        yield from plan_tables(groups_of(case for case in cases if case.task == "epochs"))
    failed = [line for line in lines if "failed" in line]
    if failed:
        yield from ["", "## Launches that failed", ""]
        yield from (f"- {line['cluster']}, {line['task']}: {line['failed']}" for line in failed)


def error_tables(cases):
    yield from [
        "",
        "## Errors",
        "",
        "Of predicted / measured - 1, without sign, by what is asked: the "
        "cluster file as calibrated or as given, or n/B, bytes over the narrowest link.",
        "",
    ]
    yield from head("of", ["by", "results", "lower quarter", "median", "upper quarter", "95 %", "worst"])
    for task, words in (("allreduce", "allreduces"), ("epochs", "epochs")):
        of_task = [case for case in cases if case.task == task]
        for model in MODELS if of_task else ():
            yield row(words, [model, str(len(of_task)), *map(percent, quantiles(of_task, model))])
    sums = [case for case in cases if case.task == "allreduce"]
    for words, key in (
        ("allreduce", lambda case: case.name),
        ("bytes", lambda case: f"{case.nbytes:,}"),
        ("cluster", lambda case: case.cluster),
    ):
        yield from [
            "",
            *head(
                words,
                [
                    "median error",
                    "worst",
                    "median of predicted / measured",
                    "not calibrated: median error",
                ],
            ),
        ]
        for name in dict.fromkeys(map(key, sums)):
            some = [case for case in sums if key(case) == name]
            _, median, _, _, worst = quantiles(some, "calibrated")
            ratio = statistics.median(case.predicted["calibrated"] / case.seconds for case in some)
            yield row(
                name,
                [percent(median), percent(worst), f"{ratio:.2f}", percent(quantiles(some, "file")[1])],
            )


def order_table(groups):
    if not groups:
        return
    yield from [
        "",
        "## Does it choose right?",
        "",
        "The order of algorithms x compressors, calibrated: "
        f"tau, rho, and pairs {percent(APART)} apart or more that are in order. Then what would "
        "be chosen, and its measured seconds over those of the best - 1.",
        "",
    ]
    yield from head(
        "cluster",
        [
            "bytes",
            "tau",
            "rho",
            "tau of n/B",
            "pairs in order",
            "exact",
            "over the best",
            "any",
            "over the best",
        ],
    )
    for group in groups:
        right, pairs = pairs_right(group, "calibrated")
        cells = [
            f"{group[0].nbytes:,}",
            f"{kendall(group, 'calibrated'):.2f}",
            f"{spearman(group, 'calibrated'):.2f}",
            f"{kendall(group, 'n/B'):.2f}",
            f"{right} of {pairs}",
        ]
        for exact in (True, False):
            some = choosable(group, exact)
            if some:
                chosen, best, regret = choice(some, "calibrated")
                cells += [chosen.name, percent(regret) + f" ({best.name})" * (regret > 0)]
            else:
                cells += ["", ""]
        yield row(group[0].cluster, cells)
    for exact, words in ((True, "exact"), (False, "any")):
        some = [each for group in groups if (each := choosable(group, exact))]
        for model in MODELS if some else ():
            regrets = [choice(each, model)[2] for each in some]
            median, most = percent(statistics.median(regrets)), percent(max(regrets))
            yield from [
                "",
                f"Chosen by {model} among {words}: {median} over the best in the median, "
                f"{most} at most.",
            ]


def plan_tables(groups):
    if not groups:
        return
    yield from ["", "## Plans", "", "Seconds of an epoch.", ""]
    yield from head("cluster", ["plan", "measured", "rounds agree", "calibrated", "file", "n/B"])
    for group in groups:
        for case in sorted(group, key=lambda case: case.seconds):
            agree = percent(case.agreement) if len(case.rounds) > 1 else ""
            yield row(
                case.cluster,
                [
                    case.name,
                    f"{case.seconds:.3f}",
                    agree,
                    *(f"{case.predicted[model]:.3f}" for model in MODELS),
                ],
            )
    yield from ["", *head("cluster", ["tau", "rho", "tau of n/B", "chosen", "over the best"])]
    for group in groups:
        chosen, _, regret = choice(group, "calibrated")
        yield row(
            group[0].cluster,
            [
                f"{kendall(group, 'calibrated'):.2f}",
                f"{spearman(group, 'calibrated'):.2f}",
                f"{kendall(group, 'n/B'):.2f}",
                chosen.name,
                percent(regret),
            ],
        )


def percent(share):
    return f"{100 * share:.1f} %"


def draw(cases):
    """Return the SVG: predicted against measured of allreduces and of epochs, and errors' shares."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        sums, epochs, errors = figure.subplots(1, 3)
        allreduces = [case for case in cases if case.task == "allreduce"]
        draw_against(
            sums, "allreduces", allreduces, lambda case: case.name.removeprefix("hierarchical, ")
        )
        draw_against(
            epochs,
            "epochs, by plan",
            [case for case in cases if case.task == "epochs"],
            lambda case: case.name,
        )
        draw_errors(errors, allreduces)
        return svg_text(figure)


def draw_against(axis, title, cases, label_of):
    """Predicted seconds, calibrated, against measured; on the line they are equal."""
    for number, label in enumerate(dict.fromkeys(map(label_of, cases))):
        some = [case for case in cases if label_of(case) == label]
        axis.plot(
            [case.seconds for case in some],
            [case.predicted["calibrated"] for case in some],
            "osD^vPX"[number % 7],
            color=COLOURS[number % len(COLOURS)],
            markersize=4,
            alpha=0.8,
            linestyle="none",
            label=label,
        )
    axis.set(
        xscale="log", yscale="log", xlabel="measured, s", ylabel="predicted, calibrated, s", title=title
    )
    if cases and cases[0].task == "epochs":  # less than a power of ten from end to end
        plain_numbers(axis.xaxis)
        plain_numbers(axis.yaxis)
    if cases:
        ends = [pick(case.seconds for case in cases) for pick in (min, max)]
        axis.plot(ends, ends, color="#000000", linewidth=0.8)
        axis.legend(frameon=False, fontsize=7)
    axis.grid(alpha=0.25, which="both", linewidth=0.5)


def draw_errors(axis, cases):
    """The share of allreduces whose error is no larger, by model."""
    for model, colour, stroke in zip(MODELS, COLOURS, ("-", "--", ":")):
        errors = sorted(case.error(model) for case in cases)
        axis.step(
            errors,
            np.arange(1, len(errors) + 1) / max(1, len(errors)),
            stroke,
            where="post",
            color=colour,
            label=model,
        )
    axis.set(
        xscale="log",
        xlabel="|predicted / measured - 1|",
        ylabel="share of allreduces",
        title="errors",
        ylim=(0, 1),
    )
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25, which="both", linewidth=0.5)


def tell_findings(path):
    """Write what the lines in `path` say beside them, and print the tables."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    if lines:
        tell(path, tables(lines), draw(cases_of(lines)))


if __name__ == "__main__":
    tell_findings(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
