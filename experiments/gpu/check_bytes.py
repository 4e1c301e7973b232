"""Compare every kernel's bytes on a GPU with the CPU's: 1,000 random and all special inputs.

`make gpu-test` runs it from the source tree; it needs a GPU, CuPy, NumPy and Numba. Ends with 0 if all
bytes are equal, 1 if not, 10 where there is no GPU. Some minutes.
"""

import sys
import time
from collections import Counter

import source_tree  # noqa: F401  (first: it makes isthmus importable)

RANDOM = 1000


def check_all(module, put, get, tell, random_count=RANDOM, seed=0):
    """Run all cases, every third on arrays that do not start at 16 bytes; return the differences."""
    import numpy as np
    from cases import cases, difference, misaligned, random_vectors, vectors

    from isthmus.kernels import NAMES

    random, counted, differences = np.random.default_rng(seed), Counter(), []
    for number, (what, vector, residual) in enumerate(
        (*vectors(random), *random_vectors(random, random_count))
    ):
        there = put if number % 3 else lambda array: misaligned(array, put)
        for case in cases(random, vector, residual):
            counted[case.name] += 1
            found = difference(case, module, there, get)
            if found:
                differences.append(f"{what}: {found}")
                tell(differences[-1])
    for name in sorted(set(NAMES) - set(counted)):
        differences.append(f"{name}: no case calls it")
    tell(f"{counted.total()} calls of {len(counted)} kernels, {len(differences)} differences")
    return differences


def check_large(module, put, get, tell):
    """Compare what only shows past one thread block's worth of tiles: many blocks of positions."""
    import numpy as np
    from cases import cases, difference

    random, differences = np.random.default_rng(1), []
    for size in (200_000, 1_100_003):
        vector = random.normal(size=size).astype("f4")
        for case in cases(random, vector, random.normal(size=size).astype("f4")):
            found = difference(case, module, put, get)
            if found:
                differences.append(f"normal[{size}]: {found}")
                tell(differences[-1])
    return differences


def main():
    """Check all kernels on the GPU of this machine."""
    from isthmus.devices import gpu_library
    from isthmus.errors import NoDeviceError

    try:
        cupy = gpu_library()
    except NoDeviceError as error:
        print(f"gpu-test: {error}", file=sys.stderr)
        return error.exit_code
    from isthmus.kernels import gpu

    start, tell = time.time(), lambda line: print(line, flush=True)
    device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    tell(f"gpu-test on {device}, CuPy {cupy.__version__}")
    differences = check_all(gpu, cupy.array, cupy.asnumpy, tell)
    differences += check_large(gpu, cupy.array, cupy.asnumpy, tell)
    verdict = "bytes differ" if differences else "all bytes are equal"
    tell(f"gpu-test: {verdict}, {time.time() - start:.0f} s")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
