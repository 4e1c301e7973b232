"""The weighted mean of every rank's vector, on every rank, bit for bit the same.

The one front of all algorithms: `mpi` is MPI's, all others are isthmus' own.
"""

import numpy as np
from mpi4py import MPI

from isthmus import kernels
from isthmus.collectives.counting import CountedComm, StageClock
from isthmus.collectives.exact import Exact
from isthmus.collectives.hierarchical import Hierarchical
from isthmus.collectives.recursive import Recursive
from isthmus.collectives.ring import Ring
from isthmus.collectives.tree import DoubleTree
from isthmus.compression.chunks import WIRE_NBYTES, chunk_entries
from isthmus.compression.dense import Dense
from isthmus.topology.agreement import gather_json

EXACT = {"ring": Ring, "tree": DoubleTree, "recursive": Recursive}
ALGORITHMS = ("mpi", *EXACT, "hierarchical")


class Allreduce:
    """Planned once for vectors of one size, called often.

    tiers: the communicators that `split_tiers` gives. size: entries of the float32 vector.
    compressor: used on the links between sites, by `hierarchical` alone; None is dense float32.
    buckets: slices of the vector, in the order in which they are given to `start`; None is one, the
    whole. chunk_nbytes: most bytes of a wire (see `isthmus.compression.chunks`).
    error_feedback: keep what a wire does not say and add it to the next vector (Seide et al. 2014,
    Karimireddy et al. 2019, arXiv:1901.09847). weight: this rank's share, not yet normalised.

    Making one is collective: ValueError on every rank if any rank disagrees or is wrong. Afterwards

    sent_nbytes         {"site": bytes, "link": bytes} that this rank has handed to MPI so far
    sent_to_sites       the same by site, int64[sites + 1]; the last counts what MPI's own
                        algorithm sends to peers that it does not tell
    residual            float32[size], what this rank has not yet sent over a link (zeros off the
                        leaders); mean = given - sum over ranks of the change of residual
    memory              all that this rank carries from call to call, as one float32 vector: the
                        residual, then the compressor's state; empty off the leaders
    finite              whether the last mean was free of NaN and infinity; if not, on all ranks
                        alike, and the memories are as they were before
    stage_seconds       seconds of the last call by stage
    """

    def __init__(self, tiers, size, algorithm="hierarchical", compressor=None,
                 error_feedback=True, weight=1.0, buckets=None, chunk_nbytes=WIRE_NBYTES):
        world = tiers.world
        self.buckets = [slice(0, size)] if buckets is None else list(buckets)
        self._agreed = world, [size, algorithm, repr(compressor), bool(error_feedback),
                               [[part.start, part.stop] for part in self.buckets], chunk_nbytes]
        self.size, self.algorithm, self.chunk_nbytes = size, algorithm, chunk_nbytes
        self.reweigh(weight)
        self.finite = True
        self.calls = 0
        self._mean, self._started = None, 0
        self._site, self._site_of_rank = tiers.site_index, tiers.cluster.site_of_rank
        self.sent_to_sites = np.zeros(len(tiers.cluster.sites) + 1, np.int64)
        self._clock = StageClock(tiers.recorder)
        if algorithm == "mpi":
            self._exchange = _OfMPI(world, size, self.sent_to_sites, self._clock)
        elif algorithm in EXACT:
            counted = CountedComm(world, self.sent_to_sites, self._site_of_rank)
            self._exchange = EXACT[algorithm](counted, self._site_of_rank, size, self._clock)
        else:
            self._exchange = self._hierarchical(tiers, size, compressor, error_feedback)
        self.memory = getattr(self._exchange, "memory", np.empty(0, "f4"))
        self._memory_before = self.memory.copy()
        self._compile(compressor)

    def __call__(self, vector):
        """Return the weighted mean of all ranks' float32[size] `vector` as a new array."""
        _check_vector(vector, self.size)
        for bucket in self.buckets:
            self.start(vector[bucket])
        return self.finish()

    def reweigh(self, weight):
        """Give this rank another share, not yet normalised, between two calls. Collective, and refused
        like the share that it was made with."""
        world, agreed = self._agreed
        self.share = np.float32(_share(world, weight, agreed))

    def start(self, bucket):
        """Send the next of the `buckets` on its way: a float32 array, which may be changed afterwards.

        With `hierarchical` it travels between sites while the caller computes; the other algorithms
        begin with `finish`. Every rank starts all buckets in the same order. ValueError for an array
        of another shape, or one bucket too many.
        """
        if self._started == len(self.buckets):
            raise ValueError(f"all {self._started} buckets are started; call finish")
        part = self.buckets[self._started]
        _check_vector(bucket, part.stop - part.start)
        if self._started == 0:
            np.copyto(self._memory_before, self.memory)
            self._mean = np.empty(self.size, np.float32)
            self._clock.start()
        self._clock.resume()
        kernels.for_array(self._mean).scale(bucket, self.share, self._mean[part])
        self._exchange.start(self._mean, self._started, self.calls)
        self._started += 1

    def finish(self):
        """Return the weighted mean of all ranks' vectors, of which every bucket was started."""
        if self._started < len(self.buckets):
            raise ValueError(f"{self._started} of {len(self.buckets)} buckets are started; start all of "
                             "them before finish")
        mean = self._mean
        self._clock.resume()
        self._exchange.finish(mean, self.calls)
        self.calls += 1
        self._mean, self._started = None, 0
        self.finite = kernels.for_array(mean).all_finite(mean)
        if not self.finite:
            np.copyto(self.memory, self._memory_before)
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
        return Hierarchical(site, leaders, index, tiers.cluster.hub, sites, size, self.buckets,
                            compressor, error_feedback, self.chunk_nbytes, self._clock)

    def _compile(self, compressor):
        """Run each kernel once, so that numba's compiler is not part of the first call."""
        one = np.zeros(1, "f4")
        kernel = kernels.for_array(one)
        kernel.scale(one, self.share, one)
        kernel.add(one, one.copy())
        kernel.all_finite(one)
        if compressor is not None:
            size = min(self.size, chunk_entries(compressor, self.size, self.chunk_nbytes))
            chunk, wire = np.zeros(size, "f4"), np.zeros(compressor.wire_nbytes(size), np.uint8)
            compressor.encode(chunk, wire, None if self._residual is None else chunk.copy(),
                              state=np.zeros(compressor.state_entries(size), "f4"))
            compressor.decode(wire, chunk)
            compressor.add_decoded(wire, chunk)


