"""What `strategies.py` has found: tables, and accuracy against seconds."""

import math

import numpy as np
from strategies_targets import BASE, target_lines
from study import head, row, svg_text

STEP, SECONDS, SENT, VALIDATION, TEST = range(5)
DIGEST = -1


def steps_to(looks, target, column=TEST):
    """Return the first step at which the mean of three looks has reached `target`; None if none has."""
    found = np.array([look[column] for look in looks])
    means = (found[:-2] + found[1:-1] + found[2:]) / 3
    reached = np.flatnonzero(means >= target - 1e-9)
    return looks[reached[0] + 2][STEP] if reached.size else None


def best_rate(trials, target):
    """Return (learning rate, steps or None) of the trial whose validation accuracy is there first.

    Where none is, the one with the highest at its end.
    """

    def merit(trial):
        steps = steps_to(trial["looks"], target, VALIDATION)
        last = np.mean([look[VALIDATION] for look in trial["looks"][-3:]])
        return math.inf if steps is None else steps, -last

    best = min(trials, key=merit)
    return best["learning_rate"], steps_to(best["looks"], target, VALIDATION)


def half_interval(values):
    """Return half of the 95 % interval of a mean by Student's t."""
    from scipy.stats import t

    return t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))


def mean_in_words(values, form):
    """Return the mean with half of its interval, as text."""
    return f"{np.mean(values):{form}}" + (
        f" ± {half_interval(values):{form}}" if len(values) > 1 else ""
    )


def ratio_in_words(ratios):
    """Return the geometric mean of ratios with its interval, as text."""
    logarithms = np.log(ratios)
    mean = np.mean(logarithms)
    if len(ratios) < 2:
        return f"{math.exp(mean):.2f}"
    half = half_interval(logarithms)
    return f"{math.exp(mean):.2f} ({math.exp(mean - half):.2f} to {math.exp(mean + half):.2f})"


class Found:
    """What the lines say of one row of one table. Runs are in the order of the table's seeds."""

    def __init__(self, study, lines, table, row):
        self.table, self.row = table, row
        timed = next(each for each in study.tables if each.name == (table.seconds_of or table.name))
        asked, asked_of_timed = (
            {"table": each.name, "row": row.name, "settings": study.digest_of(each, row)}
            for each in (table, timed)
        )
        self.trials = lines.all(part="trial", **asked)
        self.runs = lines.all(part="run", **asked)
        if row.real_time:  # others than the last count for their seconds alone
            self.runs_of_rate = {
                rate: [line for line in self.runs if line["bytes_per_second"] == rate]
                for rate in study.timing.bytes_per_second
            }
            self.runs = self.runs_of_rate[row.real_time[-1]]
        self.steps = [steps_to(line["looks"], table.target) for line in self.runs]
        self.reached = [steps for steps in self.steps if steps is not None]
        timed = lines.all(part="seconds", **asked_of_timed)
        self.timed = {line["bytes_per_second"]: line for line in timed}
        self.whole = lines.all(part="whole", **asked)

    @property
    def sent_nbytes(self):
        """Bytes over all links until the accuracy was reached, of each run that has."""
        return [
            look_at(line, steps)[SENT] for line, steps in zip(self.runs, self.steps) if steps is not None
        ]

    @property
    def last_accuracies(self):
        """The mean of the last five looks at the test set, of each run."""
        return [np.mean([look[TEST] for look in line["looks"][-5:]]) for line in self.runs]

    def step_seconds(self, rate):
        """Return the measured seconds of a step; None where nothing was timed."""
        if rate not in self.timed:
            return None
        first, last = self.timed[rate]["looks"]
        return (last[SECONDS] - first[SECONDS]) / (last[STEP] - first[STEP])

    @property
    def errors(self):
        """How far the time model's seconds of a step are off, as shares of the measured ones."""
        return [
            abs(line["predicted_seconds"] / self.step_seconds(rate) - 1)
            for rate, line in self.timed.items()
        ]

    def seconds(self, rate):
        """Return the seconds of each run to the accuracy, None of one that has not reached it."""
        if self.row.real_time:
            runs = self.runs_of_rate[rate]
            reached = [(line, steps_to(line["looks"], self.table.target)) for line in runs]
            return [steps and look_at(line, steps)[SECONDS] for line, steps in reached]
        seconds = self.step_seconds(rate)
        return [steps and seconds and steps * seconds for steps in self.steps]

    def curves(self, rate):
        """Return [[seconds, accuracy on the test set] of each look] of each run on such links."""
        if self.row.real_time:
            runs = self.runs_of_rate[rate]
            return [[(look[SECONDS], look[TEST]) for look in line["looks"]] for line in runs]
        step = self.step_seconds(rate)
        return [
            [(step * look[STEP], look[TEST]) for look in line["looks"]] for line in self.runs if step
        ]

    def validated_seconds(self, rate):
        """Return the seconds until the validation accuracy, by which rows are chosen."""
        steps, seconds = best_rate(self.trials, self.table.validation_target)[1], self.step_seconds(rate)
        return math.inf if steps is None or seconds is None else steps * seconds

    def times_sooner(self, base, rate):
        """Return how many times sooner than `base`, of each seed with which both are there."""
        pairs = zip(self.seconds(rate), base.seconds(rate))
        return [theirs / mine for mine, theirs in pairs if mine and theirs]


def look_at(line, steps):
    return next(look for look in line["looks"] if look[STEP] == steps)


