"""Kernels on one core beside a STREAM triad of the same run: isthmus/benchmarking/kernels.py.

A figure is 1 / (share of triad): triads of as many bytes that would fit into the kernel's time. Both
take turns, so that a slow moment of the machine hits both.
"""

from isthmus.benchmarking.kernels import KERNELS, Arrays, share_of_triad


def triads(kernel, arrays, repetitions):
    """Return 1 / share of each repetition."""
    return [1 / share for share in share_of_triad(kernel, arrays, repetitions)[0]]


class InCache:
    """Arrays of 1 MB: what counts is instructions."""

    params = tuple(KERNELS)
    param_names = ("kernel",)
    unit = "triads"

    def track_triads(self, kernel):
        return {"samples": triads(kernel, Arrays(1_000_000), 101), "number": 1}


class InMemory:
    """Arrays of 384 MB, made once for all kernels: what counts is bytes."""

    params = tuple(KERNELS)
    param_names = ("kernel",)
    unit = "triads"

    def setup_cache(self):
        arrays = Arrays()
        return {kernel: triads(kernel, arrays, 7) for kernel in KERNELS}

    def track_triads(self, measured, kernel):
        return {"samples": measured[kernel], "number": 1}
