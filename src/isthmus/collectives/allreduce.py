"""The weighted mean of every rank's vector, on every rank, bit for bit the same.

The one front of all algorithms: `mpi` is MPI's, all others are isthmus' own.
"""

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.collectives.exchanges import exchange_for
from isthmus.collectives.given import MAIN_THREAD, GivenBucket, check_pieces, check_thread, room_at_once
from isthmus.collectives.masked import Secret, SecureSum
from isthmus.collectives.robust_sum import shared_weight
from isthmus.collectives.warm_up import compile_kernels
from isthmus.collectives.wishes import Wish, agreed_tag, agreed_weights, check_tiers, compressors_of
from isthmus.compression.chunks import link_chunk_nbytes
from isthmus.compression.compressor import Compressor, Vector
from isthmus.compression.dense import Dense
from isthmus.compression.overflow import overflow_in_words
from isthmus.devices import MemoryFor, room_kept, set_from_host, to_host
from isthmus.errors import IsthmusError
from isthmus.links.agreement import raise_first
from isthmus.links.on_device import Host, residence_of
from isthmus.links.stage_clock import StageClock
from isthmus.links.world import World
from isthmus.quantities import real
from isthmus.robust import RobustMean

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers

Given = npt.NDArray[np.floating]  # of float32; NumPy's stubs take float32 / int for float64
MEMORY = MemoryFor("an allreduce")


