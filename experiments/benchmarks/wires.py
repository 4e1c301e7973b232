"""What compressors send and what that loses: the same figures on every run."""

import numpy as np

from isthmus.benchmarking.options import named_compressor

ENTRIES = 1_000_000


class Wires:
    """A vector of a million normal numbers."""

    params = (
        "dense",
        "dense:dtype=float16",
        "dense:dtype=bfloat16",
        "int8",
        "int8:rounding=stochastic",
        "int4",
        "int4:rounding=stochastic",
        "one_bit",
        "top_k",
        "low_rank",
    )
    param_names = ("compressor",)

    def setup(self, name):
        self.compressor = named_compressor(name)

    def track_bits_an_entry(self, name):
        return 8 * self.compressor.wire_nbytes(ENTRIES) / ENTRIES

    track_bits_an_entry.unit = "bits"

    def track_nmse(self, name):
        given = np.random.default_rng(0).standard_normal(ENTRIES, dtype=np.float32)
        wire, said = np.empty(self.compressor.wire_nbytes(ENTRIES), np.uint8), np.empty_like(given)
        self.compressor.encode(given, wire)
        self.compressor.decode(wire, said)
        return float(((given - said).astype(float) ** 2).sum() / (given.astype(float) ** 2).sum())

    track_nmse.unit = "|given - said|^2 / |given|^2"
