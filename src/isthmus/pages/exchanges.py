"""What sites exchanged, by the epoch: what came of it, what crossed links, and who took part."""

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
        _row(run, before["step"], before.get("link_nbytes", 0), line)
        for before, line in pairwise([{"step": 0}, *ends])
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(name, "–") for name in columns] for row in rows]


def _row(run, after, nbytes, evaluation):
    """Return column -> text of the steps after number `after` up to an evaluation's."""
    lines = [line for line in run.metrics if after < line["step"] <= evaluation["step"]]
    steps = [line for line in lines if line["kind"] == "step"]
    exchanges = sum(line.get("exchanged", True) for line in steps)
    sent = evaluation["link_nbytes"] - nbytes
    row = {"step": f"{evaluation['step']:,}", "s": f"{evaluation['seconds']:.1f}"}
    row |= {name: metric_in_words(name, value) for name, value in metrics_of(evaluation).items()}
    row |= {"exchanges": f"{exchanges:,}", "MB over links": f"{sent / 1e6:.2f}"}
    if exchanges:
        row["kB an exchange"] = f"{sent / exchanges / 1e3:.1f}"
    return row | _arrivals(run, lines) | _clients(steps, lines)


def _arrivals(run, lines):
    """Return who has sent changes, and how many versions went by from a site's start to its next."""
    arrived = [each for line in lines if line["kind"] == "arrivals" for each in line["arrivals"]]
    if not arrived:
        return {}
    starts = {}
    for site, version in arrived:
        starts.setdefault(site, []).append(version)
    ages = [after - before for each in starts.values() for before, after in pairwise(each)]
    who = ", ".join(f"{run.cluster.names[site]} {len(starts[site])}" for site in sorted(starts))
    return {"changes": who} | ({"versions a change": f"{sum(ages) / len(ages):.1f}"} if ages else {})


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
