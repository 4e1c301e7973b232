"""The inner loops: `reference` (NumPy) defines them, `cpu` (Numba) and `gpu` (CUDA) make them fast.

All offer the same names with the same arguments; tests hold them equal, byte for byte.
"""

import functools

import numpy as np

if __name__ != "isthmus.kernels":
    raise ImportError(
        "this folder is the package isthmus.kernels; install the project "
        "(`make test` does) and write `from isthmus import kernels`"
    )

NAMES = (
    "add",
    "scale",
    "all_finite",
    "encode_dense",
    "encode_float16",
    "decode_float16",
    "add_float16",
    "encode_bfloat16",
    "decode_bfloat16",
    "add_bfloat16",
    "encode_int8",
    "decode_int8",
    "add_int8",
    "encode_int4",
    "decode_int4",
    "add_int4",
    "encode_one_bit",
    "decode_one_bit",
    "add_one_bit",
    "encode_top_k",
    "encode_above",
    "add_top_k",
    "encode_top_k_codes",
    "add_top_k_codes",
    "encode_random_k",
    "add_random_k",
    "decode_low_rank",
    "add_low_rank",
    "square_sums",
    "step_sgd",
    "step_adam",
)


def for_array(array):
    """Return the kernel module that runs where `array` lives.

    Raises NoDeviceError, with the reason, for an array of a device that is not there or has no kernels.
    """
    if type(array) is np.ndarray:
        return _on_cpu()
    from isthmus.devices import library_name

    library = library_name(array)
    if library == "numpy":
        return _on_cpu()
    if library == "cupy":
        from isthmus.kernels import gpu

        gpu.the_device()
        return gpu
    from isthmus.errors import NoDeviceError

    raise NoDeviceError(f"no kernels for arrays of {library!r}: pass a NumPy or a CuPy array")


@functools.cache
def _on_cpu():
    from isthmus.kernels import cpu

    return cpu
