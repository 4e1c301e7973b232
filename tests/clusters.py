"""Cluster tables that tests start from."""


def cluster_of(*sites, **link):
    """Return the table of a cluster with `sites` (ranks each); the first is cloud, all others edge,
    each linked to the first."""
    network = {"latency_seconds": 1e-5, "bytes_per_second": 1e9}
    table = {
        "site": [
            {
                "name": f"site{number}",
                "tier": "edge" if number else "cloud",
                "ranks": ranks,
                "samples_per_second": 1000.0 / (number + 1),
                "network": network,
            }
            for number, ranks in enumerate(sites)
        ]
    }
    if len(sites) > 1:
        table["link"] = [
            {
                "between": ["site0", f"site{number}"],
                "latency_seconds": 0.001,
                "bytes_per_second": 1e8,
                **link,
            }
            for number in range(1, len(sites))
        ]
    return table
