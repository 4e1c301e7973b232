"""The weighted mean of every rank's vector, on every rank, bit for bit the same.

The one front of all algorithms: `mpi` is MPI's, all others are isthmus' own.
"""

import numpy as np
from mpi4py import MPI

from isthmus import kernels
from isthmus.collectives.counting import CountedComm, StageClock
from isthmus.collectives.hierarchical import Hierarchical
from isthmus.collectives.recursive import Recursive
from isthmus.collectives.ring import Ring
from isthmus.collectives.tree import DoubleTree
from isthmus.compression.dense import Dense
from isthmus.topology.agreement import gather_json

EXACT = {"ring": Ring, "tree": DoubleTree, "recursive": Recursive}
ALGORITHMS = ("mpi", *EXACT, "hierarchical")


class Allreduce:
    """Planned once for vectors of one size, called often.

    tiers: the communicators that `split_tiers` gives. size: entries of the float32 vector.
    compressor: used on the links between sites, by `hierarchical` alone; None is dense float32.
    error_feedback: keep what a wire does not say and add it to the next vector (Seide et al. 2014,
    Karimireddy et al. 2019, arXiv:1901.09847). weight: this rank's share, not yet normalised.

    Making one is collective: ValueError on every rank if any rank disagrees or is wrong. Afterwards

    sent_nbytes         {"site": bytes, "link": bytes} that this rank has handed to MPI so far
    sent_to_sites       the same by site, int64[sites + 1]; the last counts what MPI's own
                        algorithm sends to peers that it does not tell
    residual            float32[size], what this rank has not yet sent over a link (zeros off the
                        leaders); mean = given - sum over ranks of the change of residual
    finite              whether the last mean was free of NaN and infinity; if not, on all ranks
                        alike, and the residuals are as they were before
    stage_seconds       seconds of the last call by stage
    """

    def __init__(self, tiers, size, algorithm="hierarchical", compressor=None,
                 error_feedback=True, weight=1.0):
        world = tiers.world
        share = _share(world, weight, [size, algorithm, repr(compressor), bool(error_feedback)])
        self.size, self.algorithm, self.share = size, algorithm, np.float32(share)
        self.finite = True
        self.calls = 0
        self._site, self._site_of_rank = tiers.site_index, tiers.cluster.site_of_rank
        self.sent_to_sites = np.zeros(len(tiers.cluster.sites) + 1, np.int64)
        self._clock = StageClock()
        if algorithm == "mpi":
            self._exchange = _OfMPI(world, size, self.sent_to_sites, self._clock)
        elif algorithm in EXACT:
            counted = CountedComm(world, self.sent_to_sites, self._site_of_rank)
            self._exchange = EXACT[algorithm](counted, self._site_of_rank, size, self._clock)
        else:
            self._exchange = self._hierarchical(tiers, size, compressor, error_feedback)
        self._residual_before = None if self._residual is None else np.empty(size, "f4")
        self._compile(compressor)

    def __call__(self, vector):
        """Return the weighted mean of all ranks' float32[size] `vector` as a new array."""
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise ValueError(f"vector must be float32 of shape ({self.size},), not "
                             f"{vector.dtype} of shape {vector.shape}")
        if self._residual is not None:
            np.copyto(self._residual_before, self._residual)
        mean = np.empty(self.size, np.float32)
        kernel = kernels.for_array(mean)
        self._clock.start()
        kernel.scale(vector, self.share, mean)
        if self.algorithm == "hierarchical":
            self._exchange(mean, key=self.calls)
        else:
            self._exchange(mean)
        self.calls += 1
        self.finite = kernel.all_finite(mean)
        if not self.finite and self._residual is not None:
            np.copyto(self._residual, self._residual_before)
        return mean

    @property
    def sent_nbytes(self):
        return self._site_and_link(self.sent_to_sites)

    def predicted_nbytes(self):
        """Return the bytes that one call makes this rank send, from the formula alone."""
        return self._site_and_link(self.predicted_to_sites())

    def predicted_to_sites(self):
        """Return `sent_to_sites` after one call, from the formula alone."""
        predicted = np.zeros_like(self.sent_to_sites)
        for site, nbytes in self._exchange.predicted():
            predicted[site] += nbytes
        return predicted

    @property
    def residual(self):
        return np.zeros(self.size, np.float32) if self._residual is None else self._residual

    @residual.setter
    def residual(self, values):
        if self._residual is not None:
            np.copyto(self._residual, values)

    @property
    def has_residual(self):
        """Whether this rank keeps a residual: a leader with error feedback."""
        return self._residual is not None

    @property
    def stage_seconds(self):
        return self._clock.seconds

    @property
    def _residual(self):
        return getattr(self._exchange, "residual", None)

    def _site_and_link(self, nbytes_to_site):
        within = int(nbytes_to_site[self._site])
        return {"site": within, "link": int(nbytes_to_site.sum()) - within}

    def _hierarchical(self, tiers, size, compressor, error_feedback):
        index, sites = tiers.site_index, len(tiers.cluster.sites)
        if compressor is None:
            compressor, error_feedback = Dense(), False
        leaders = None
        if tiers.leaders != MPI.COMM_NULL:
            leaders = CountedComm(tiers.leaders, self.sent_to_sites, range(sites))
        site = CountedComm(tiers.site, self.sent_to_sites, [index] * tiers.cluster.sites[index].ranks)
        return Hierarchical(site, leaders, index, tiers.cluster.hub, sites, size, compressor,
                            error_feedback, self._clock)

    def _compile(self, compressor):
        """Run each kernel once, so that numba's compiler is not part of the first call."""
        one = np.zeros(1, "f4")
        kernel = kernels.for_array(one)
        kernel.scale(one, self.share, one)
        kernel.add(one, one.copy())
        kernel.all_finite(one)
        if compressor is not None:
            wire = np.zeros(compressor.wire_nbytes(1), np.uint8)
            compressor.encode(one, wire, None if self._residual is None else one.copy())
            compressor.decode(wire, one)
            compressor.add_decoded(wire, one)


