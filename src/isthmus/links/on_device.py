"""Where vectors live, and how their bytes get from there to MPI.

The algorithms are written once: they take arrays from `empty` and `zeros` of a residence, and hand
them to a communicator that its `comm` gives. On the host that is the communicator itself. On a GPU
it gives MPI page-locked (pinned) copies of exactly what is sent, a wire where one is sent; or the
arrays themselves where the MPI library says that it takes them.

Kernels and copies to the GPU run in CuPy's current stream, which must be one from an allreduce's
first `start` to its `finish`; copies from the GPU run in a stream of their own. A message is handed
to MPI when the next one has been asked for, when anything is waited for, and when a `start` ends: so
while one is copied the next is encoded, and those before travel.
"""

from collections import defaultdict, deque

import numpy as np

from isthmus import kernels
from isthmus.devices import library_name, mpi_library_path, mpi_takes_device_arrays
from isthmus.kernels.device import the_device
from isthmus.kernels.device_arrays import F4, check
from isthmus.links.comm import Wrapped


def residence_of(array, clock, sealed=False):
    """Return the Host or the OnDevice where `array` lives; NoDeviceError where there are no kernels.

    clock: a StageClock, which is told of the time of copies. sealed: links are, which is done on the
    host, so that MPI is never given a device's arrays.
    """
    kernels.for_array(array)
    if library_name(array) == "numpy":
        return Host()
    device = the_device()
    direct = not sealed and mpi_takes_device_arrays(mpi_library_path())
    return OnDevice(device, Direct(device) if direct else PageLocked(device), clock)


class Host:
    """NumPy arrays: MPI takes them as they are.

    cached: whether a chunk that was just written is read again at little cost.
    """

    cached = True
    empty, zeros = staticmethod(np.empty), staticmethod(np.zeros)

    def comm(self, comm):
        """Return a communicator that takes arrays that live here."""
        return comm

    def post(self):
        """Nothing is kept back: MPI has every message."""

    def expect(self, messages):
        """Messages are sent from where they are made."""

    def check(self, vector, size):
        """Raise ValueError unless `vector` is float32[size] and lives here."""
        if library_name(vector) != "numpy":
            raise ValueError(
                f"vector is an array of {library_name(vector)}, those before were on the "
                "host; make another Allreduce for it"
            )
        if vector.dtype != np.float32 or vector.shape != (size,):
            raise ValueError(
                f"vector must be float32 of shape ({size},), not {vector.dtype} of shape {vector.shape}"
            )


class OnDevice:
    """CuPy arrays; `transport` is what MPI sees of them."""

    cached = False  # to be told what a chunk holds, the host would wait for the device

    def __init__(self, device, transport, clock):
        self.device, self.transport, self.clock = device, transport, clock
        self.empty, self.zeros = device.empty, device.zeros
        self.leaving = deque()  # messages that MPI has not been given, in order

    def comm(self, comm):
        """Return a communicator that takes arrays that live here."""
        return DeviceComm(comm, self)

    def check(self, vector, size):
        """Raise ValueError unless `vector` is a float32[size] that kernels take, on this rank's GPU."""
        check(self.device, vector=(vector, F4, size))
        if getattr(vector, "device", None) != self.device.where():
            raise ValueError(
                f"vector is on {vector.device}, this rank computes on "
                f"{self.device.where()}; copy it there first"
            )

    def expect(self, messages):
        """Make ready for messages, bytes -> how many of so many may be under way at once."""
        self.transport.expect(messages)

    def post(self, but=0):
        """Hand all messages but the last `but` to MPI, each when it is copied."""
        while len(self.leaving) > but:
            self.leaving.popleft().leave()


