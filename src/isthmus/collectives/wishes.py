"""What a rank asks of an allreduce, checked alone and then together: all must ask for the same."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Self

from isthmus.collectives.masked import SecureSum
from isthmus.compression.compressor import Compressor
from isthmus.errors import ranks_in_words
from isthmus.links.agreement import gather_json
from isthmus.links.world import World, maximum
from isthmus.quantities import real, slices, whole
from isthmus.registry import algorithm_named
from isthmus.robust import RobustMean

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers


@dataclass(frozen=True)
class Wish:
    """All that ranks must agree on; `compressor` as Python writes it, of all buckets or of each, and
    `buckets` as (first, last)."""

    size: int
    algorithm: str
    compressor: str | tuple[str, ...]
    error_feedback: bool
    buckets: tuple[tuple[int, int], ...]
    chunk_nbytes: int
    secure: str | None = None
    combine: str | None = None

    @classmethod
    def of(
        cls,
        size: int,
        algorithm: str,
        compressor: Compressor | Sequence[Compressor | None] | None,
        error_feedback: bool,
        buckets: Iterable[slice] | None,
        chunk_nbytes: int,
        secure: SecureSum | None = None,
        combine: RobustMean | None = None,
    ) -> Self:
        """Return the Wish; ValueError where it makes no sense."""
        size, chunk_nbytes = whole("size", size, 0), whole("chunk_nbytes", chunk_nbytes, 1)
        buckets = slices("buckets", [slice(0, size)] if buckets is None else buckets, size)
        buckets = tuple((part.start, part.stop) for part in buckets)
        if not isinstance(algorithm, str):
            raise ValueError(f"algorithm must be a name, not {algorithm!r:.80}")
        several = isinstance(compressor, list | tuple)
        algorithm_named(algorithm).check_size(size)
        each = compressors_of(compressor, len(buckets))
        for one in each:
            if one is not None and (isinstance(one, type) or not hasattr(one, "wire_nbytes")):
                raise ValueError(
                    "compressor must be one of isthmus' compressors, as in isthmus.Int8(), not "
                    f"{one!r:.80}"
                )
            algorithm_named(algorithm).check_compressor(one)
            if secure is not None and one is not None:
                raise ValueError(
                    f"a secure sum has wires of its own: leave out the compressor {one!r:.80}"
                )
        if secure is not None and algorithm != "hierarchical":
            raise ValueError(f'a secure sum is made with "hierarchical", not with "{algorithm}"')
        if combine is not None:
            _check_robust(algorithm, each, secure)
        end = 0
        for first, last in sorted(buckets):
            if not first == end <= last:
                break
            end = last
        else:
            if end == size:
                return cls(
                    size,
                    str(algorithm),
                    tuple(map(repr, each)) if several else repr(compressor),
                    bool(error_feedback),
                    buckets,
                    chunk_nbytes,
                    secure and repr(secure),
                    combine and repr(combine),
                )
        raise ValueError(
            f"buckets must cover the {size} entries once, in any order, not "
            f"{[list(ends) for ends in buckets]}"
        )


def check_tiers(
    tiers: "Tiers", algorithm: str, secure: SecureSum | None, combine: RobustMean | None
) -> None:
    """Raise ValueError where the sites of `tiers`, or their links, are not fit for such sums."""
    algorithm_named(algorithm).check_between(tiers.cluster.sites, tiers.sealed)
    if secure is not None:
        secure.check(tiers)
    if combine is not None:
        combine.check_sites(len(tiers.cluster.sites))


def _check_robust(algorithm, compressors, secure):
    """Raise ValueError where no robust mean can be made of what is sent."""
    algorithm_named(algorithm).check_apart()
    if secure is not None:
        raise ValueError("a robust mean is made of each site's own sum, which a secure sum hides")
    for one in compressors:
        if one is not None and one.sparse:
            raise ValueError(
                f"a robust mean takes all entries of each site, and {one!r} leaves most of them out: "
                "take another compressor, or none"
            )


def compressors_of(
    compressor: Compressor | Sequence[Compressor | None] | None, buckets: int
) -> list[Compressor | None]:
    """Return the compressor of each of so many buckets; ValueError where a list has another length."""
    if not isinstance(compressor, list | tuple):
        return [compressor] * buckets
    if len(compressor) != buckets:
        raise ValueError(
            f"compressor must be one, or one for each of the {buckets} buckets, not {len(compressor)}"
        )
    return list(compressor)


TAGS = 64
"""Of the allreduces whose leaders' messages may be under way at once, each with one of its own."""


def agreed_tag(world: World, made: int) -> tuple[int, int]:
    """Return the tag of another allreduce, and how many there are with it, on every rank. Collective.

    made: how many this rank has made so far, over these leaders or others.
    """
    most = int(maximum(world, [made])[0])
    return most % TAGS, most + 1


def agreed_weights(
    world: World, weight: float, wish: Wish | None, problem: str | None = None
) -> list[float]:
    """Return the weight of each rank; their sum is positive. Collective.

    wish: this rank's Wish; or problem: why it has none. Raises ValueError on all ranks if any of them
    has a problem or a weight that is none, and if they wish for different things.
    """
    try:
        weight = real("weight", weight, least=0)
    except ValueError as wrong:
        problem = problem or str(wrong)
    told = [None, None, problem] if problem else [weight, astuple(wish), None]
    weights, wishes, problems = zip(*gather_json(world, told))
    if any(problems):
        first = next(filter(None, problems))
        ranks = [rank for rank, other in enumerate(problems) if other == first]
        raise ValueError(first if len(ranks) == world.size else f"{first} (on {ranks_in_words(ranks)})")
    if any(other != wishes[0] for other in wishes):
        raise ValueError(
            "ranks ask for different allreduces (size, algorithm, compressor, error "
            "feedback, buckets, chunk_nbytes, secure sum, robust mean): "
            + "; ".join(
                f"rank {rank}: {', '.join(map(str, other))}" for rank, other in enumerate(wishes)
            )
        )
    if math.isinf(sum(weights)):
        raise ValueError(
            f"the weights of all ranks add up to infinity, the largest is {max(weights):g}: give "
            "smaller ones, only how they compare counts"
        )
    if not sum(weights):
        raise ValueError("the weights of all ranks are 0: give at least one rank a positive weight")
    return list(weights)
