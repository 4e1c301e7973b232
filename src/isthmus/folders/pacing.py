"""What one machine that stands in for a whole cluster was too slow to hold to its pace."""

EXCESS = 0.1
NOISE_SECONDS = 1e-3
"""A pace that takes longer by this share and by this much more was not held."""
MESSAGE_NBYTES = 1_000_000
"""By whose seconds a link is judged."""


def not_held(what, pace_seconds, measured_seconds):
    """Return words on a pace that was not held, and by how much; None where it was, or is not known."""
    if measured_seconds is None or measured_seconds <= (1 + EXCESS) * pace_seconds + NOISE_SECONDS:
        return None
    times = f", {measured_seconds / pace_seconds:.3g} times as long" if pace_seconds else ""
    return f"{what} took {1e3 * measured_seconds:.4g} ms for a pace of {1e3 * pace_seconds:.4g}{times}"


def not_held_in(run):
    """Return such words for what a run's settings pace: each term of a step beside its prediction."""
    terms = {name: seconds for name, *seconds in run.terms}
    paced = (("compute", "compute", "computing"), ("links", "links", "crossing the links"))
    found = [
        not_held(f"{what}, a step,", *terms.get(term, (0.0, None)))
        for key, term, what in paced
        if run.settings["cluster"][key] == "paced"
    ]
    return [words for words in found if words]


def ranks_not_held(cluster, fits, batch_size):
    """Yield such words for the rank of each site that is the furthest behind the cluster file's rate.

    fits: of every rank's seconds over its samples, as measured. Each has its share of a batch by rate.
    """
    for site in cluster.sites:
        paces = []
        for rank in cluster.ranks_of_site(site.name):
            rate, fit = cluster.rates[rank], fits[rank]
            samples = batch_size * rate / sum(cluster.rates)
            pace = site.fixed_seconds + samples / rate
            measured = fit.latency_seconds + samples / fit.bytes_per_second
            words = f"rank {rank} of {site.name}: computing {samples:.0f} samples"
            paces.append((measured - pace, not_held(words, pace, measured)))
        words = max(paces, key=lambda each: each[0])[1]
        if words:
            yield words


def link_not_held(link, measured):
    """Return such words for a message over a link; measured: its latency and rate, as of a file."""
    seconds = [
        latency + MESSAGE_NBYTES / rate
        for latency, rate in (
            (link.latency_seconds, link.bytes_per_second),
            (measured["latency_seconds"], measured["bytes_per_second"]),
        )
    ]
    return not_held(f"link {link.source} > {link.target}: {MESSAGE_NBYTES / 1e6:.0f} MB", *seconds)
