"""Where arrays live: the array library of a device, or the reason why there is none."""

from isthmus.errors import NoDeviceError


def array_library(device):
    """Return the module that makes arrays on `device`, "cpu" or "gpu".

    Never a silent fall-back: NoDeviceError where a GPU is asked for and cannot be used.
    """
    if device == "gpu":
        raise NoDeviceError('device = "gpu": this version computes on CPUs alone; '
                            'set device = "cpu" in the cluster file')
    import numpy
    return numpy
