"""What people read of a stream of requests that was answered."""

from isthmus.terminal import table_of
from isthmus.timing.requests import TERMS


def inference_words(made):
    """Return what people read of the table: predicted beside measured, by term, and what was sent."""
    if "runs" not in made:
        told = ", ".join(f"{count:,} {name}" for name, count in made["requests"].items())
        return [f"{made['mode']}: {told}"]
    rows = []
    for rule, table in made["runs"].items():
        for name in (*TERMS, "mean", "p50", "p99"):
            rows.append(
                (
                    (
                        rule,
                        name,
                        f"{1e3 * table['predicted'][name]:.2f}",
                        f"{1e3 * table['measured'][name]:.2f}",
                    ),
                    "bold" if name == "mean" else "",
                )
            )
    lines = [
        table_of(
            [("dispatch", "left"), ("ms", "left"), ("predicted", "right"), ("measured", "right")], rows
        )
    ]
    for rule, table in made["runs"].items():
        right = "" if table["accuracy"] is None else f", {table['accuracy']:.2%} right"
        lines.append(
            f"{rule}: {table['requests']:,} requests, {table['from_cloud']:,} answered by the cloud, "
            f"{table['late']:,} late{right}; {table['sent_nbytes']:,} bytes sent, by formula "
            f"{table['predicted_nbytes']:,}; {table['differing']} of {table['checked']} answers differ "
            "computed again"
        )
        if len(table["by_split"]) > 1:
            lines.append(f"{rule}: {splits_in_words(table['by_split'])}")
    if told := activations_in_words(made):
        lines.append(told)
    if not isinstance(made["plan"], str):
        lines += list(made["plan"]["sentences"])
    return [*lines, f"{made['output']}: answers.npz, summary.json"]


def splits_in_words(by_split):
    """Return how many requests were answered by each split of a chain that follows the link."""
    told = (
        f"{count:,} with {'nothing' if place == len(by_split) - 1 else f'what layer {place} gives'} sent"
        if place
        else f"{count:,} sent as they are"
        for place, count in enumerate(by_split)
        if count
    )
    return f"as the link's rates were, {', '.join(told)}"


def activations_in_words(made):
    """Return what coded activations of a split do to the accuracy, or None where nothing was coded."""
    told = made["activations"]
    if told is None:
        return None
    same = sum(run["checked"] - run["changed"] for run in made["runs"].values())
    checked = sum(run["checked"] for run in made["runs"].values())
    line = f"activations in {told['kind']}: {same} of {checked} answers are those of float32"
    if "change" not in told:
        return line + "; what that does to the accuracy is told where answers.validation names a set"
    return (
        f"{line}; of {told['samples']:,} validation samples {told['accuracy']:.2%} are right, "
        f"{told['float32_accuracy']:.2%} in float32: {told['change']:+.2%}, from {told['low']:+.2%} to "
        f"{told['high']:+.2%} at 95 %"
    )