def tell_findings(study, lines):
    """Write tables and the picture beside the lines; print the tables."""
    tables = {
        table.name: {row.name: Found(study, lines, table, row) for row in study.rows_of(table)}
        for table in study.tables
    }
    there = {
        name: {row: each for row, each in found.items() if each.runs} for name, found in tables.items()
    }
    every = [each for found in tables.values() for each in found.values()]
    errors = [error for each in every if not each.table.seconds_of for error in each.errors]
    text = ["# Strategies: steps, bytes and seconds to an accuracy", "", *target_lines(there, errors)]
    for table in study.tables:
        if found := list(there[table.name].values()):
            text += table_lines(study, table, found)
    text += whole_lines(every)
    if errors:
        text.append(
            "Seconds a step by the time model, with cluster files as they are: "
            f"{100 * np.median(errors):.1f} % off in the median of {len(errors)}, "
            f"{100 * np.quantile(errors, 0.95):.1f} % at most in 95 of 100."
        )
    joined = "\n".join(text) + "\n"
    lines.path.with_suffix(".md").write_text(joined)
    lines.path.with_suffix(".svg").write_text(picture(study, tables))
    print(joined)


def table_lines(study, table, found):
    """Yield the lines of one table."""
    rates = study.timing.bytes_per_second
    base = next((each for each in found if each.row.name == BASE), None)
    links = [f"{8 * rate / 1e6:g} Mbit/s" for rate in rates]
    yield f"## {table.name}: {100 * table.target:g} % of the test set"
    yield ""
    yield from head(
        "row",
        ["learning rate", "steps", "times the steps", "MB over links", "accuracy at the end, %"]
        + [f"{name}: seconds, times sooner" for name in links],
    )
    for each in found:
        yield row(each.row.name, cells(each, base, rates))
    yield ""
    if base is None:
        return
    for rate, name in zip(rates, links):
        best = min(found, key=lambda each: each.validated_seconds(rate))
        if math.isfinite(best.validated_seconds(rate)) and (sooner := best.times_sooner(base, rate)):
            yield (
                f"Chosen by the validation set at {name}: {best.row.name}, "
                f"{ratio_in_words(sooner)} times sooner than {BASE}."
            )
    yield ""


def cells(each, base, rates):
    """Yield what stands in a row."""
    pairs = zip(each.steps, base.steps) if base and not each.row.turn else ()  # a round is no step
    ratios = [mine / theirs for mine, theirs in pairs if mine and theirs]
    steps = mean_in_words(each.reached, ".0f") if each.reached else "never"
    if 0 < len(each.reached) < len(each.steps):
        steps += f" ({len(each.reached)} of {len(each.steps)})"
    yield f"{each.runs[0]['learning_rate']:g}"
    yield steps + " rounds" * bool(each.row.turn and each.reached)
    yield ratio_in_words(ratios) if ratios else ""
    yield f"{np.mean(each.sent_nbytes) / 1e6:.3g}" if each.reached else ""
    yield mean_in_words([100 * accuracy for accuracy in each.last_accuracies], ".1f")
    for rate in rates:
        seconds = [taken for taken in each.seconds(rate) if taken]
        sooner = each.times_sooner(base, rate) if base and each is not base else []
        told = [ratio_in_words(sooner)] if sooner else []
        yield ", ".join([f"{np.mean(seconds):.3g}", *told]) if seconds else ""


def whole_lines(every):
    """Yield what whole runs took, beside steps times seconds a step, and if their bits are the same."""
    rows = []
    for each in every:
        for line in each.whole:
            rate, (first, last) = line["bytes_per_second"], line["looks"]
            took, step = last[SECONDS] - first[SECONDS], each.step_seconds(rate)
            bits = [look_at(run, last[STEP])[DIGEST] for run in each.runs if run["seed"] == line["seed"]]
            cells = [f"{last[STEP]}", f"{took:.2f}"]
            cells.append(f"{100 * (step * last[STEP] / took - 1):+.1f} %" if step else "")
            cells.append("yes" if bits == [last[DIGEST]] else "**no**")
            rows.append(row(f"{each.table.name}, {each.row.name}, {8 * rate / 1e6:g} Mbit/s", cells))
    if rows:
        yield from ("## Whole runs on the links", "")
        yield from head("run", ["steps", "seconds", "steps x seconds a step", "the same bits"])
        yield from (*rows, "")


def picture(study, tables):
    """Return an SVG: a table a row, a rate of links a column, mean test accuracy against seconds."""
    from matplotlib.figure import Figure

    rates = study.timing.bytes_per_second
    figure = Figure((4.2 * len(rates), 3.2 * len(study.tables)), layout="constrained")
    axes = np.reshape(figure.subplots(len(study.tables), len(rates), squeeze=False), (-1, len(rates)))
    names = [each.name for each in study.rows]
    for table, of_table in zip(study.tables, axes):
        found = tables[table.name].values()
        for rate, axis in zip(rates, of_table):
            for each in found:
                if curves := each.curves(rate):
                    seconds, accuracy = np.mean(curves, axis=0).T
                    number = names.index(each.row.name)
                    axis.semilogx(
                        seconds[1:],
                        accuracy[1:],
                        color=f"C{number % 10}",
                        linestyle="-" if number < 10 else "--",
                        linewidth=1,
                        label=each.row.name,
                    )
            axis.axhline(table.target, color="0.6", linewidth=0.6)
            axis.set_ylim(table.target - 0.25, table.target + 0.03)
            axis.set_title(f"{table.name}, {8 * rate / 1e6:g} Mbit/s", fontsize=9)
            axis.set_xlabel("seconds")
            axis.set_ylabel("test accuracy")
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=7)
    return svg_text(figure)
