"""Measure the kernels on a GPU as shares of a device-to-device copy of the same run.

`make gpu-bench` runs it from the source tree and appends a JSON line a result to
data/measurements/gpu_kernels.jsonl. It needs a GPU, CuPy and NumPy. Ends with 10 where there is no GPU.
Times are device events around one launch; kernel and copy take turns, and the median of the launches
counts. A share is the kernel's own bytes per second over the copy's, which reads and writes.
About two minutes.
"""

import json
import statistics
import subprocess
import sys
import time

import source_tree

SIZES = (25_600_000, 256_000_000, 1_024_000_000)
LAUNCHES, WARMING = 50, 5
RESULTS = source_tree.ROOT / "data/measurements/gpu_kernels.jsonl"


def kernel_calls(cupy, gpu, size):
    """Yield what to do before each call, then (name, bytes an element, call) of each kernel."""
    import numpy as np

    from isthmus.kernels.chunk_records import CHUNK, layout_of

    vector = cupy.random.default_rng(0).standard_normal(size, dtype=cupy.float32)
    kept, total = cupy.zeros(size, "f4"), cupy.ones(size, "f4")
    maxima, codes = cupy.ones(-(-size // 256), "f4"), cupy.zeros(size, "i1")
    halves = cupy.full(size, 0x3B3B, "u2")
    four = (
        cupy.ones(-(-size // 1024), "f4"),
        cupy.ones(-(-size // 64), "u2"),
        cupy.zeros(-(-size // 2), "u1"),
    )
    bits = cupy.ones(-(-size // 1024), "f4"), cupy.zeros(-(-size // 8), "u1")
    chosen = (
        cupy.ones(-(-size // 65536), "u4"),
        cupy.ones(size // 100, "f4"),
        cupy.ones(size // 100, "u2"),
    )
    key = np.uint64(7)
    yield lambda: kept.fill(0)  # a residual that grows from call to call would be none
    yield "add", 12, lambda: gpu.add(vector, total)
    yield "encode_int8", 13 + 4 / 256, lambda: gpu.encode_int8(vector, kept, 256, None, 0, maxima, codes)
    yield (
        "encode_int8_stochastic",
        13 + 4 / 256,
        lambda: gpu.encode_int8(vector, kept, 256, key, 0, maxima, codes),
    )
    yield "add_int8", 9 + 4 / 256, lambda: gpu.add_int8(maxima, codes, 256, total)
    yield "decode_int8", 5 + 4 / 256, lambda: gpu.decode_int8(maxima, codes, 256, total)
    yield "encode_int4", 12.5 + 36 / 1024, lambda: gpu.encode_int4(vector, kept, 64, None, 0, *four)
    yield "add_int4", 8.5 + 36 / 1024, lambda: gpu.add_int4(*four, 64, total)
    yield "encode_one_bit", 12.125 + 4 / 1024, lambda: gpu.encode_one_bit(vector, kept, 1024, *bits)
    yield "add_one_bit", 8.125 + 4 / 1024, lambda: gpu.add_one_bit(*bits, 1024, total)
    for kind in ("float16", "bfloat16"):
        yield (
            f"encode_{kind}",
            14,
            lambda kind=kind: getattr(gpu, f"encode_{kind}")(vector, kept, halves),
        )
        yield f"add_{kind}", 10, lambda kind=kind: getattr(gpu, f"add_{kind}")(halves, total)
    yield (
        "encode_top_1%_by_threshold",
        12.06,
        lambda: gpu.encode_above(  # 0.95 % are over it
            vector, kept, np.float32(2.594), *chosen
        ),
    )
    nbytes = size // CHUNK * layout_of(CHUNK, 82, 2).nbytes
    nbytes += layout_of(size % CHUNK, 82, 2).nbytes if size % CHUNK else 0
    coded = cupy.ones(-(-size // CHUNK), "f4"), cupy.zeros(nbytes, "u1")
    yield ("encode_top_2%_in_2_bits", 12.03, lambda: gpu.encode_top_k_codes(vector, kept, 82, 2, *coded))
    yield "add_top_2%_in_2_bits", 2.2, lambda: gpu.add_top_k_codes(82, 2, *coded, total)
    yield "encode_top_1%", 12.06, lambda: gpu.encode_top_k(vector, kept, *chosen)
    yield (
        "encode_int8_as_a_chain_of_cupy",
        13 + 4 / 256,
        lambda: chain_of_cupy(cupy, vector, kept, maxima, codes),
    )


def chain_of_cupy(cupy, vector, kept, maxima, codes):
    """Do what encode_int8 does, in CuPy's own operations."""
    cupy.add(vector, kept, out=kept)
    rows = kept[: kept.size // 256 * 256].reshape(-1, 256)
    maxima[: rows.shape[0]] = cupy.abs(rows).max(axis=1)
    top = maxima[: rows.shape[0], None]
    whole = codes[: rows.size].reshape(-1, 256)
    whole[:] = cupy.clip(cupy.rint(rows * (cupy.float32(127) / top)), -127, 127)
    rows -= whole * cupy.float32(1 / 127) * top


def milliseconds(cupy, call):
    """Return the time of `call` on the device by its own events."""
    before, after = cupy.cuda.Event(), cupy.cuda.Event()
    before.record()
    call()
    after.record()
    after.synchronize()
    return cupy.cuda.get_elapsed_time(before, after)


def provenance(cupy):
    """Return what made the results."""
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    try:
        commit = (
            subprocess.run(
                ["git", "describe", "--always", "--dirty"],
                cwd=source_tree.ROOT,
                text=True,
                capture_output=True,
                timeout=5,
            ).stdout.strip()
            or None
        )
    except OSError:
        commit = None
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": device,
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "cuda": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "commit": commit,
        "command": "make gpu-bench",
    }


def measure(cupy, gpu, size, tell):
    """Yield a result for each kernel: medians over launches that take turns with a copy."""
    source, target = cupy.ones(size, "f4"), cupy.empty(size, "f4")
    prepare, *calls = kernel_calls(cupy, gpu, size)
    for name, nbytes, call in calls:
        times, copies = [], []
        for launch in range(WARMING + LAUNCHES):
            prepare()
            copy = milliseconds(cupy, lambda: cupy.copyto(target, source))
            kernel = milliseconds(cupy, call)
            if launch >= WARMING:
                times.append(kernel)
                copies.append(copy)
        kernel, copy = statistics.median(times), statistics.median(copies)
        share = (nbytes / kernel) / (8 / copy)
        tell(
            f"{name:32} {size:>13,} {1000 * kernel:10.1f} us {nbytes * size / kernel / 1e6:8.0f} GB/s "
            f"{share:6.2f} of a copy"
        )
        yield {
            "kernel": name,
            "elements": size,
            "bytes_an_element": nbytes,
            "milliseconds": kernel,
            "copy_milliseconds": copy,
            "share_of_copy": share,
            "launches": LAUNCHES,
        }


def main():
    """Measure all kernels on the GPU of this machine."""
    from isthmus.devices import gpu_library
    from isthmus.errors import NoDeviceError

    try:
        cupy = gpu_library()
    except NoDeviceError as error:
        print(f"gpu-bench: {error}", file=sys.stderr)
        return error.exit_code
    from isthmus.kernels import gpu

    made_by = provenance(cupy)
    for size in SIZES:
        if 48 * size > cupy.cuda.runtime.memGetInfo()[0]:
            print(f"{size:,} entries do not fit into the device's memory", flush=True)
            continue
        with RESULTS.open("a") as file:
            for result in measure(cupy, gpu, size, lambda line: print(line, flush=True)):
                file.write(json.dumps(result | made_by) + "\n")
        cupy.get_default_memory_pool().free_all_blocks()
    return 0


if __name__ == "__main__":
    sys.exit(main())
