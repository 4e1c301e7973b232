"""Who took part in a run when, and what each loss and each return has cost."""

import statistics

from isthmus.errors import ranks_in_words


def lost_sentence(line):
    """Return what a line of kind "lost" tells: who is gone, and what that took."""
    never, undone = ", ".join(map(str, line["never"])), line.get("undone", 0)
    steps = f"{undone} steps were" if undone > 1 else f"{'1' if undone else 'the'} step was"
    if not line["ranks"]:
        return f"a message was changed on its way, {steps} made again after {line['seconds']:.2f} s"
    return (
        f"{ranks_in_words(line['ranks'])} gone, the others went on after {line['seconds']:.2f} s"
        + f"; {steps} made again" * bool(undone)
        + f"; nobody could read shards {never}" * bool(never)
    )


def late_sentence(line):
    """Return what a line of kind "late" tells: who was not there as the others began."""
    never = ", ".join(map(str, line["never"]))
    return (
        f"{', '.join(line['sites'])} absent from the start: not there after {line['seconds']:g} s"
        + f"; nobody could read shards {never}" * bool(never)
    )


def member_rows(run):
    """Return (steps, ranks of each site, shards held, what the change has cost) of each set of members,
    where there were several, or not all were there at the start; else nothing.

    The cost: seconds from noticing to going on, and the median of a step then and before.
    """
    lines = [line for line in run.metrics if line["kind"] == "members"]
    ends = [*(line["step"] for line in lines[1:]), run.steps[-1]["step"] if run.steps else 0]
    rows, before = [], None
    for line, end in zip(lines, ends):
        taken = [step["step_seconds"] for step in run.steps if line["step"] < step["step"] <= end]
        if not taken:  # others were gone before a step was made
            continue
        usual = statistics.median(taken)
        sites = ", ".join(f"{site['name']} {site['ranks']}" for site in line["cluster"]["site"])
        shards = sum(map(len, line["shards_of_rank"]))
        costs = "; ".join(_costs(run, line, usual, before))
        rows.append((f"{line['step'] + 1:,} to {end:,}", sites, shards, costs))
        before = usual
    late = any(line["kind"] == "late" for line in run.metrics)
    return rows if len(rows) > 1 or late else []


def _costs(run, line, usual, before):
    """Yield what it has cost that members are others from this line on."""
    told = {"lost": lost_sentence, "late": late_sentence}
    for other in run.metrics:
        if other["kind"] in told and other["step"] == line["step"]:
            yield told[other["kind"]](other)
    if line.get("resumed"):
        yield "resumed with other ranks"
    if before is not None:
        yield f"a step {1e3 * usual:.1f} ms, {1e3 * before:.1f} ms before"