class Allreduce:
    """Planned once for vectors of one size, called often.

    tiers: the communicators that `split_tiers` gives. size: entries of the float32 vector.
    compressor: used on the links between sites, by `hierarchical` alone; None is dense float32. A list
    has one for each bucket, so that some entries may travel exactly beside others that do not.
    buckets: slices of the vector, in the order in which they are given to `start`; None is one, the
    whole. chunk_nbytes: most bytes of a wire; None: as the links are (`isthmus.compression.chunks`).
    error_feedback: keep what a wire does not say and add it to the next vector (Seide et al. 2014,
    Karimireddy et al. 2019, arXiv:1901.09847). weight: this rank's share, not yet normalised.
    like: an array where this rank's vectors will be, NumPy's or CuPy's; None: where the first one is.
    Ranks with a GPU and ranks without one have the same mean, of the same bits.
    secure: a SecureSum: what a site sends is masked, so that the hub learns the sum of the sites alone;
    with "hierarchical", sealed links, three sites at least and no compressor, on CPUs.
    combine: a RobustMean of sites' own means, which count alike; with "hierarchical" on CPUs, no
    compressor that leaves entries out, and sites of positive weight.

    Making one is collective: ValueError on every rank if any rank disagrees or is wrong, NoDeviceError
    if the vectors of any cannot be where they shall be. A rank whose vector is of another shape, dtype
    or place, or does not fit into its memory, takes part with NaN, and then every rank raises what is
    wrong with it from `finish`; the next call may be right. Afterwards

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
    total_weight        sum of all ranks' weights, when they were last agreed on
    """

    _made: ClassVar[int] = 0

    def __init__(
        self,
        tiers: "Tiers",
        size: int,
        algorithm: str = "hierarchical",
        compressor: Compressor | Sequence[Compressor | None] | None = None,
        error_feedback: bool = True,
        weight: float = 1.0,
        buckets: Iterable[slice] | None = None,
        chunk_nbytes: int | None = None,
        like: np.ndarray | None = None,
        secure: SecureSum | None = None,
        combine: RobustMean | None = None,
    ):
        world, wish, problem = tiers.world, None, None
        if chunk_nbytes is None:
            chunk_nbytes = link_chunk_nbytes(tiers.cluster.links)
        try:
            wish = Wish.of(
                size, algorithm, compressor, error_feedback, buckets, chunk_nbytes, secure, combine
            )
            check_tiers(tiers, wish.algorithm, secure, combine)
        except ValueError as wrong:  # on this rank alone, perhaps
            problem = str(wrong)
        self._tiers = tiers
        weights = agreed_weights(world, weight, wish, problem)
        self.total_weight: float = sum(weights)
        self._combine, self._whole = combine, shared_weight(combine, tiers, weights)
        self._tag, Allreduce._made = agreed_tag(world, Allreduce._made)
        self._secret = None if secure is None else Secret.of(secure, tiers, weights)
        assert wish is not None  # or this rank has a problem, and all have raised
        self.weigh(weight)
        self._wish, self.size, self.algorithm = wish, wish.size, wish.algorithm
        self.chunk_nbytes = wish.chunk_nbytes
        self.buckets: list[slice] = [slice(*ends) for ends in wish.buckets]
        self.finite, self.calls, self.counted_from, self._started = True, 0, 0, 0
        self._mean: Any = None
        self._problem: IsthmusError | ValueError | None = None
        self._left_out: list[tuple[int, list[int]]] = []
        self._compressors = compressors_of(compressor, len(self.buckets))
        self._thread = threading.get_ident()
        self._mute = not any(part.stop - part.start for part in self.buckets[-1:])  # NaN there is none
        self.sent_to_sites: npt.NDArray[np.int64] = np.zeros(len(tiers.cluster.sites) + 1, np.int64)
        self._clock = StageClock(tiers.recorder)
        self._exchange: Any = None
        self._attempt(lambda: self._settle(Host() if like is None else self._residence_of(like)))
        refused, self._problem = self._problem, None
        raise_first(world, refused)
        self._settled = like is not None

    def __call__(self, vector: Given) -> Vector:
        """Return the weighted mean of all ranks' float32[size] `vector` as a new array."""
        idle = self._settled and self._mean is None and self._problem is None
        if self._at_once and idle and (mean := room_at_once(vector, self.size)) is not None:
            self.finite = self._at_once(mean, vector, self._share_bits, self.calls)
            self._mean = mean
            return self._ended()
        check_thread(self._thread)
        self._begin(vector)
        self._attempt(self._residence.check, vector, self.size)
        for bucket in self.buckets:
            self.start(None if self._problem else vector[bucket])
        return self.finish()

    def reweigh(self, weight: float) -> None:
        """Give this rank another weight between two calls; it is refused as the first is. Collective."""
        weights = agreed_weights(self._tiers.world, weight, self._wish)
        self._whole = shared_weight(self._combine, self._tiers, weights)
        self.total_weight = sum(weights)
        self.weigh(weight)
        if self._secret is not None:
            self._secret.weigh(self._tiers, weights)

    def weigh(self, weight: float) -> None:
        """Give this rank's vectors another weight, of which the others know nothing: not collective.

        The sum of all shares is then no longer 1. Send a 1 beside the vector, in a bucket that nothing
        compresses, and divide by what comes back for it: the mean, whatever the weights are now. What
        a compressor has kept counts as it was weighted. ValueError for what is no weight.
        """
        self.share = np.float32(real("weight", weight, least=0) / self._whole)
        self._share_bits = int(self.share.view(np.int32))

    def decay(self, share: float) -> None:
        """Keep that share of the residual for the next vector, between two calls: forget the rest."""
        if self.algorithm == "hierarchical":
            self._exchange.decay(share)

    def start(self, bucket: Given | Sequence[Given] | None) -> None:
        """Send the next of the `buckets` on its way: a float32 array, or a list of those that it is made
        of, in order. They may be changed afterwards.

        With `hierarchical` it travels between sites while the caller computes; the other algorithms
        begin with `finish`. Every rank starts all buckets in the same order. ValueError for one bucket
        too many. On a GPU, the kernels that make the bucket may still be running. Any thread may call
        this, one at a time; MachineError where MPI was started for one alone.
        """
        pieces = bucket if isinstance(bucket, list | tuple) else [bucket]
        if self._started == len(self.buckets):
            raise ValueError(f"all {self._started} buckets are started; call finish")
        check_thread(self._thread)
        self._begin(pieces[0] if pieces else None)
        self._clock.resume()
        given = self._checked(pieces)
        with MEMORY:
            self._exchange.start(self._mean, self._started, self.calls, given)
            self._residence.post()
        self._started += 1

    def advance(self) -> None:
        """Take what has arrived of a vector whose buckets are all started, between other work; never
        wait. Only "hierarchical" has anything under way before `finish`."""
        if self._started == len(self.buckets) and self.algorithm == "hierarchical":
            self._clock.resume()
            with MEMORY:
                self._exchange.advance(self._mean, self.calls)

    def fail(self, problem: IsthmusError | ValueError) -> None:
        """Have `finish` raise `problem`, an IsthmusError or a ValueError, on every rank.

        For a rank that cannot make its vector: it goes on to start every bucket, of anything, and NaN
        is sent instead, without a message more; once all are started, with the next vector.
        """
        self._problem = self._problem or problem

    def finish(self) -> Vector:
        """Return the weighted mean of all ranks' vectors, of which every bucket was started.

        Raises on every rank what was wrong with the vector of any.
        """
        if self._started < len(self.buckets):
            raise ValueError(f"{self._started} of {len(self.buckets)} buckets are started; start all")
        self._clock.resume()
        with MEMORY:
            self.finite = self._exchange.finish(self._mean, self.calls)
        return self._ended()

    def _ended(self):
        """Return the mean that is made, or raise what was wrong, on every rank; the next may follow."""
        mean, self._mean, self._started = self._mean, None, 0
        self.calls += 1
        missing = getattr(self._exchange, "missing", None)
        if missing or self._mute or not self.finite:  # else no vector had NaN for a problem
            problem, self._problem = self._problem, None
            try:
                raise_first(self._tiers.world, problem)
            except (IsthmusError, ValueError):
                if self.finite:
                    self._exchange.undo()
                raise
        if missing and self.finite:
            self._left_out.append((self.calls, missing))
        return mean

    @property
    def sent_nbytes(self) -> dict[str, int]:
        return self._site_and_link(self.sent_to_sites)

    def predicted_nbytes(self) -> dict[str, int]:
        """Return the bytes that one call makes this rank send, from the formula alone."""
        return self._site_and_link(self.predicted_to_sites())

    def predicted_to_sites(self) -> npt.NDArray[np.int64]:
        """Return `sent_to_sites` after one call, from the formula alone."""
        predicted = np.zeros_like(self.sent_to_sites)
        for site, nbytes in self._exchange.predicted():
            predicted[site] += nbytes
        return predicted

    @property
    def memory(self) -> Vector:
        return getattr(self._exchange, "memory", np.empty(0, "f4"))

    @property
    def residual(self) -> Vector:
        kept = getattr(self._exchange, "residual", None)
        return self._residence.zeros(self.size, "f4") if kept is None else kept

    def tell_left_out(self) -> list[tuple[int, list[int]]]:
        """Return which secure sums went on without which sites, not finite, since the last call."""
        told, self._left_out = self._left_out, []
        return told

    @property
    def overflow(self) -> str:
        """What has overflowed where all vectors are finite and their mean is not, and the cure."""
        return overflow_in_words(each or Dense() for each in self._compressors)

    @property
    def stage_seconds(self) -> dict[str, float]:
        return self._clock.seconds

    @property
    def total_seconds(self) -> dict[str, float]:
        """Seconds by stage of all calls so far."""
        return self._clock.total

    @property
    def settings(self) -> str:
        """What all ranks have asked for, as text: size, algorithm, compressor, buckets and the like."""
        return repr(self._wish)

    @property
    def world(self) -> World:
        """The ranks whose vectors are summed."""
        return self._tiers.world

    def begin_anew(self) -> None:
        """Go on alike with other ranks, whatever each has begun with; count bytes anew. Collective."""
        if self.algorithm == "hierarchical":
            self._exchange.align()
        self.counted_from = self.calls
        self.sent_to_sites[:] = 0

    def state(self) -> dict[str, np.ndarray]:
        """Return name -> array: all that the next call depends on, beside the vectors."""
        return {
            "memory": self.memory,
            "calls": np.array([self.calls, self.counted_from]),
            "sent_to_sites": self.sent_to_sites,
        }

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave, in place."""
        set_from_host(self.memory, state["memory"])
        self.calls, self.counted_from = map(int, state["calls"])
        self.sent_to_sites[:] = state["sent_to_sites"]

    def _site_and_link(self, nbytes_to_site):
        within = int(nbytes_to_site[self._tiers.site_index])
        return {"site": within, "link": int(nbytes_to_site.sum()) - within}

    def _residence_of(self, vector):
        return residence_of(vector, self._clock, self._tiers.sealed)

    def _begin(self, vector):
        """Make room for a new mean where `vector` lives, unless that is done."""
        if self._mean is not None:
            return
        self._clock.start()
        self._attempt(self._make_room, vector)
        if self._mean is None:
            if type(self._residence) is not Host:
                with MEMORY:
                    self._settle(Host())
            self._settled, self._mean = False, self._kept_room  # for NaN

    def _make_room(self, vector):
        if not self._settled:
            residence = self._residence_of(vector)
            if type(residence) is not type(self._residence):
                self._settle(residence)
            self._settled = True
        self._mean = self._residence.empty(self.size, "f4")

    def _checked(self, pieces):
        """Return the next bucket, made of `pieces` if they are right."""
        part = self.buckets[self._started]
        self._attempt(check_pieces, self._residence, pieces, part.stop - part.start)
        return GivenBucket(part, [] if self._problem else pieces, self.share)

    def _attempt(self, act, *given):
        """Do what may be wrong on this rank alone: then `fail`, so that no rank waits for this one."""
        if self._problem is None:
            try:
                with MEMORY:
                    act(*given)
            except (IsthmusError, ValueError) as problem:
                self.fail(problem)

    def _settle(self, residence):
        """Plan for vectors that live in `residence`; what is carried from call to call comes along."""
        exchange = exchange_for(
            self._tiers,
            self._wish,
            self._compressors,
            residence,
            self.sent_to_sites,
            self._clock,
            self._secret,
            self._combine,
            self._tag,
        )
        compile_kernels(
            residence,
            self.share,
            list(zip(self.buckets, self._compressors)),
            keeps=getattr(exchange, "residual", None) is not None,
        )
        if self.memory.size:
            set_from_host(exchange.memory, to_host(self.memory))
        self._kept_room = room_kept(self.size)
        self._residence, self._exchange = residence, exchange
        able = len(self.buckets) == 1 and self._thread == MAIN_THREAD
        self._at_once = getattr(exchange, "at_once", None) if able else None
