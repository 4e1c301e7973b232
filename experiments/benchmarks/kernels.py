"""Kernels on one core as a share of a STREAM triad (a = b + s c, 12 bytes counted) of the same run.

Arrays of 384 MB, so that no cache holds them. A share counts the kernel's own bytes an element, and
may pass 1: in place, there is no line to fetch before it is written.
"""

import statistics
import time

import numpy as np
from isthmus.kernels import cpu
from numba import njit

SIZE = 96_000_000
BLOCK = 256
BYTES = {
    "add": 12, "encode_int8": 13, "decode_int8": 5, "add_int8": 9, "encode_int8_stochastic": 13,
    "encode_int4": 12.54, "decode_int4": 8.54, "add_int4": 8.54,
    "encode_one_bit": 12.13, "add_one_bit": 8.13,
    "encode_float16": 14, "add_float16": 10, "encode_bfloat16": 14, "add_bfloat16": 10}


@njit
def triad(a, b, s, c):
    for i in range(a.size):
        a[i] = b[i] + s * c[i]


class ShareOfTriad:
    """Interleaved, so that a slow moment of the machine hits both."""

    params = tuple(BYTES)
    param_names = ("kernel",)
    unit = "share"
    timeout = 300

    def setup(self, kernel):
        draw = np.random.default_rng(0)
        self.vector = draw.standard_normal(SIZE, dtype=np.float32)
        self.other, self.residual = np.ones(SIZE, "f4"), np.zeros(SIZE, "f4")
        self.codes = np.zeros(SIZE, "u2" if "16" in kernel else "i1")
        self.maxima = np.zeros(-(-SIZE // BLOCK), "f4")
        self.int4 = (np.zeros(-(-SIZE // 1024), "f4"), np.zeros(-(-SIZE // 64), "u2"),
                     np.zeros(SIZE // 2, "u1"))
        self.call = {
            "add": lambda: cpu.add(self.vector, self.other),
            "encode_int8": lambda: cpu.encode_int8(
                self.vector, self.residual, BLOCK, None, 0, self.maxima, self.codes),
            "encode_int8_stochastic": lambda: cpu.encode_int8(
                self.vector, self.residual, BLOCK, np.uint64(7), 0, self.maxima, self.codes),
            "decode_int8": lambda: cpu.decode_int8(self.maxima, self.codes, BLOCK, self.other),
            "add_int8": lambda: cpu.add_int8(self.maxima, self.codes, BLOCK, self.other),
            "encode_int4": lambda: cpu.encode_int4(
                self.vector, self.residual, 64, None, 0, *self.int4),
            "decode_int4": lambda: cpu.decode_int4(*self.int4, 64, self.other),
            "add_int4": lambda: cpu.add_int4(*self.int4, 64, self.other),
            "encode_one_bit": lambda: cpu.encode_one_bit(
                self.vector, self.residual, 1024, self.maxima[:-(-SIZE // 1024)],
                self.codes[:SIZE // 8].view("u1")),
            "add_one_bit": lambda: cpu.add_one_bit(
                self.maxima[:-(-SIZE // 1024)], self.codes[:SIZE // 8].view("u1"), 1024, self.other),
            "encode_float16": lambda: cpu.encode_float16(self.vector, self.residual, self.codes),
            "add_float16": lambda: cpu.add_float16(self.codes, self.other),
            "encode_bfloat16": lambda: cpu.encode_bfloat16(self.vector, self.residual, self.codes),
            "add_bfloat16": lambda: cpu.add_bfloat16(self.codes, self.other),
        }[kernel]

    def track_share_of_triad(self, kernel):
        shares = []
        for repetition in range(6):
            of_triad = seconds(lambda: triad(self.other, self.vector, np.float32(0.5), self.residual))
            of_kernel = seconds(self.call)
            if repetition:  # the first compiles
                shares.append(BYTES[kernel] / of_kernel / (12 / of_triad))
        return statistics.median(shares)


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    import json
    import platform
    import subprocess
    from pathlib import Path

    here = Path(__file__).resolve().parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, text=True,
                            capture_output=True).stdout.strip()
    lines = []
    for name in BYTES:
        benchmark = ShareOfTriad()
        benchmark.setup(name)
        share = benchmark.track_share_of_triad(name)
        print(f"{name:24s} {share:5.2f} of the triad")
        lines.append({"kernel": name, "share_of_triad": round(share, 3), "bytes_an_element": BYTES[name],
                      "elements": SIZE, "date": time.strftime("%Y-%m-%d"), "commit": commit,
                      "processor": platform.machine(), "numpy": np.__version__,
                      "command": "python experiments/benchmarks/kernels.py"})
    (here.parent.parent / "data/measurements/kernels.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines))
