"""A CUDA device through CuPy: its memory, and kernels compiled from the sources beside this file.

`gpu` asks a device for six things only, and collectives for five more; so a stand-in that plays the
threads on the host can take its place in tests, and everything but the hardware runs there.
"""

import functools
import re
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SOURCES = ("dense", "int8", "int4", "one_bit", "top_k", "top_k_codes", "random_k", "optimisers")
FLAGS = ("-std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true")
"""No fused multiply-add: NumPy rounds the product first. Denormals are kept, and quotients rounded."""
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
        self._folder = tempfile.TemporaryDirectory(prefix="isthmus-kernels-")

    def address(self, array):
        """Return the address of the first entry."""
        return array.data.ptr

    def run(self, source, name, blocks, threads, arguments):
        """Launch `blocks` thread blocks of a kernel; None is a null pointer."""
        arguments = tuple(np.intp(0) if each is None else each for each in arguments)
        gpu = next(each for each in arguments if isinstance(each, self.ndarray)).device
        with gpu:
            module = self._module(source, gpu.compute_capability)
            module.get_function(name)((blocks,), (threads,), arguments)

    def where(self):
        """Return the GPU on which this process makes arrays."""
        return self.cupy.cuda.Device()

    def page_locked(self, nbytes):
        """Return uint8[nbytes] on the host, which the GPU can copy to and from by itself."""
        return np.frombuffer(self.cupy.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)

    def moment(self):
        """Return an event: all that the current stream has been given is done."""
        event = self.cupy.cuda.Event(disable_timing=True)
        event.record()
        return event

    def copy_out(self, array, buffer):
        """Start to copy a contiguous array to page-locked memory, beside what the stream does next.

        Returns two events: that the stream has made the array, and that the copy is there.
        """
        made, runtime = self.moment(), self.cupy.cuda.runtime
        self._leaving.wait_event(made)
        runtime.memcpyAsync(
            buffer.ctypes.data,
            self.address(array),
            array.nbytes,
            runtime.memcpyDeviceToHost,
            self._leaving.ptr,
        )
        copied = self.cupy.cuda.Event(disable_timing=True)
        copied.record(self._leaving)
        return made, copied

    def copy_in(self, buffer, array):
        """Copy page-locked memory to a contiguous array, in the current stream; return the event."""
        runtime = self.cupy.cuda.runtime
        runtime.memcpyAsync(
            self.address(array),
            buffer.ctypes.data,
            array.nbytes,
            runtime.memcpyHostToDevice,
            self.cupy.cuda.get_current_stream().ptr,
        )
        return self.moment()

    @functools.cached_property
    def _leaving(self):
        """The second stream: it does not wait for the first, nor hold it up."""
        return self.cupy.cuda.Stream(non_blocking=True)

    def compiled(self, source, capability):
        """Return the machine code of a source for a compute capability such as "90"."""
        nvrtc = self.cupy.cuda.nvrtc
        program = nvrtc.createProgram(source_text(source), f"{source}.cu", (), ())
        try:
            nvrtc.compileProgram(program, (*FLAGS, f"-arch=sm_{capability}"))
            return nvrtc.getCUBIN(program)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"{source}.cu: {nvrtc.getProgramLog(program)}") from error
        finally:
            nvrtc.destroyProgram(program)

    def _load(self, source, capability):
        """Load machine code: from a source RawModule makes its own, always with -ftz=true."""
        path = Path(self._folder.name) / f"{source}_{capability}.cubin"
        path.write_bytes(self.compiled(source, capability))
        return self.cupy.RawModule(path=str(path))


@functools.cache
def the_device():
    """Return the CupyDevice of this process, or raise NoDeviceError with the reason."""
    from isthmus.devices import gpu_library

    return CupyDevice(gpu_library(OLDEST))
