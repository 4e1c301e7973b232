"""Kernels on one core as a share of a STREAM triad of the same run: isthmus/benchmarking/kernels.py."""

import statistics

from isthmus.benchmarking.kernels import KERNELS, Arrays, share_of_triad


class ShareOfTriad:
    """Interleaved, so that a slow moment of the machine hits both."""

    params = tuple(KERNELS)
    param_names = ("kernel",)
    unit = "share"
    timeout = 300

    def setup(self, kernel):
        self.arrays = Arrays()

    def track_share_of_triad(self, kernel):
        return statistics.median(share_of_triad(kernel, self.arrays)[0])
