"""A device that the host plays: kernels/*.cu compiled by g++, their threads run one after the other.

NumPy arrays are its arrays. What it cannot show is what only hardware has: speed, races between
threads, the compiler for the GPU and its arithmetic.
"""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np

from isthmus.kernels.device import SOURCES, source_text

FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-shared", "-fPIC")
FLAGS += ("-U_FORTIFY_SOURCE",)  # whose longjmp knows one stack alone
SHIM = Path(__file__).parent / "cuda_on_host.h"
FAULTS = {
    1: "a lane left its warp before a shuffle",
    2: "a thread left before a barrier",
    3: "threads wait for each other for ever",
}


def why_not():
    """Return why this machine cannot play a device; None if it can."""
    if shutil.which("g++") is None:
        return "there is no g++"
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return "words are passed to kernels as Linux on x86-64 and AArch64 does"
    return None


class HostDevice:
    """What isthmus.kernels.device.CupyDevice is, without a GPU; it keeps a list of its launches."""

    ndarray, empty, zeros = np.ndarray, staticmethod(np.empty), staticmethod(np.zeros)

    def __init__(self, folder):
        self.launches, self._libraries = [], {}
        for name in SOURCES:
            source, library = folder / f"{name}.cpp", folder / f"{name}.so"
            if not library.exists():
                source.write_text(source_text(name))
                subprocess.run(["g++", *FLAGS, "-include", SHIM, source, "-o", library], check=True)
            self._libraries[name] = ctypes.CDLL(str(library))

    def to_host(self, array):
        return array.copy()

    def address(self, array):
        return array.ctypes.data

    def run(self, source, name, blocks, threads, arguments):
        library = self._libraries[source]
        words = np.array([_word(each) for each in arguments], np.int64)
        self.launches.append((name, blocks, threads))
        fault = library.launch(
            getattr(library, name), blocks, threads, words.ctypes.data_as(ctypes.c_void_p), len(words)
        )
        assert not fault, f"{name}: {FAULTS[fault]}"


def _word(argument):
    if argument is None:
        return 0
    if isinstance(argument, np.ndarray):
        return argument.ctypes.data
    return int(argument) if argument.dtype != np.uint64 else int(argument.view(np.int64))
