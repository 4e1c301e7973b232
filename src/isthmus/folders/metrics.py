"""The numbers by which a model is judged, by name, as a run's files tell them and as people read them.

The loss comes first, and last what a model is judged by: "accuracy" of a classifier, "r2" of a
regression, or what a loss of one's own names.
"""

import math

HIGHER_IS_BETTER = {"loss": False, "accuracy": True, "mae": False, "r2": True}
"""Of the metrics of which that is known."""


def told_metrics(metrics):
    """Return what an evaluation's line and a summary tell: loss and accuracy, and all by name."""
    return {"loss": metrics.get("loss"), "accuracy": metrics.get("accuracy"), "metrics": metrics}


def metrics_of(table):
    """Return name -> value of what `told_metrics` gave, or an older version of it; {} of no test."""
    if "metrics" in table:
        return table["metrics"]
    both = {name: table.get(name) for name in ("loss", "accuracy")}
    return {} if None in both.values() else both


def judged_by(metrics):
    """Return the name of the metric that tells how good a model is; "loss" of none."""
    return list(metrics)[-1] if metrics else "loss"


def number_in_words(value):
    """Return a number with four digits behind the point; where it is small or large, four that count."""
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{value:.4g}"


def metric_in_words(name, value, digits=2):
    """Return a metric as people read it: an accuracy in percent, with so many digits."""
    return f"{100 * value:.{digits}f} %" if name == "accuracy" else number_in_words(value)


def outcome_in_words(summary):
    """Return a line on what a run came to: its metric, and a step's time beside the predicted one."""
    name, step = judged_by(summary["metrics"]), summary["step"]
    return (
        f"{name} {number_in_words(summary['metrics'].get(name, math.nan))} after {summary['steps']} "
        f"steps; a step took {1e3 * step['measured_seconds']:.1f} ms, predicted "
        f"{1e3 * step['predicted_seconds']:.1f} ms"
    )


def metrics_in_words(metrics):
    """Return all of them in one line, as in "loss 0.4321, accuracy 0.8543"."""
    return ", ".join(f"{name} {number_in_words(value)}" for name, value in metrics.items())
