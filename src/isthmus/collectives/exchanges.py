"""What an allreduce does its sums with: the algorithm, planned for vectors of one size."""

import functools
import math

from mpi4py import MPI

from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.collectives.masked import Masked
from isthmus.collectives.recursive import Recursive
from isthmus.collectives.ring import Ring
from isthmus.collectives.robust_sum import RobustSum
from isthmus.collectives.trading import Flow
from isthmus.collectives.tree import DoubleTree
from isthmus.compression.dense import Dense
from isthmus.links.counted import CountedComm
from isthmus.timing.window import window_nbytes


def _doubling(*plan):
    from isthmus.collectives.native_doubling import planned  # with Numba, which takes its time

    return planned(*plan)


EXACT = {"ring": Ring, "tree": DoubleTree, "doubling": _doubling, "recursive": Recursive}


def exchange_for(tiers, wish, compressors, residence, sent_to_sites, clock, secret, combine, tag):
    """Return the exchange of a `Wish`, for vectors that live in `residence`.

    compressors: of each bucket. sent_to_sites: where it counts its bytes. secret: a `Secret` where the
    sum is one. combine: a `RobustMean`, where sites' sums are not added up. tag: of what leaders send
    each other.
    """
    index, sites = tiers.site_index, len(tiers.cluster.sites)

    def counted(comm, site_of_peer):
        return residence.comm(CountedComm(comm, sent_to_sites, site_of_peer))

    if wish.algorithm == "mpi":
        from isthmus.collectives import of_mpi  # with Numba, which takes its time

        return of_mpi.planned(residence.comm(tiers.world), wish.size, sent_to_sites, clock)
    site_of_rank = tiers.cluster.site_of_rank
    if wish.algorithm in EXACT:
        flow = functools.cache(functools.partial(Flow.between, tiers.cluster))
        more = {"ring": {"ranks": tiers.ranks_in_ring, "flow": flow}, "recursive": {"flow": flow}}
        return EXACT[wish.algorithm](
            counted(tiers.world, site_of_rank),
            site_of_rank,
            wish.size,
            clock,
            residence.empty,
            **more.get(wish.algorithm, {}),
        )
    leaders = None
    if tiers.leaders != MPI.COMM_NULL:
        leaders = counted(tiers.leaders, range(sites))
    site = counted(tiers.site, [index] * tiers.cluster.sites[index].ranks)
    if secret is not None:
        return Masked(secret, site, leaders, index, tiers, wish, clock, residence, tag)
    from isthmus.collectives.native import planned  # with Numba, which takes its time

    tree, kind = tiers.cluster.tree, planned
    window = window_nbytes(tiers.cluster, index, wish.chunk_nbytes)
    if combine is not None:
        tree, kind = AggregationTree.star(tree.hub, sites), functools.partial(RobustSum, combine)
        window = math.inf  # nothing comes back before all is there
    return kind(
        site=site,
        leaders=leaders,
        index=index,
        tree=tree,
        size=wish.size,
        buckets=[slice(*ends) for ends in wish.buckets],
        compressors=[compressor or Dense() for compressor in compressors],
        feedback=[compressor is not None and wish.error_feedback for compressor in compressors],
        chunk_nbytes=wish.chunk_nbytes,
        clock=clock,
        residence=residence,
        window_nbytes=window,
        tag=tag,
    )