class PageLocked:
    """Buffers on the host that the GPU copies to and from by itself, each made once and used again."""

    def __init__(self, device):
        self.device = device
        self.free = defaultdict(deque)  # nbytes -> (buffer, event until which it is in use or None)

    def expect(self, messages):
        """Make buffers for bytes -> how many messages before they are needed, for that takes long."""
        for nbytes, count in messages.items():
            self.free[nbytes] += [(self.device.page_locked(nbytes), None) for _ in range(count)]

    def outgoing(self, array):
        """Return what MPI sends, an event that the array is made, and one that MPI may have it."""
        buffer = self._take(array)
        return buffer, *self.device.copy_out(array, buffer)

    def incoming(self, array):
        """Return what MPI may receive into."""
        return self._take(array)

    def arrived(self, buffer, array):
        """Bring what MPI has received to `array`."""
        self._give(buffer, self.device.copy_in(buffer, array))

    def sent(self, buffer):
        """Take back what MPI has sent."""
        self._give(buffer, None)

    def _take(self, array):
        buffer, until = (
            self.free[array.nbytes].popleft()
            if self.free[array.nbytes]
            else (self.device.page_locked(array.nbytes), None)
        )
        if until is not None:
            until.synchronize()
        return buffer.view(array.dtype)  # MPI compares types at both ends

    def _give(self, buffer, until):
        self.free[buffer.nbytes].append((buffer.view(np.uint8), until))


class Direct:
    """The arrays themselves, for an MPI library that takes them."""

    def __init__(self, device):
        self.device = device

    def expect(self, messages):
        pass

    def outgoing(self, array):
        moment = self.device.moment()
        return array, moment, moment

    def incoming(self, array):
        self.device.moment().synchronize()  # kernels may still read what was there
        return array

    def arrived(self, buffer, array):
        pass

    def sent(self, buffer):
        pass


class DeviceComm(Wrapped):
    """A communicator that takes arrays of a device, as mpi4py's take NumPy's.

    Its requests end in any order; what was sent must stay as it is until then.
    """

    def __init__(self, comm, residence):
        super().__init__(comm)
        self.residence = residence

    def Isend(self, array, dest, tag=0):  # noqa: N802
        sent = _Sent(self, array, dest, tag)
        self.residence.leaving.append(sent)
        self.residence.post(but=1)
        return sent

    def Irecv(self, array, source, tag=0):  # noqa: N802
        return _Received(self, array, source, tag)

    def Allreduce(self, in_place, array):  # noqa: N802
        transport = self.residence.transport
        buffer, _, copied = transport.outgoing(array)
        copied.synchronize()
        self.comm.Allreduce(in_place, buffer)
        transport.arrived(buffer, array)


class _Message:
    """A request of MPI's for a buffer of the transport, which gets it back once."""

    def __init__(self, residence, buffer):
        self.residence, self.buffer, self.request = residence, buffer, None

    def Wait(self):  # noqa: N802
        self.residence.post()
        self.request.Wait()
        self._end()

    def Test(self):  # noqa: N802
        self.residence.post()
        done = self.request.Test()
        if done:
            self._end()
        return done

    def _end(self):
        if self.buffer is not None:
            self._give_back(self.residence.transport)
            self.buffer = None


class _Sent(_Message):
    def __init__(self, comm, array, dest, tag):
        buffer, self.made, self.copied = comm.residence.transport.outgoing(array)
        super().__init__(comm.residence, buffer)
        self.route = comm.comm, dest, tag

    def leave(self):
        self.made.synchronize()
        with self.residence.clock.inside("copy"):
            self.copied.synchronize()
        comm, dest, tag = self.route
        self.request = comm.Isend(self.buffer, dest, tag)

    def _give_back(self, transport):
        transport.sent(self.buffer)


class _Received(_Message):
    def __init__(self, comm, array, source, tag):
        super().__init__(comm.residence, comm.residence.transport.incoming(array))
        self.array = array
        self.request = comm.comm.Irecv(self.buffer, source, tag)

    def _give_back(self, transport):
        transport.arrived(self.buffer, self.array)
