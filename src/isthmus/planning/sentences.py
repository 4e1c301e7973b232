"""What a plan says to people: what it is bound by, what would help, and what looks wrong."""

import numpy as np

from isthmus.planning.programme.exchanges import link_name, link_names
from isthmus.registry import ALLREDUCE_STAGES
from isthmus.timing.stages import link_routes

BIT_RATES = (1e8, 2e8, 5e8, 1e9, 2e9, 2.5e9, 5e9, 1e10, 2.5e10, 4e10, 5e10, 1e11, 2e11, 4e11)
"""Rates at which networks are sold, in bits per second: as bytes per second they are suspicious."""
WORTH_SAYING = 1e-3
"""Share of the objective that 10 % more must save to be told in a sentence."""


def bound_by(cluster, terms, seconds_of_rank):
    """Return one sentence: the term that takes longest, and where."""
    name = max(terms, key=terms.get)
    whole = sum(terms.values())
    share = f"{1e3 * terms[name]:.1f} ms of {1e3 * whole:.1f} ms a step"
    if name == "compute":
        rank = int(np.argmax(seconds_of_rank))
        return (
            f"bound by computing on rank {rank} of site "
            f"{cluster.names[cluster.site_of_rank[rank]]}: {share}"
        )
    if name == "links":
        used = {link for way in link_routes(cluster) for route in way for link in route}
        slowest = min(filter(used.__contains__, cluster.links), key=lambda link: link.bytes_per_second)
        return f"bound by the link {slowest.source} > {slowest.target}: {share}"
    if name in ALLREDUCE_STAGES:
        return f"bound by the allreduce's {name}: {share}"
    return (
        f"bound by the {'update of the parameters' if name == 'update' else 'time of Python'}: {share}"
    )


def price_sentences(cluster, shadow_prices, whole_seconds):
    """Return what 10 % more of each link, site's rate and storage saves, the most worthwhile first.

    To first order: from the slopes, which hold while the same limits bind.
    """
    rate, storage = (
        np.bincount(cluster.site_of_rank, np.array(shadow_prices[name]) * weights)
        for name, weights in (("rate", cluster.rates), ("storage", 1.0))
    )
    offers, names = [], link_names(cluster)
    tiers = {site.name: site.tier for site in cluster.sites}
    for name, price in shadow_prices["link"].items():
        links = [cluster.links[number] for number in names[name]]
        offers.append(
            (
                price * min(link.bytes_per_second for link in links),
                f"10 % more on {_called(tiers, links[0], name)}",
            )
        )
    for index, site in enumerate(cluster.sites):
        offers.append((float(rate[index]), f"10 % more computing on every rank of {site.name}"))
        if np.isfinite(site.storage_nbytes):
            offers.append(
                (
                    float(storage[index] * site.storage_nbytes),
                    f"10 % more storage on every rank of {site.name}",
                )
            )
    offers = [
        (0.1 * worth, what)
        for worth, what in offers
        if 0.1 * worth >= max(WORTH_SAYING * whole_seconds, 1e-12)
    ]
    return tuple(
        f"{what} saves {saved:.3g} s an epoch"
        for saved, what in sorted(offers, key=lambda offer: -offer[0])
    )


def _called(tiers, link, name):
    if link.shared is not None:
        return f"the shared link {name}"
    edges = [end for end in (link.source, link.target) if tiers[end] == "edge"]
    return f"{edges[0]}'s uplink" if len(edges) == 1 else f"the link {name}"


def bits_taken_for_bytes(cluster):
    """Return a sentence for each link whose bytes_per_second looks like bits per second."""
    network = {site.name: site.network.bytes_per_second for site in cluster.sites}
    told = {}
    for link in cluster.links:
        rate = link.bytes_per_second
        faster = rate > 4 * min(network[link.source], network[link.target])
        if rate in BIT_RATES or faster:
            why = "faster than the network of a site it joins" if faster else "a usual rate in bits"
            told.setdefault(
                link_name(link),
                (
                    f"link {link_name(link)}: bytes_per_second = {rate:g} is {why}; if it was meant in "
                    f"bits per second, write {rate / 8:g}"
                ),
            )
    return tuple(told.values())