class _OfMPI:
    """MPI's own Allreduce, whatever algorithm the library picks, to whatever peers."""

    UNKNOWN = -1  # the last place of `sent`: no site's

    def __init__(self, comm, size, sent, clock):
        self.comm, self.sent, self.clock = comm, sent, clock
        self.site = 0 if sent.size == 2 else self.UNKNOWN
        self.nbytes = 4 * size if comm.size > 1 else 0

    def __call__(self, total):
        self.sent[self.site] += self.nbytes
        self.comm.Allreduce(MPI.IN_PLACE, total)
        self.clock.lap("links")

    def predicted(self):
        yield self.site, self.nbytes


def _share(world, weight, plan):
    """Return this rank's normalised weight; raise ValueError on all ranks if any of them is wrong.

    plan: size, algorithm, compressor and error feedback, on which all ranks must agree.
    """
    everyone = gather_json(world, [weight, plan])
    weights, plans = zip(*everyone)
    problem = _problem_with(*plan[:3])
    if problem is None and any(other != plans[0] for other in plans):
        problem = ("ranks ask for different allreduces (size, algorithm, compressor, error feedback): "
                   + "; ".join(f"rank {rank}: {', '.join(map(str, other))}"
                               for rank, other in enumerate(plans)))
    elif problem is None and not all(0 <= other < float("inf") for other in weights):
        problem = f"weights must be finite and not negative, not {list(weights)}"
    elif problem is None and sum(weights) == 0:
        problem = "the weights of all ranks are 0: give at least one rank a positive weight"
    told = next((text for text in gather_json(world, problem) if text), None)
    if told:
        raise ValueError(told)
    return weight / sum(weights)


def _problem_with(size, algorithm, compressor):
    """Return what is wrong with one rank's wishes alone, or None."""
    if size < 0:
        return f"size must not be negative, not {size}"
    if algorithm not in ALGORITHMS:
        return f"algorithm must be one of {', '.join(ALGORITHMS)}, not {algorithm!r}"
    if compressor != repr(None) and algorithm != "hierarchical":
        return (f"algorithm {algorithm!r} sends exact float32: a compressor needs "
                "algorithm='hierarchical'")
    return None
