"""Which algorithm, compressor and chunk: the least predicted time within a bound on the error."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isthmus.compression.chunks import WIRE_NBYTES, link_chunk_nbytes
from isthmus.compression.dense import Dense
from isthmus.compression.one_bit import OneBit
from isthmus.compression.quantized import Int4, Int8
from isthmus.quantities import real, whole
from isthmus.registry import ALGORITHMS
from isthmus.timing.time_model import predict_allreduce

TRIED = (None, Dense("bfloat16"), Dense("float16"), Int8(), Int4(), OneBit())
"""What is tried: those whose error on a Gaussian vector does not depend on the vector's structure."""

CHUNK_NBYTES = (WIRE_NBYTES, WIRE_NBYTES // 2, WIRE_NBYTES // 4, WIRE_NBYTES // 8)
"""Longest first: a shorter one is taken where it saves 5 %, which is more than the model is wrong by."""

EXACT = tuple(name for name, row in ALGORITHMS.items() if not row.compresses)
"""Algorithms that are tried beside `hierarchical`; MPI's own where calibration has measured it, because
it picks for itself what it does."""

SAMPLE = 65536


@dataclass(frozen=True)
class Candidate:
    """One way to sum, its predicted seconds, and the error of its sum on Gaussian vectors."""

    algorithm: str
    compressor: Any
    chunk_nbytes: int
    seconds: float
    error: float  # ||sum - true||^2 / ||true||^2, of the crossings between sites

    @property
    def name(self):
        return self.algorithm if self.compressor is None else f"{self.algorithm} with {self.compressor}"


@dataclass(frozen=True)
class Choice:
    """The chosen Candidate, all that were looked at, fastest first, and why it is this one."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    reason: str


def choose_allreduce(
    cluster, size, *, largest_error=0.0, compressors=TRIED, algorithms=EXACT, arrange=None
):
    """Return the Choice for float32 vectors of `size` entries on `cluster`.

    largest_error: what the sum may be wrong by, as `Candidate.error`; 0 allows exact float32 alone.
    compressors: those to try with "hierarchical"; None is dense float32. algorithms: exact ones to try.
    arrange: Candidate -> the cluster with the tree or the ring of sites that is planned for it; None:
    they stay as they are. Of equals the first that is listed is taken, `hierarchical` before the others.
    Raises ValueError for an error that is not a number from 0 to 1.
    """
    size, largest_error = whole("size", size, 0), real("largest_error", largest_error)
    if not 0 <= largest_error <= 1:
        raise ValueError(f"largest_error must be from 0 to 1, not {largest_error}")
    candidates = candidates_on(cluster, size, compressors, algorithms)
    if arrange is not None:
        candidates = [
            _timed(arrange(each), size, each) if each.error <= largest_error else each
            for each in candidates
        ]
    candidates.sort(key=lambda candidate: candidate.seconds)
    best = next((each for each in candidates if each.error <= largest_error), None)
    if best is None:
        raise ValueError(
            f"no candidate keeps an error of {largest_error:g}; allow a larger one, or try "
            "dense float32 too"
        )
    return Choice(best, tuple(candidates), _reason(best, candidates, largest_error))


def candidates_on(cluster, size, compressors=TRIED, algorithms=EXACT):
    """Return a Candidate for each compressor with "hierarchical", and each exact algorithm that may be
    used between the sites, on `cluster` as it is; arguments as `choose_allreduce` has them."""
    if len(cluster.sites) == 1 and None in compressors:  # nothing is compressed there
        compressors = (None,)
    candidates = [_hierarchical(cluster, size, compressor) for compressor in compressors]
    for name in algorithms:
        if _is_known(cluster, ALGORITHMS[name], size):
            candidates.append(_timed(cluster, size, Candidate(name, None, WIRE_NBYTES, 0.0, 0.0)))
    return candidates


def _is_known(cluster, algorithm, size):
    """Return whether an algorithm may be used between the sites for vectors of `size` entries, and what
    it does there is known."""
    try:
        algorithm.check_relays(cluster.sites)
        algorithm.check_size(size)
    except ValueError:
        return False
    found = cluster.calibration
    return algorithm.own or bool(found and found.allreduce and found.ranks == cluster.size)


def _timed(cluster, size, candidate):
    """Return the Candidate with its seconds and error on `cluster`.

    Where calibration has measured it on as many ranks, the time model's are corrected by that.
    """

    def predicted(nbytes):
        return predict_allreduce(
            cluster,
            nbytes // 4,
            algorithm=candidate.algorithm,
            compressor=candidate.compressor,
            chunk_nbytes=candidate.chunk_nbytes,
        ).seconds

    found = cluster.calibration
    measured = found.contenders if found and found.ranks == cluster.size else ()
    table = next((each for each in measured if each.name == candidate.name), None)
    seconds = table.seconds(4 * size, predicted) if table and size else predicted(4 * size)
    return replace(candidate, seconds=seconds, error=error_of(cluster, size, candidate.compressor))


def error_of(cluster, size, compressor):
    """Return the error of a sum of Gaussian vectors over the sites of `cluster`, without feedback.

    One quantisation a level of the tree on the way up, and one for the way down; one between two sites.
    """
    if compressor is None or len(cluster.sites) == 1 or size == 0:
        return 0.0
    entries = size if compressor.grain is None else SAMPLE
    return gaussian_error(compressor, entries) * cluster.tree.quantisations


@functools.lru_cache(maxsize=64)
def gaussian_error(compressor, size=SAMPLE):
    """Return ||x - C(x)||^2 / ||x||^2 of a Gaussian x of `size` entries, always the same."""
    x = np.random.Generator(np.random.PCG64(0)).standard_normal(size, dtype=np.float32)
    wire, decoded = np.empty(compressor.wire_nbytes(size), np.uint8), np.empty_like(x)
    compressor.encode(x, wire)
    compressor.decode(wire, decoded)
    return float(((x - decoded) ** 2).sum(dtype=np.float64) / (x**2).sum(dtype=np.float64))


def _hierarchical(cluster, size, compressor):
    longest = link_chunk_nbytes(cluster.links)
    tried = CHUNK_NBYTES if longest == WIRE_NBYTES else (longest, *CHUNK_NBYTES)
    seconds = {
        nbytes: predict_allreduce(
            cluster, size, algorithm="hierarchical", compressor=compressor, chunk_nbytes=nbytes
        ).seconds
        for nbytes in tried
    }
    chunk = next(nbytes for nbytes in tried if seconds[nbytes] <= 1.05 * min(seconds.values()))
    return _timed(cluster, size, Candidate("hierarchical", compressor, chunk, seconds[chunk], 0.0))


def _reason(best, candidates, largest_error):
    """Return the sentence that a report prints."""
    text = (
        f"{best.name}, chunks of {best.chunk_nbytes / 1024:.3g} KiB: {1e3 * best.seconds:.3g} ms "
        f"predicted, error {best.error:.2g} of at most {largest_error:.2g}"
    )
    others = [each for each in candidates if each is not best]
    within = next((each for each in others if each.error <= largest_error), None)
    if within:
        text += f"; next: {within.name}, {1e3 * within.seconds:.3g} ms"
    faster = next((each for each in others if each.seconds < best.seconds), None)
    if faster:
        text += (
            f"; faster, but with an error of {faster.error:.2g}: {faster.name}, "
            f"{1e3 * faster.seconds:.3g} ms"
        )
    return text
