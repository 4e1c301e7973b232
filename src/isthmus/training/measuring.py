"""How fast ranks and links really are: the times that calibration fits."""

import time

import numpy as np

from isthmus import kernels
from isthmus.devices import synchronise
from isthmus.kernels.device import the_device

MESSAGE_NBYTES = (8, 1024, 16 * 1024, 60 * 1024, 256 * 1024, 1024 * 1024)


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
            comm.Barrier()
            start = time.perf_counter()
            model.gradient(parameters, *batch, gradient)
            synchronise(gradient)
            seconds.append(time.perf_counter() - start)
        medians.append(np.median(seconds[1:]))
    everyone = np.empty((comm.size, len(batch_sizes)))
    comm.Allgather(np.array(medians), everyone)
    return everyone


def message_seconds(comm, source, target, repetitions, sizes=MESSAGE_NBYTES):
    """Return float64[sizes] on every rank: seconds from the start of a send until all has arrived.

    One way: the receiver answers with an empty message, whose time, half of an empty round trip, is
    taken off. Both directions of a link are measured on their own by swapping source and target.
    """
    empty = np.zeros(1, np.uint8)
    times = np.zeros(1 + len(sizes))
    for number, nbytes in enumerate((1, *sizes)):
        message = np.zeros(nbytes, np.uint8)
        seconds = []
        comm.Barrier()
        for _ in range(repetitions + 1):
            if comm.rank == source:
                start = time.perf_counter()
                comm.Send(message, target)
                comm.Recv(empty, target)
                seconds.append(time.perf_counter() - start)
            elif comm.rank == target:
                comm.Recv(message, source)
                comm.Send(empty, source)
        if comm.rank == source:
            times[number] = np.median(seconds[1:])
    comm.Bcast(times, source)
    return np.maximum(times[1:] - times[0] / 2, 1e-9)


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


def kernel_bytes_per_second(compressor, size, repetitions, library=np):
    """Return the rates of add, encode and decode on this rank, in bytes of the float32 vector."""
    vector, total = library.asarray(np.random.default_rng(0).normal(size=(2, size)).astype("f4"))
    residual, wire = library.zeros(size, "f4"), library.zeros(compressor.wire_nbytes(size), np.uint8)
    state = library.zeros(compressor.state_entries(size), "f4")
    add = kernels.for_array(total).add
    return [4 * size / _best_seconds(call, repetitions, total) for call in (
        lambda: add(vector, total),
        lambda: compressor.encode(vector, wire, residual, state=state),
        lambda: (compressor.decode(wire, vector), compressor.add_decoded(wire, total)))]


def host_copy_bytes_per_second(repetitions, library=np):
    """Return the rate at which a GPU's arrays go to page-locked memory and back, the slower way.

    Infinite on the host, where nothing is copied.
    """
    if library is np:
        return np.inf
    device, array = the_device(), library.zeros(COPIES_NBYTES, np.uint8)
    buffer = device.page_locked(array.nbytes)
    return min(array.nbytes / _best_seconds(call, repetitions, array) for call in (
        lambda: device.copy_out(array, buffer)[1].synchronize(),
        lambda: device.copy_in(buffer, array).synchronize()))


def _best_seconds(call, repetitions, array):
    """Return the least seconds that `call()`, which works on `array`, took; compilation left out."""
    call()
    synchronise(array)
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        synchronise(array)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
