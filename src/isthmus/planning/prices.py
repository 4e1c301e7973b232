"""What one more unit of a rate, a link or a storage is worth, in numbers and in sentences."""

import numpy as np

from isthmus.topology.cluster import Cluster

BIT_RATES = (1e8, 2e8, 5e8, 1e9, 2e9, 2.5e9, 5e9, 1e10, 2.5e10, 4e10, 5e10, 1e11, 2e11, 4e11)
"""Rates at which networks are sold, in bits per second: as bytes per second they are suspicious."""
FASTER = 1e-3
"""Share of a link's bytes per second by which it is made faster to see what that saves."""
WORTH_SAYING = 1e-3
"""Share of the objective that 10 % more must save to be told in a sentence."""


def link_name(link):
    """Return the name of what a link's rate belongs to: what it shares, or its two sites."""
    return link.pipe.rpartition(":")[0] or "-".join(sorted((link.source, link.target)))


def link_prices(cluster, exchange_seconds):
    """Return link -> seconds of an epoch's exchange saved by one more byte per second, by differences.

    exchange_seconds: of a cluster. Both directions of a link grow together; links that share a rate are
    one. Links that save nothing when all of them grow save nothing alone, so halves are tried.
    """
    names = link_names(cluster)
    prices, now, trials = dict.fromkeys(names, 0.0), exchange_seconds(cluster), [list(names)]
    while trials:
        chosen = trials.pop()
        saved = now - exchange_seconds(with_faster_links(cluster, {
            number for name in chosen for number in names[name]}))
        if saved > 1e-12 * now and len(chosen) > 1:
            trials += [chosen[:len(chosen) // 2], chosen[len(chosen) // 2:]]
        elif saved > 0 and chosen:
            prices[chosen[0]] = saved / added_bytes_per_second(cluster, names[chosen[0]])
    return prices


def link_names(cluster):
    """Return name -> numbers of the links that have it."""
    names = {}
    for number, link in enumerate(cluster.links):
        names.setdefault(link_name(link), []).append(number)
    return names


def with_faster_links(cluster, numbers):
    """Return `cluster` with `FASTER` more bytes per second on each of the links."""
    table = cluster.to_table()
    for members in link_names(cluster).values():
        added = added_bytes_per_second(cluster, members)
        for number in numbers.intersection(members):
            table["link"][number]["bytes_per_second"] += added
    return Cluster(table)


def added_bytes_per_second(cluster, numbers):
    """Return by how much the links of one name are made faster."""
    return FASTER * min(cluster.links[number].bytes_per_second for number in numbers)


def price_sentences(cluster, shadow_prices, whole_seconds):
    """Return what 10 % more of each link, site's rate and storage saves, the most worthwhile first.

    To first order: from the slopes, which hold while the same limits bind.
    """
    rate, storage = (np.bincount(cluster.site_of_rank, np.array(shadow_prices[name]) * weights)
                     for name, weights in (("rate", cluster.rates), ("storage", 1.0)))
    offers, names = [], link_names(cluster)
    tiers = {site.name: site.tier for site in cluster.sites}
    for name, price in shadow_prices["link"].items():
        links = [cluster.links[number] for number in names[name]]
        offers.append((price * min(link.bytes_per_second for link in links),
                       f"10 % more on {_called(tiers, links[0], name)}"))
    for index, site in enumerate(cluster.sites):
        offers.append((float(rate[index]), f"10 % more computing on every rank of {site.name}"))
        if np.isfinite(site.storage_nbytes):
            offers.append((float(storage[index] * site.storage_nbytes),
                           f"10 % more storage on every rank of {site.name}"))
    offers = [(0.1 * worth, what) for worth, what in offers
              if 0.1 * worth >= max(WORTH_SAYING * whole_seconds, 1e-12)]
    return tuple(f"{what} saves {saved:.3g} s an epoch"
                 for saved, what in sorted(offers, key=lambda offer: -offer[0]))


def _called(tiers, link, name):
    if ":" in link.pipe:
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
            told.setdefault(link_name(link), (
                f"link {link_name(link)}: bytes_per_second = {rate:g} is {why}; if it was meant in "
                f"bits per second, write {rate / 8:g}"))
    return tuple(told.values())
