"""Kernels on one core as a share of a STREAM triad (a = b + s c, 12 bytes counted) of the same run.

Arrays of 384 MB, so that no cache holds them. A share counts the kernel's own bytes an element, and
may pass 1: in place, there is no line to fetch before it is written.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from isthmus.benchmarking.spread import spread_of
from isthmus.kernels import cpu
from isthmus.kernels.chunk_records import CHUNK, layout_of
from isthmus.kernels.reference import SQUARES
from isthmus.measuring.computing import triad

NBYTES = 384_000_000
GRAIN_NBYTES = 16384  # whole chunks of TopK's codes
BLOCK, BIT_BLOCK, SHARE_BLOCK = 256, 1024, 64
KEY = np.uint64(7)
KEPT, BITS = 82, 2  # 2 % of a chunk

NONE, ONE, RATE = np.float32(0), np.float32(1), np.float32(1e-3)

KERNELS = {  # name: (bytes an element, the call on `Arrays` a)
    "add": (12, lambda a: cpu.add(a.vector, a.other)),
    "encode_int8": (13, lambda a: cpu.encode_int8(a.vector, a.kept, BLOCK, None, 0, a.maxima, a.int8)),
    "decode_int8": (5, lambda a: cpu.decode_int8(a.maxima, a.int8, BLOCK, a.other)),
    "add_int8": (9, lambda a: cpu.add_int8(a.maxima, a.int8, BLOCK, a.other)),
    "encode_int8_stochastic": (
        13,
        lambda a: cpu.encode_int8(a.vector, a.kept, BLOCK, KEY, 0, a.maxima, a.int8),
    ),
    "encode_int4": (12.54, lambda a: cpu.encode_int4(a.vector, a.kept, SHARE_BLOCK, None, 0, *a.int4)),
    "decode_int4": (4.54, lambda a: cpu.decode_int4(*a.int4, SHARE_BLOCK, a.other)),
    "add_int4": (8.54, lambda a: cpu.add_int4(*a.int4, SHARE_BLOCK, a.other)),
    "encode_one_bit": (
        12.13,
        lambda a: cpu.encode_one_bit(a.vector, a.kept, BIT_BLOCK, a.scales, a.bits),
    ),
    "add_one_bit": (8.13, lambda a: cpu.add_one_bit(a.scales, a.bits, BIT_BLOCK, a.other)),
    "encode_float16": (14, lambda a: cpu.encode_float16(a.vector, a.kept, a.halves)),
    "add_float16": (10, lambda a: cpu.add_float16(a.halves, a.other)),
    "encode_bfloat16": (14, lambda a: cpu.encode_bfloat16(a.vector, a.kept, a.halves)),
    "add_bfloat16": (10, lambda a: cpu.add_bfloat16(a.halves, a.other)),
    "encode_above": (  # the top 1 % by threshold: 0.95 % are over it
        12.06,
        lambda a: cpu.encode_above(a.vector, a.kept, np.float32(2.594), *a.chosen),
    ),
    "encode_top_k_codes": (
        12.03,
        lambda a: cpu.encode_top_k_codes(a.vector, a.kept, KEPT, BITS, *a.coded),
    ),
    "add_top_k_codes": (  # 82 entries lie in 70 of the 256 lines of memory of a chunk
        2.2,
        lambda a: cpu.add_top_k_codes(KEPT, BITS, *a.coded, a.other),
    ),
    "step_sgd": (20, lambda a: cpu.step_sgd(a.vector, ONE, NONE, 0.9, False, RATE, a.other, a.kept)),
    "step_adam": (
        28,
        lambda a: cpu.step_adam(
            a.vector, ONE, NONE, ONE, 0.9, 0.999, RATE, ONE, RATE, a.other, a.square, a.kept
        ),
    ),
    "square_sums": (4, lambda a: cpu.square_sums(a.vector, a.sums)),
}


class Arrays:
    """What the kernels of the table read and write: float32 arrays of `nbytes` bytes, and wires.

    Every page is written before anything is timed: pages of untouched zeros are one page in a cache.
    """

    def __init__(self, nbytes=NBYTES):
        self.elements = size = max(1, nbytes // GRAIN_NBYTES) * GRAIN_NBYTES // 4
        self.vector = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
        self.other, self.kept = np.ones(size, "f4"), np.full(size, 0.25, "f4")
        self.square = np.full(size, 0.25, "f4")
        self.sums = np.ones(-(-size // SQUARES))
        self.maxima = np.ones(size // BLOCK, "f4")
        self.scales = np.ones(size // BIT_BLOCK, "f4")
        self.halves = np.full(size, 0x3B3B, "u2")  # a number of ordinary size as either 16-bit float
        self.int8 = self.halves.view("i1")[:size]
        self.int4 = (
            np.ones(size // 1024, "f4"),
            np.ones(size // SHARE_BLOCK, "u2"),
            self.halves.view("u1")[: size // 2],
        )
        self.bits = self.halves.view("u1")[: size // 8]
        self.chosen = (
            np.ones(-(-size // 65536), "u4"),
            np.ones(size // 100, "f4"),
            np.ones(size // 100, "u2"),
        )
        self.coded = (
            np.ones(size // CHUNK, "f4"),
            np.empty(size // CHUNK * layout_of(CHUNK, KEPT, BITS).nbytes, "u1"),
        )
        cpu.encode_top_k_codes(self.vector, None, KEPT, BITS, *self.coded)


@dataclass(frozen=True)
class KernelOptions:
    """Which kernels of the table (none named: all), bytes of each array, and how many times."""

    names: tuple[str, ...] = ()
    nbytes: int = NBYTES
    repetitions: int = 5

    def __post_init__(self):
        unknown = [name for name in self.names if name not in KERNELS]
        if unknown:
            raise ValueError(f"no kernel is called {unknown[0]!r}; known kernels: {', '.join(KERNELS)}")


def share_of_triad(name, arrays, repetitions=5):
    """Return the shares of the triad's bytes per second of each repetition, and both their seconds.

    Kernel and triad take turns, so that a slow moment of the machine hits both.
    """
    nbytes, call = KERNELS[name]
    shares, seconds = [], []
    for repetition in range(repetitions + 1):
        of_triad = _seconds(lambda: triad(arrays.other, arrays.vector, np.float32(0.5), arrays.kept))
        arrays.kept.fill(0)  # a residual that grows from call to call would be none
        of_kernel = _seconds(lambda: call(arrays))
        if repetition:  # the first compiles
            shares.append(nbytes / of_kernel / (12 / of_triad))
            seconds.append((of_kernel, of_triad))
    return shares, seconds


def bench_kernels(options, tell, keep):
    """Measure kernels; return a result each. `keep(results)` is called after each, `tell(line)` too."""
    arrays, results = Arrays(options.nbytes), []
    tell(f"# kernels on one core, arrays of {4 * arrays.elements / 1e6:.6g} MB")
    tell(f"# {'kernel':24} {'share of triad':>14} {'from':>6} {'to':>6} {'GB/s':>8} {'triad GB/s':>10}")
    for name in options.names or KERNELS:
        shares, seconds = share_of_triad(name, arrays, options.repetitions)
        nbytes = KERNELS[name][0]
        rates = [
            count * arrays.elements / statistics.median(each)
            for count, each in zip((nbytes, 12), zip(*seconds))
        ]
        results.append(
            {
                "benchmark": "kernels",
                "kernel": name,
                "share_of_triad": statistics.median(shares),
                "share_spread": spread_of(shares),
                "bytes_an_element": nbytes,
                "elements": arrays.elements,
                "bytes_per_second": rates[0],
                "triad_bytes_per_second": rates[1],
                "repetitions": options.repetitions,
            }
        )
        keep(results)
        tell(
            f"  {name:24} {statistics.median(shares):14.2f} {min(shares):6.2f} {max(shares):6.2f} "
            f"{rates[0] / 1e9:8.2f} {rates[1] / 1e9:10.2f}"
        )
    return results


def _seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
