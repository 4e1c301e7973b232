"""Where arrays live: the array library of a device, or the reason why there is none."""

import functools

from isthmus.errors import NoDeviceError


def array_library(device):
    """Return the module that makes arrays on `device`, "cpu" or "gpu".

    Never a silent fall-back: NoDeviceError where a GPU is asked for and cannot be used.
    """
    if device == "gpu":
        raise NoDeviceError('device = "gpu": this version trains on CPUs alone; '
                            'set device = "cpu" in the cluster file')
    import numpy
    return numpy


@functools.cache
def gpu_library(oldest=75):
    """Return CuPy, or raise NoDeviceError with the reason why no GPU can be used.

    oldest: the least compute capability, ten times its number.
    """
    try:
        import cupy
        count = cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        raise NoDeviceError(f"no GPU can be used: CuPy cannot be imported ({error}); "
                            "pip install 'isthmus[gpu]'") from error
    except Exception as error:  # CUDARuntimeError, which cannot be named before CuPy is there
        raise NoDeviceError(f"no GPU can be used: CUDA says {error}") from error
    if not count:
        raise NoDeviceError("no GPU can be used: CUDA sees no device")
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < oldest:
        raise NoDeviceError(f"no GPU can be used: this one has compute capability {capability / 10}, "
                            f"the kernels need {oldest / 10}")
    return cupy
