"""Instructions of the kernels, counted by valgrind's callgrind where it is there: no noise blurs them.

Compiled for x86-64-v3 and arrays of 1 MB, whatever the machine. Python's own way to the kernel counts
too; it is a few thousand instructions a call.
"""

import ctypes
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from isthmus.benchmarking.kernels import KERNELS, Arrays

COMPILED_FOR = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "", "PYTHONHASHSEED": "0"}
DUMP_STATISTICS_AT, START, STOP = 0x43540003, 0x43540004, 0x43540005
"""Callgrind's requests, as its header callgrind.h numbers them."""
REQUEST = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
"""valgrind.h's request as a function: argument in rax, rdi rolled by 3 + 13 + 61 + 51 = 128 bits, which
changes nothing and is what valgrind looks for, rbx exchanged with itself, the answer out of rdx."""


class Kernels:
    params = tuple(KERNELS)
    param_names = ("kernel",)
    unit = "instructions an entry"

    def setup_cache(self):
        if shutil.which("valgrind") is None or platform.machine() != "x86_64":
            return {}
        with tempfile.TemporaryDirectory() as folder:
            for before in (
                [],
                [
                    "valgrind",
                    "--quiet",
                    "--tool=callgrind",
                    "--instr-atstart=no",
                    "--combine-dumps=yes",
                    f"--callgrind-out-file={folder}/counts",
                ],
            ):
                # The first fills numba's cache: valgrind is not to watch a compiler.
                subprocess.run(
                    [*before, sys.executable, __file__], check=True, env={**os.environ, **COMPILED_FOR}
                )
            return counts(Path(folder, "counts").read_text())

    def track_instructions(self, measured, kernel):
        return measured.get(kernel, float("nan"))


def counts(told):
    """Return kernel -> instructions an entry from what callgrind wrote."""
    dumps = re.findall(r"Client Request: (\w+) (\d+)\n.*?^totals: (\d+)", told, re.S | re.M)
    return {kernel: int(total) / int(entries) for kernel, entries, total in dumps}


def main():
    """Call each kernel once, and have it counted if this runs under callgrind."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(REQUEST)
    call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64))(
        ctypes.addressof(ctypes.c_char.from_buffer(page))
    )

    def request(code, text=b""):
        call((ctypes.c_uint64 * 6)(code, ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p).value))

    arrays = Arrays(1_000_000)
    for kernel, (_, run) in KERNELS.items():
        run(arrays)
        arrays.kept.fill(0)
        request(START)
        run(arrays)
        request(STOP)
        request(DUMP_STATISTICS_AT, f"{kernel} {arrays.elements}".encode())


if __name__ == "__main__":
    main()
