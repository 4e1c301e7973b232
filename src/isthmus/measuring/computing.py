"""How fast ranks really are: the times that calibration fits."""

import time

import numpy as np

from isthmus import kernels
from isthmus.compression.chunks import chunk_entries
from isthmus.devices import synchronise
from isthmus.kernels.compiled import compiled
from isthmus.kernels.device import the_device
from isthmus.links.world import all_gather, barrier
from isthmus.vectors import chunk_slices

VECTOR_NBYTES = (4, 16 * 1024, 2**20, 16 * 2**20)
MEMORY_NBYTES = 64 * 2**20
LONGEST_SECONDS = 0.2
"""Of encoding and decoding once: longer vectors are left out."""

BUSY_SECONDS, BUSY_ENTRIES = 0.3, 1 << 14

COPIES_NBYTES = 64 << 20


def gradient_seconds(comm, model, features, targets, batch_sizes, repetitions, library=np):
    """Return float64[ranks, batch sizes]: median seconds of a gradient, all ranks at once.

    library: makes the arrays on this rank's device; what is asked of it is done when the clock is read.
    """
    parameters, gradient = library.asarray(model.initial(0)), library.zeros(model.size, np.float32)
    medians = []
    for size in batch_sizes:
        pick = np.arange(size) % len(targets)
        batch = features[pick], targets[pick]
        seconds = []
        for _ in range(repetitions + 1):
            barrier(comm)
            start = time.perf_counter()
            model.gradient(parameters, *batch, gradient)
            synchronise(gradient)
            seconds.append(time.perf_counter() - start)
        medians.append(np.median(seconds[1:]))
    return np.stack(all_gather(comm, np.array(medians)))


def own_message_seconds(comm, repetitions, messages=50):
    """Return what it costs this rank to send a message and to receive one, whatever its length.

    Python's time and MPI's: the least of messages of one byte that a rank sends itself.
    """
    out, into, least = np.zeros(1, np.uint8), np.zeros(1, np.uint8), np.inf
    for _ in range(repetitions):
        start = time.perf_counter()
        for _ in range(messages):
            received = comm.Irecv(into, comm.rank)
            comm.Isend(out, comm.rank).Wait()
            received.Wait()
        least = min(least, (time.perf_counter() - start) / messages)
    return least


def add_bytes_per_second(size, repetitions, library=np):
    """Return the rate at which this rank adds float32[size] to another, in bytes of one of them."""
    vector, total = library.asarray(np.ones((2, max(size, 1)), "f4"))
    add = kernels.for_array(total).add
    return 4 * vector.size / np.median(seconds_of(lambda: add(vector, total), repetitions, total))


def busy_share(comm, seconds=BUSY_SECONDS):
    """Return the share of a core that this rank gets while all ranks of `comm` are busy. Collective."""
    vector, total = np.ones((2, BUSY_ENTRIES), np.float32)
    add = kernels.for_array(total).add
    add(vector, total)
    barrier(comm)
    began, used = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - began) < seconds:
        add(vector, total)
    return min(1.0, (time.process_time() - used) / passed)


def host_copy_bytes_per_second(repetitions, library=np):
    """Return the rate at which a GPU's arrays go to page-locked memory and back, the slower way.

    Infinite on the host, where nothing is copied.
    """
    if library is np:
        return np.inf
    device, array = the_device(), library.zeros(COPIES_NBYTES, np.uint8)
    buffer = device.page_locked(array.nbytes)
    return min(
        array.nbytes / np.median(seconds_of(call, repetitions, array))
        for call in (
            lambda: device.copy_out(array, buffer)[1].synchronize(),
            lambda: device.copy_in(buffer, array).synchronize(),
        )
    )


def memory_bytes_per_second(repetitions):
    """Return the rate of a STREAM triad on this rank, of arrays of 64 MiB, 12 bytes counted an entry."""
    a, b, c = np.ones((3, MEMORY_NBYTES // 4), np.float32)
    return (
        3
        * MEMORY_NBYTES
        / np.median(seconds_of(lambda: triad(a, b, np.float32(0.5), c), min(repetitions, 5), a))
    )


@compiled
def triad(a, b, s, c):
    """a = b + s c, the yardstick: a loop that reads two arrays and writes one."""
    for i in range(a.size):
        a[i] = b[i] + s * c[i]


def coding_seconds(compressor, seconds, repetitions, library=np, longest_seconds=LONGEST_SECONDS):
    """Return (nbytes, encode seconds, decode seconds), float64 vectors, of this rank.

    Vectors of so many bytes of float32, in the chunks that an allreduce cuts them to; short ones stay
    in a cache. Decoding is half of the time of a `decode` and an `add_decoded`.
    """
    rows = []
    for nbytes in VECTOR_NBYTES:
        rows.append((nbytes, *_coded_once(compressor, nbytes // 4, seconds, repetitions, library)))
        if 16 * sum(rows[-1][1:]) > longest_seconds:
            break
    return np.array(rows).T


def _coded_once(compressor, size, seconds, repetitions, library):
    """Return the median seconds of encoding float32[size], and half of those of decoding it twice."""
    vector = library.asarray(np.random.default_rng(0).standard_normal(size, dtype=np.float32))
    residual, total = library.zeros(size, np.float32), library.zeros(size, np.float32)
    parts = [
        (
            part,
            library.zeros(compressor.wire_nbytes(part.stop - part.start), np.uint8),
            library.zeros(compressor.state_entries(part.stop - part.start), np.float32),
        )
        for part in chunk_slices(0, size, chunk_entries(compressor, size))
    ]

    def encode():
        for part, wire, state in parts:
            compressor.encode(vector[part], wire, residual[part], state=state)

    def decode():
        for part, wire, _ in parts:
            compressor.decode(wire, total[part])
            compressor.add_decoded(wire, total[part])

    encoding, decoding = (
        float(np.median(seconds_of(call, repetitions, total, seconds))) for call in (encode, decode)
    )
    return encoding, decoding / 2


def update_seconds(optimiser, nbytes, seconds, repetitions, library=np):
    """Return the median seconds of a step of `optimiser` on float32 parameters of `nbytes` bytes."""
    parameters, mean = (library.zeros(nbytes // 4, np.float32) for _ in range(2))
    mean[:] = 1e-3
    arrays = optimiser.begin(parameters.size, parameters)
    return float(
        np.median(
            seconds_of(
                lambda: optimiser.step(parameters, mean, arrays, 1e-3), repetitions, parameters, seconds
            )
        )
    )


def seconds_of(call, repetitions, array, enough_seconds=np.inf):
    """Return float64[n]: seconds that `call()`, which works on `array`, took; compilation left out.

    n: `repetitions`, or as many as take `enough_seconds`.
    """
    call()
    synchronise(array)
    seconds = []
    while len(seconds) < repetitions and sum(seconds) < enough_seconds:
        start = time.perf_counter()
        call()
        synchronise(array)
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)
