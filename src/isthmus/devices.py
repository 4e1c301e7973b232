"""Where arrays live: the array library of a device, or the reason why there is none."""

import ctypes
import functools
import mmap
import re
import sys

from isthmus.errors import NoDeviceError
from isthmus.extras import how_to_install


def array_library(device):
    """Return the module that makes arrays on `device`, "cpu" or "gpu".

    Never a silent fall-back: NoDeviceError where a GPU is asked for and cannot be used.
    """
    if device == "gpu":
        try:
            return gpu_library()
        except NoDeviceError as problem:
            joint = ", or" if "; " in str(problem) else ";"
            raise NoDeviceError(
                f'device = "gpu": {problem}{joint} set device = "cpu" in the cluster file'
            ) from problem
    import numpy

    return numpy


def take_device(device, number):
    """Have this process compute on `device`, of a machine's ranks with such a one number `number`.

    Ranks take the GPUs in turn, so that several may share one. Raises what `array_library` does.
    """
    library = array_library(device)
    if device == "gpu":
        library.cuda.Device(number % library.cuda.runtime.getDeviceCount()).use()


def library_name(array):
    """Return the name of the library that `array` is of: "numpy", "cupy" or a stranger's."""
    return type(array).__module__.partition(".")[0]


def library_of(array):
    """Return the module that makes arrays where `array` lives."""
    return sys.modules[library_name(array)]


def to_host(array):
    """Return `array` as a NumPy array: itself, or a copy of what is on a device."""
    return array.get() if hasattr(array, "get") else array


def set_from_host(array, values):
    """Overwrite `array`, wherever it lives, with NumPy's `values` of its dtype and shape."""
    if hasattr(array, "set"):
        array.set(values)
    else:
        array[...] = values


def synchronise(array):
    """Return when all that was asked of the device of `array` is done; at once on the host."""
    if hasattr(array, "get"):
        library_of(array).cuda.get_current_stream().synchronize()


class MemoryFor:
    """Turn the MemoryError of `with` blocks, the host's or a GPU's, into a NoDeviceError for `what`."""

    def __init__(self, what):
        self.what = what

    def __enter__(self):
        pass

    def __exit__(self, _, problem, __):
        if isinstance(problem, MemoryError):
            raise out_of_memory(self.what, problem) from problem


def out_of_memory(what, problem):
    """Return the NoDeviceError of a MemoryError."""
    return NoDeviceError(
        f"out of memory for {what}: {problem}; put fewer ranks on this device or host, "
        "or take a smaller model or smaller batches"
    )


def room_kept(size):
    """Return float32[size] that takes no memory before it is written: for a mean that has no other room.

    MemoryError where there is none for it either.
    """
    try:
        room = mmap.mmap(-1, max(4 * size, 4), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as problem:
        raise MemoryError(str(problem)) from problem
    import numpy

    return numpy.frombuffer(room, "f4", size)


def mpi_library_path():
    """Return the file of the MPI library that this process has loaded, or None."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return next((line.split()[-1] for line in maps if re.search(r"/libmpi\.so", line)), None)


def mpi_takes_device_arrays(path):
    """Return what the MPI library in the file `path` itself says of arrays on a GPU; no word is no."""
    try:
        return bool(ctypes.CDLL(path).MPIX_Query_cuda_support()) if path else False
    except (OSError, AttributeError):
        return False


@functools.cache
def gpu_library(oldest=75):
    """Return CuPy, or raise NoDeviceError with the reason why no GPU can be used.

    oldest: the least compute capability, ten times its number.
    """
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        raise NoDeviceError(
            f"no GPU can be used: CuPy cannot be imported ({error}); {how_to_install('gpu')}"
        ) from error
    except Exception as error:  # CUDARuntimeError, which cannot be named before CuPy is there
        raise NoDeviceError(f"no GPU can be used: CUDA says {error}") from error
    if not count:
        raise NoDeviceError("no GPU can be used: CUDA sees no device")
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < oldest:
        raise NoDeviceError(
            f"no GPU can be used: this one has compute capability {capability / 10}, "
            f"the kernels need {oldest / 10}"
        )
    return cupy
