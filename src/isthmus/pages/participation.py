"""Who took part in the rounds of a run with clients, in a sentence of its report."""

from collections import Counter


def participation_words(run):
    """Return sentences on the clients of a run: how many, how often each was there, who was dropped."""
    told = run.provenance.get("clients")
    if not told:
        return []
    least, most = told["samples"]
    words = (
        f"A step is a round of clients: there are {told['count']:,}, of {least:,} to {most:,} samples "
        f"each, and a round wants {told['wanted']:,}"
    )
    drawn = [line["clients"] for line in run.steps if isinstance(line.get("clients"), list)]
    if drawn:
        times = Counter(client for clients in drawn for client in clients)
        words += (
            f"; in {len(drawn):,} rounds {len(times):,} of them took part, the most frequent "
            f"{max(times.values(), default=0):,} times"
        )
    dropped = Counter(
        client for line in run.metrics if line["kind"] == "dropped" for client in line["clients"]
    )
    if dropped:
        client, often = dropped.most_common(1)[0]
        words += (
            f"; {dropped.total():,} times what one had learnt was not finite and was dropped, of client "
            f"{client} {often:,} times"
        )
    return [f"{words}."]
