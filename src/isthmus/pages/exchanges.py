"""What sites exchanged, by the epoch: what came of it, what crossed links, and who took part."""

from collections import Counter
from itertools import pairwise

from isthmus.folders.metrics import metric_in_words, metrics_of

MOST_ROWS = 20


def exchange_table(run):
    """Return (columns, rows) of text, a row an evaluation; None where sites exchanged in every step.

    A row tells of what was since the one before; of a long run some evaluations are left out. Columns
    that a run's lines say nothing of are left out, too.
    """
    told = {"arrivals", "dropped"} & {line["kind"] for line in run.metrics}
    always = all(line.get("exchanged", True) for line in run.steps)
    if not run.evaluations or (always and not told and not any("clients" in line for line in run.steps)):
        return None
    whole = len(run.evaluations)
    chosen = range(whole) if whole <= MOST_ROWS else [i * whole // MOST_ROWS for i in range(MOST_ROWS)]
    ends = [run.evaluations[number] for number in sorted({*chosen, whole - 1})]
    rows = [
        _row(run, before, line)
        for before, line in pairwise([{"step": 0, "seconds": 0.0, "link_nbytes": 0}, *ends])
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(name, "–") for name in columns] for row in rows]


def _row(run, before, evaluation):
    """Return column -> text of the steps after an evaluation up to another one's."""
    lines = [line for line in run.metrics if before["step"] < line["step"] <= evaluation["step"]]
    steps = [line for line in lines if line["kind"] == "step"]
    exchanges = sum(line.get("exchanged", True) for line in steps)
    sent = evaluation["link_nbytes"] - before["link_nbytes"]
    seconds = evaluation["seconds"] - before["seconds"]
    row = {"step": f"{evaluation['step']:,}", "s": f"{evaluation['seconds']:.1f}"}
    row |= {name: metric_in_words(name, value) for name, value in metrics_of(evaluation).items()}
    row |= {"exchanges": f"{exchanges:,}", "MB over links": f"{sent / 1e6:.2f}"}
    if exchanges:
        row["kB an exchange"] = f"{sent / exchanges / 1e3:.1f}"
    return row | _arrivals(run, lines, seconds) | _clients(steps, lines)


def _arrivals(run, lines, seconds):
    """Return who has sent changes, how many a second, and how many versions old they were."""
    told = [line for line in lines if line["kind"] == "arrivals"]
    counts = Counter(site for line in told for site, _ in line["arrivals"])
    if not counts:
        return {}
    ages = [age for line in told for age in line["staleness"]]
    return {
        "changes": ", ".join(f"{run.cluster.names[site]} {counts[site]}" for site in sorted(counts)),
        **_walks(run, told),
        "changes a second": f"{len(ages) / seconds:.3g}" if seconds > 0 else "–",
        "versions old": f"{sum(ages) / len(ages):.2f}",
    }


def _walks(run, told):
    """Return how often each site has walked its own samples."""
    made = [
        sum(each) / run.plan["steps"] for each in zip(*(line.get("steps_of_site", []) for line in told))
    ]
    words = ", ".join(f"{name} {walks:.2f}" for name, walks in zip(run.cluster.names, made))
    return {"own samples, times": words} if words else {}


def _clients(steps, lines):
    """Return how many clients took part in a round, and how many were left out."""
    given = [line["clients"] for line in steps if "clients" in line]
    if not given:
        return {}
    numbers = [each if isinstance(each, int) else len(each) for each in given]
    row = {"clients a round": f"{sum(numbers) / len(numbers):.4g}"}
    if all(isinstance(each, list) for each in given):
        row["different ones"] = f"{len({client for each in given for client in each}):,}"
    dropped = sum(len(line["clients"]) for line in lines if line["kind"] == "dropped")
    return row | ({"dropped": f"{dropped:,}"} if dropped else {})


def ways_in_words(run):
    """Return a sentence for each way over a link: its bytes, and those of an exchange."""
    exchanges = sum(line.get("exchanged", True) for line in run.steps)
    return [
        f"{link['source']} → {link['target']}: {link['sent_nbytes'] / 1e6:.2f} MB, "
        f"{link['sent_nbytes'] / max(1, exchanges) / 1e3:.1f} kB an exchange."
        for link in (run.summary["links"] if run.summary else [])
    ]
