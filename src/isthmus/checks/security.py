"""Whether what crosses links is kept from those between, and whether keys are as they must be."""

from isthmus.checks.findings import passed, refused, warned
from isthmus.errors import IsthmusError
from isthmus.links.sealed import trusted_keys
from isthmus.links.tiers import cluster_ranks
from isthmus.security.key_files import check_keys, read_private


def security(job, settings, cluster):
    """Return the finding on links and keys, or None where there is nothing between sites.

    A leader looks at its own site's keys; one process that checks for a job to come, at all of them.
    """
    if len(cluster.sites) == 1:
        return None
    leads = _sites_led(job, cluster)
    if settings.security.link == "clear":
        if not _apart(job, cluster):
            return None
        return warned(
            "security",
            "sites are on different hosts and links are clear: who is between can read and change them",
            'set link = "sealed" under [security] (docs/security.md)',
        )
    try:
        keys = settings.security.keys.expanduser()
        for site in leads:
            trusted_keys(cluster, site, read_private(keys, site), keys, cluster.names, pinned=True)
        if not job.started:
            check_keys(keys)
    except IsthmusError as problem:
        return refused("security", problem)
    return passed("security", "links are sealed")


def _sites_led(job, cluster):
    """Return the sites that this process leads."""
    if not job.started:
        return []
    here = cluster_ranks(cluster, job.hosts)[job.rank]
    return [name for name in cluster.names if cluster.ranks_of_site(name)[0] == here]


def _apart(job, cluster):
    """Whether two sites have no host in common, as far as is known."""
    hosts = [set(site.hosts) for site in cluster.sites]
    if job.started:
        hosts = [set() for _ in cluster.sites]
        for rank, here in enumerate(cluster_ranks(cluster, job.hosts)):
            hosts[cluster.site_of_rank[here]].add(job.hosts[rank])
    return any(
        first and second and not first & second
        for number, first in enumerate(hosts)
        for second in hosts[:number]
    )
