"""A CUDA device through CuPy: its memory, and kernels compiled from the sources beside this file.

`gpu` asks a device for six things only; so a stand-in that plays the threads on the host can take its
place in tests, and everything but the hardware runs there.
"""

import functools
import re
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SOURCES = ("dense", "int8", "int4", "one_bit", "top_k", "random_k")
FLAGS = ("-std=c++17", "-fmad=false")
"""No fused multiply-add: NumPy rounds the product first. And no fast-math: denormals, NaN count."""
OLDEST = 75  # compute capability


def source_text(name):
    """Return the CUDA source `name` with its headers inside: CuPy's cache sees no change in a header."""
    seen = set()

    def text_of(file):
        if file in seen:
            return ""
        seen.add(file)
        text = (FOLDER / file).read_text().replace("#pragma once\n", "")
        return re.sub(r'^#include "(.*)"$', lambda found: text_of(found[1]), text, flags=re.MULTILINE)

    return text_of(f"{name}.cu")


class CupyDevice:
    """The GPUs that CuPy sees; kernels run on the one of their arrays, in its current stream."""

    def __init__(self, cupy):
        self.cupy, self.ndarray = cupy, cupy.ndarray
        self.empty, self.zeros, self.to_host = cupy.empty, cupy.zeros, cupy.asnumpy
        self._module = functools.cache(self._load)

    def address(self, array):
        """Return the address of the first entry."""
        return array.data.ptr

    def run(self, source, name, blocks, threads, arguments):
        """Launch `blocks` thread blocks of a kernel; None is a null pointer."""
        arguments = tuple(np.intp(0) if each is None else each for each in arguments)
        with next(each for each in arguments if isinstance(each, self.ndarray)).device:
            self._module(source).get_function(name)((blocks,), (threads,), arguments)

    def _load(self, source):
        return self.cupy.RawModule(code=source_text(source), options=FLAGS, backend="nvrtc")


@functools.cache
def the_device():
    """Return the CupyDevice of this process, or raise NoDeviceError with the reason."""
    from isthmus.devices import gpu_library
    return CupyDevice(gpu_library(OLDEST))
