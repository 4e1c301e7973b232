"""How long things take, in seconds, term by term: the model that plans are made with.

The formulas are those of alpha-beta models (Thakur, Rabenseifner and Gropp 2005, "Optimization of
collective communication operations in MPICH"), widened by compression and by links that share. Where
the cluster file has what `isthmus calibrate` measured by size, latencies and rates are those of the
size in question; asking for other sizes warns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from isthmus.compression.chunks import link_chunk_nbytes
from isthmus.compression.compressor import Compressor
from isthmus.compression.dense import Dense
from isthmus.quantities import real, slices, whole
from isthmus.registry import ALLREDUCE_STAGES, algorithm_named
from isthmus.robust import RobustMean
from isthmus.timing.formulas import (
    chain_seconds,
    compute_seconds,
    local_steps_seconds,
    narrow_link_bound_seconds,
    overlapped_seconds,
    period_seconds,
    pipelined_seconds,
    recursive_seconds,
    ring_seconds,
    steps_per_epoch,
    waiting_seconds,
)
from isthmus.timing.pipes import doubling_seconds, halving_seconds, tree_seconds
from isthmus.timing.ring_times import RingTimes
from isthmus.timing.stages import (
    Stages,
    coding_seconds,
    copy_seconds_of_exact,
    hierarchical_stages,
    link_routes,
    overhead_seconds,
)

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.cluster.cluster import Cluster

__all__ = [
    "AllreduceTime",
    "Workload",
    "chain_seconds",
    "coding_seconds",
    "compute_seconds",
    "fair_staging_seconds",
    "hierarchical_stages",
    "link_routes",
    "local_steps_seconds",
    "narrow_link_bound_seconds",
    "overlapped_seconds",
    "period_seconds",
    "pipelined_seconds",
    "predict_allreduce",
    "recursive_seconds",
    "ring_seconds",
    "staging_seconds",
    "steps_per_epoch",
    "waiting_seconds",
]


@dataclass(frozen=True)
class Workload:
    """What one epoch asks of a cluster."""

    size: int = 0  # entries of the gradient, float32
    batch_size: int = 256  # samples of a step, all ranks together
    algorithm: str = "hierarchical"
    compressor: Compressor | None = None
    sample_nbytes: float = 0.0  # bytes of a sample where shards are given as counts alone
    data_site: str | None = None  # where the shards lie; None where every rank sees them
    buckets: tuple[slice, ...] = ()  # of the gradient, in the order in which they start; () is the whole
    chunk_nbytes: int | None = None  # most bytes of a wire of "hierarchical"; None: as the links are
    exchanges_per_step: float = 1.0  # of the whole vector over links, on average
    exchanged_share: float = 1.0  # of the vector, in one of them
    late_steps: float = 0.0  # that are made while one is under way
    site_sums_per_step: float = 0.0  # of gradients inside sites alone
    optimiser: str | None = None  # as Python writes it, with all arguments; None: updates take no time
    update_nbytes: float = 0.0  # that an update reads and writes, for where none was measured
    combine: RobustMean | None = None  # of the sites; None: their sum
    sealed: bool = False  # what crosses between sites
    secure: str | None = None  # "repeat" or "reveal" of secure sums; `compressor` is their wires
    private: str | None = None  # "sample" or "site": of which little may be told

    def __post_init__(self):
        counts = {"size": 0, "batch_size": 1} | (
            {} if self.chunk_nbytes is None else {"chunk_nbytes": 1}
        )
        for name, least in counts.items():
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        for name in ("sample_nbytes", "update_nbytes"):
            object.__setattr__(self, name, real(name, getattr(self, name), 0))
        object.__setattr__(self, "buckets", tuple(slices("buckets", self.buckets, self.size)))


@dataclass(frozen=True)
class AllreduceTime:
    """Predicted seconds of one allreduce, from the arrival of the last rank.

    Each field is the time for which its stage is what the others wait for, so that they add up to
    `seconds`. The slowest stage counts with all its chunks, the others with one.
    """

    reduce_seconds: float = 0.0
    encode_seconds: float = 0.0
    copy_seconds: float = 0.0  # from a GPU's memory to the host's and back; 0 where no site has GPUs
    links_seconds: float = 0.0
    decode_seconds: float = 0.0
    broadcast_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.terms.values())

    @property
    def terms(self) -> dict[str, float]:
        """Stage -> seconds."""
        return {stage: getattr(self, f"{stage}_seconds") for stage in ALLREDUCE_STAGES}


def predict_allreduce(
    cluster: "Cluster",
    size: int,
    *,
    algorithm: str,
    compressor: Compressor | None = None,
    chunk_nbytes: int | None = None,
) -> AllreduceTime:
    """Return the AllreduceTime of a float32 vector of `size` entries.

    chunk_nbytes: most bytes of a wire of "hierarchical"; None: as the links are.

    Raises ValueError for an algorithm that does not exist, or that cannot use the compressor.
    """
    algorithm_named(algorithm).check_compressor(compressor)
    if chunk_nbytes is None:
        chunk_nbytes = link_chunk_nbytes(cluster.links)
    size, chunk_nbytes = whole("size", size, 0), whole("chunk_nbytes", chunk_nbytes, 1)
    if size == 0 or cluster.size == 1:
        return AllreduceTime()
    if algorithm == "hierarchical":
        return _hierarchical(cluster, size, compressor or Dense(), compressor is not None, chunk_nbytes)
    adds = min(site.add_bytes_per_second for site in cluster.sites)
    copies = copy_seconds_of_exact(cluster, algorithm, 4 * size)
    if algorithm == "mpi":
        return AllreduceTime(copy_seconds=copies, links_seconds=_mpi(cluster, 4 * size, adds))
    two = {
        "ring": _ring,
        "tree": tree_seconds,
        "doubling": doubling_seconds,
        "recursive": halving_seconds,
    }
    summed, passed_on = two[algorithm](cluster, size, adds)
    return AllreduceTime(
        reduce_seconds=overhead_seconds(cluster, algorithm) + summed,
        broadcast_seconds=passed_on,
        copy_seconds=copies,
    )


def mpi_seconds(cluster: "Cluster", nbytes: float, add_bytes_per_second: float = math.inf) -> float:
    """Return the shorter of a ring and of halving over the worst hop: MPI picks for itself."""
    times = RingTimes(cluster, nbytes, add_bytes_per_second)
    in_file = np.arange(len(cluster.sites))
    latency, rate, _ = times.hops(in_file)
    return min(
        float(sum(times.halves(in_file))),
        float(recursive_seconds(cluster.size, nbytes, latency.max(), rate.min())),
    )


def staging_seconds(cluster: "Cluster", nbytes_of_rank: Sequence[float], data_site: str | None) -> float:
    """Return max over shared pipes of bytes / B: the fluid bound for bringing shards to ranks.

    data_site: name of the site where the shards lie. With None every rank sees them, nothing moves.
    """
    if data_site is None:
        return 0.0
    load: dict[str, float] = {}
    rate: dict[str, float] = {}
    nbytes_of_site = np.bincount(cluster.site_of_rank, nbytes_of_rank, minlength=len(cluster.sites))
    for name, nbytes in zip(cluster.names, nbytes_of_site.tolist()):
        for link in cluster.route(data_site, name):
            load[link.pipe] = load.get(link.pipe, 0.0) + nbytes
            rate[link.pipe] = link.bytes_per_second
    return max((load[pipe] / rate[pipe] for pipe in load), default=0.0)


def fair_staging_seconds(
    cluster: "Cluster", nbytes_of_rank: Sequence[float], data_site: str | None
) -> float:
    """Return when the last site has its shards where flows share links max-min fairly, as TCP does.

    Never less than `staging_seconds`, the fluid bound (Bertsekas and Gallager 1992, "Data networks").
    """
    from isthmus.timing.flows import FlowNetwork

    nbytes = np.bincount(cluster.site_of_rank, nbytes_of_rank, minlength=len(cluster.sites))
    targets = [name for name, count in zip(cluster.names, nbytes) if count and name != data_site]
    if data_site is None or not targets:
        return 0.0
    routes = [cluster.route(data_site, name) for name in targets]
    rate = {link.pipe: link.bytes_per_second for route in routes for link in route}
    number = {pipe: place for place, pipe in enumerate(rate)}
    network = FlowNetwork(
        [[number[link.pipe] for link in route] for route in routes], list(rate.values())
    )
    sent = nbytes[[cluster.names.index(name) for name in targets]]
    return float(max(network.finish_seconds(np.zeros(len(targets)), sent, math.inf)))


def _ring(cluster, size, add_bytes_per_second):
    halves = RingTimes(cluster, 4 * size, add_bytes_per_second).halves(np.array(cluster.ring))
    return map(float, halves)


def _mpi(cluster, nbytes, add_bytes_per_second):
    """Return `mpi_seconds`, corrected by what calibration found of MPI's own on as many ranks."""
    found = cluster.calibration
    if found is None or found.allreduce is None or found.ranks != cluster.size:
        return mpi_seconds(cluster, nbytes, add_bytes_per_second)
    return found.allreduce.seconds(
        nbytes,
        lambda sizes: np.vectorize(lambda size: mpi_seconds(cluster, size, add_bytes_per_second))(sizes),
    )


def _hierarchical(cluster, size, compressor, encodes, chunk_nbytes):
    return time_of(hierarchical_stages(cluster, size, compressor, encodes, chunk_nbytes))


def time_of(stages: Stages) -> AllreduceTime:
    """Return the time of a pipeline of chunks: each stage once, the slowest for all other chunks."""
    terms, slowest = dict(stages.first), stages.each
    links = 0.0
    if stages.ways:
        terms["links"], links = stages.links
    if links >= stages.interval:
        slowest = {"links": links}
    for name, seconds in slowest.items():
        terms[name] += stages.rest * seconds
    return AllreduceTime(**{f"{name}_seconds": seconds for name, seconds in terms.items()})
