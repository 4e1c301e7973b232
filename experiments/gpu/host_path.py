"""Measure a gradient's way through the host, against its copies alone.

`make gpu-bench` runs it from the source tree and appends a JSON line a result to
data/measurements/gpu_host_path.jsonl. It needs a GPU, CuPy, NumPy, Numba and mpi4py. 100 MB of float32
are encoded as int8, copied out, copied in, decoded and added, in chunks and by the transport of an
allreduce, without MPI. The yardstick copies the wire out and in, one after the other, each in one piece,
to and from page-locked memory. Medians; the two take turns. Ends with 10 where there is no GPU. Seconds.
"""

import json
import statistics
import sys
import time
from collections import deque

import source_tree
from bandwidth import provenance

SIZE, CHUNKS = 25_000_000, (1, 2, 4, 8, 16, 32)
REPETITIONS, WARMING = 50, 5
RESULTS = source_tree.ROOT / "data/measurements/gpu_host_path.jsonl"


def path_through_host(device, size, chunks):
    """Return (a call that takes a vector there and back, a call that only copies its wire)."""
    import numpy as np

    from isthmus.compression.quantized import Int8
    from isthmus.links.on_device import PageLocked
    from isthmus.vectors import chunk_slices

    compressor, transport = Int8(), PageLocked(device)
    vector, residual, total = (device.zeros(size, "f4") for _ in range(3))
    vector[:] = 1.0
    parts = chunk_slices(0, size, -(-size // chunks // 1024) * 1024)
    wires = [
        [device.empty(compressor.wire_nbytes(part.stop - part.start), "u1") for part in parts]
        for _ in range(2)
    ]

    def arrive(part, wire, buffer, copied):
        copied.synchronize()
        transport.arrived(buffer, wire)
        compressor.add_decoded(wire, total[part])

    def there_and_back():
        leaving = deque()
        for part, ours, theirs in zip(parts, *wires):
            compressor.encode(vector[part], ours, residual[part])
            buffer, _, copied = transport.outgoing(ours)
            leaving.append((part, theirs, buffer, copied))
            if len(leaving) > 1:
                arrive(*leaving.popleft())
        arrive(*leaving.popleft())
        device.moment().synchronize()

    wire = device.empty(compressor.wire_nbytes(size), np.uint8)
    locked = device.page_locked(wire.nbytes)

    def copies():
        device.copy_out(wire, locked)[1].synchronize()
        device.copy_in(locked, wire).synchronize()

    return there_and_back, copies


def measure(device, size, chunks, repetitions=REPETITIONS, warming=WARMING):
    """Return the result for one number of chunks."""
    seconds = [[], []]
    calls = path_through_host(device, size, chunks)
    for repetition in range(warming + repetitions):
        for call, times in zip(calls, seconds):
            start = time.perf_counter()
            call()
            if repetition >= warming:
                times.append(time.perf_counter() - start)
    whole, copies = map(statistics.median, seconds)
    return {
        "path": "int8 through the host",
        "elements": size,
        "chunks": chunks,
        "seconds": whole,
        "copies_seconds": copies,
        "times_of_copies": whole / copies,
        "repetitions": repetitions,
    }


def main():
    """Measure the way through the host on the GPU of this machine."""
    from isthmus.devices import gpu_library
    from isthmus.errors import NoDeviceError

    try:
        cupy = gpu_library()
    except NoDeviceError as error:
        print(f"gpu-bench: {error}", file=sys.stderr)
        return error.exit_code
    from isthmus.kernels.device import the_device

    made_by = provenance(cupy)
    with RESULTS.open("a") as file:
        for chunks in CHUNKS:
            result = measure(the_device(), SIZE, chunks)
            print(
                f"100 MB as int8 through the host, {chunks:2} chunks: "
                f"{1e3 * result['seconds']:.3f} ms, {result['times_of_copies']:.2f} times the copies "
                "alone",
                flush=True,
            )
            file.write(json.dumps(result | made_by) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