class _OfMPI(Exact):
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

    plan: size, algorithm, compressor, error feedback, buckets and chunk_nbytes, on which all ranks must
    agree.
    """
    everyone = gather_json(world, [weight, plan])
    weights, plans = zip(*everyone)
    problem = _problem_with(*plan)
    if problem is None and any(other != plans[0] for other in plans):
        problem = ("ranks ask for different allreduces (size, algorithm, compressor, error feedback, "
                   "buckets, chunk_nbytes): "
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


def _check_vector(vector, size):
    if vector.dtype != np.float32 or vector.shape != (size,):
        raise ValueError(f"vector must be float32 of shape ({size},), not {vector.dtype} of shape "
                         f"{vector.shape}")


def _problem_with(size, algorithm, compressor, _, buckets, chunk_nbytes):
    """Return what is wrong with one rank's wishes alone, or None."""
    if size < 0:
        return f"size must not be negative, not {size}"
    if algorithm not in ALGORITHMS:
        return f"algorithm must be one of {', '.join(ALGORITHMS)}, not {algorithm!r}"
    if compressor != repr(None) and algorithm != "hierarchical":
        return (f"algorithm {algorithm!r} sends exact float32: a compressor needs "
                "algorithm='hierarchical'")
    if chunk_nbytes < 1:
        return f"chunk_nbytes must be at least 1, not {chunk_nbytes}"
    covered = 0
    for first, last in sorted(buckets):
        covered = last if first == covered <= last else None
        if covered is None:
            break
    if covered != size:
        return f"buckets must cover the {size} entries once, in any order, not {buckets}"
    return None
