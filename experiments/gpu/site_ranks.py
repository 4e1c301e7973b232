"""Sites and their communicators without a cluster file, whose checks need more packages."""

from types import SimpleNamespace

from mpi4py import MPI

from isthmus.cluster.aggregation_tree import AggregationTree


def tiers_of(world, ranks_of_site):
    """Return what isthmus.Allreduce and Training ask of tiers: sites of so many ranks, in order."""
    site_of_rank = [site for site, ranks in enumerate(ranks_of_site) for _ in range(ranks)]
    index = site_of_rank[world.rank]
    site = world.Split(index)
    cluster = SimpleNamespace(
        sites=[SimpleNamespace(ranks=ranks, relay=True) for ranks in ranks_of_site],
        site_of_rank=site_of_rank,
        tree=AggregationTree.star(0, len(ranks_of_site)),
        links=(),
    )
    return SimpleNamespace(
        world=world,
        site=site,
        cluster=cluster,
        site_index=index,
        home=0,
        recorder=None,
        sealed=False,
        leaders=world.Split(0 if site.rank == 0 else MPI.UNDEFINED, index),
    )
