"""GPUs: the driver, CuPy, and whether MPI takes arrays that are on one."""

import importlib.util
from pathlib import Path

from isthmus.checks.findings import passed, warned
from isthmus.devices import gpu_library, mpi_library_path, mpi_takes_device_arrays
from isthmus.errors import NoDeviceError
from isthmus.extras import how_to_install

DRIVER = Path("/proc/driver/nvidia/version")


def gpu(driver=DRIVER):
    """Yield findings on what ranks with device = "gpu" would need; never more than a warning."""
    here, found = driver.exists(), importlib.util.find_spec("cupy") is not None
    if not here:
        if found:
            yield warned(
                "GPU",
                "CuPy is installed, but there is no NVIDIA driver",
                "install the driver; in a container, start it with --gpus all",
            )
        else:
            yield passed("GPU", "no NVIDIA driver: ranks compute on CPUs")
        return
    text = next((word for word in driver.read_text().split() if word[0].isdigit() and "." in word), "?")
    if not found:
        yield warned("GPU", f"driver {text}, but no CuPy", how_to_install("gpu"))
        return
    yield devices(text)
    yield cuda_aware(mpi_library_path())


def devices(driver):
    """Return whether the kernels can use a device; `driver` is the version of the one that is here."""
    try:
        cupy = gpu_library()
        count = cupy.cuda.runtime.getDeviceCount()
        names = {cupy.cuda.runtime.getDeviceProperties(each)["name"].decode() for each in range(count)}
    except NoDeviceError as problem:
        return warned(
            "GPU",
            f"driver {driver}, but {str(problem).splitlines()[0]}",
            f"install the CuPy that fits the driver: {how_to_install('gpu')}",
        )
    return passed(
        "GPU", f"{count} x {', '.join(sorted(names))}, driver {driver}, CuPy {cupy.__version__}"
    )


def cuda_aware(path):
    """Return whether the MPI library in the file `path` takes arrays on a GPU."""
    if mpi_takes_device_arrays(path):
        return passed("CUDA-aware MPI", "yes")
    return warned(
        "CUDA-aware MPI",
        "no: arrays on a GPU travel through the host's memory",
        "load an MPI that was built with CUDA",
    )
