"""A GPU and its CuPy, played on the host as late as the rules of streams allow.

What a stream is given is done when somebody waits for it, not before; a copy to the host is done when
its own event is waited for. So what is sent, or used again, before it was waited for is junk, and a test
that compares bits sees it. Arrays of such a device are not NumPy's: mixing the two is an error, as in
CuPy. `late = False` plays the other extreme: everything is done at once.
"""

import sys
import types

import numpy as np
from host_device import HostDevice

PRETENDS = (
    "copy",
    "astype",
    "fill",
    "argmax",
    "max",
    "tobytes",
    "__float__",
    "__int__",
    "__bool__",
    "__index__",
)


class Array(np.ndarray):
    """What `cupy.ndarray` is to isthmus."""

    gpu = None  # the LateDevice of all arrays
    device = property(lambda self: self.gpu.where())

    def get(self):
        self.gpu.drain()
        return np.array(self.view(np.ndarray))

    def set(self, values):
        self.gpu.drain()
        assert type(values) is np.ndarray
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        self.view(np.ndarray)[...] = values

    def __getitem__(self, key):
        if isinstance(key, slice):
            return super().__getitem__(key)
        self.gpu.drain()
        if isinstance(key, int) and self.ndim == 1:
            return super().__getitem__(slice(key, key + 1)).reshape(())
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        self.gpu.drain()
        assert isinstance(value, Array) or np.isscalar(value), "CuPy converts no NumPy arrays by itself"
        super().__setitem__(key, value)

    def __array_ufunc__(self, ufunc, method, *inputs, **named):
        self.gpu.drain()
        if ufunc.signature is not None and not self.gpu.inside:
            return NotImplemented  # as CuPy: np.matmul is refused, cupy.matmul is not
        outputs = named.get("out", ())
        for each in (*inputs, *outputs):
            assert isinstance(each, Array) or np.isscalar(each), f"{ufunc}: CuPy and NumPy are mixed"
        if outputs:
            named["out"] = tuple(each.view(np.ndarray) for each in outputs)
        found = getattr(ufunc, method)(*map(_plain, inputs), **named)
        return outputs[0] if outputs else _array(found)

    def __matmul__(self, other):
        return sys.modules["cupy"].matmul(self, other)

    def __array_function__(self, function, kinds, arguments, named):
        self.gpu.drain()
        assert all(issubclass(kind, Array) for kind in kinds), f"{function}: CuPy and NumPy are mixed"
        return _array(super().__array_function__(function, kinds, arguments, named))


Array.__module__, Array.__name__ = "cupy", "ndarray"


def _drained(name):
    plain = getattr(np.ndarray, name)

    def method(self, *arguments, **named):
        self.gpu.drain()
        return plain(self, *arguments, **named)

    return method


for name in PRETENDS:
    setattr(Array, name, _drained(name))


def _plain(value):
    return value.view(np.ndarray) if isinstance(value, Array) else value


def _array(value):
    return np.asarray(value).view(Array)


class Moment:
    """An event: `until` pieces of the stream's work are done, and then `act`."""

    def __init__(self, gpu, until, act=None):
        self.gpu, self.until, self.act = gpu, until, act

    def synchronize(self):
        self.gpu.drain(self.until)
        if self.act is not None:
            self.act()
            self.act = None


class LateDevice(HostDevice):
    """What isthmus.kernels.device.CupyDevice is. `free_nbytes`: more than that cannot be had at once."""

    ndarray = Array

    def __init__(self, folder, late=True):
        super().__init__(folder)
        self.late, self.inside, self.free_nbytes = late, False, float("inf")
        self.queue, self.given, self.done = [], 0, 0
        self.locked, self.copying, self.events = [], {}, []
        Array.gpu = self

    def empty(self, shape, dtype=float):
        if np.prod(shape) * np.dtype(dtype).itemsize > self.free_nbytes:
            raise MemoryError("Out of memory allocating bytes of the GPU")
        junk = np.empty(shape, dtype)
        junk.reshape(-1).view("u1")[:] = 0xFF
        return junk.view(Array)

    def zeros(self, shape, dtype=float):
        made = self.empty(shape, dtype)
        made.view(np.ndarray)[...] = 0
        return made

    def to_host(self, array):
        return array.get()

    def run(self, *launch):
        self._give(lambda: super(LateDevice, self).run(*launch))

    def where(self):
        return "GPU 0"

    def page_locked(self, nbytes):
        self.locked.append(np.full(nbytes, 0xFF, np.uint8))
        return self.locked[-1]

    def moment(self):
        return Moment(self, self.given)

    def copy_out(self, array, buffer):
        place = buffer.ctypes.data
        assert place not in self.copying, "a buffer is used twice at a time"
        self.copying[place] = array
        self.events.append(("copied out", place))

        def act():
            buffer[...] = array.view(np.ndarray)
            del self.copying[place]
            self.events.append(("waited", place))

        copied = Moment(self, self.given, act)
        if not self.late:
            copied.synchronize()
        return self.moment(), copied

    def copy_in(self, buffer, array):
        def act():
            array.view(np.ndarray)[...] = buffer

        self._give(act)
        return self.moment()

    def drain(self, until=None):
        """Do what the stream was given, the first `until` pieces or all."""
        while self.queue and (until is None or self.done < until):
            self.done += 1
            self.queue.pop(0)()

    def _give(self, work):
        self.given += 1
        self.queue.append(work)
        if not self.late:
            self.drain()


def cupy_of(gpu):
    """Return a module that stands for `cupy`: NumPy's functions, with arrays of `gpu`."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.empty, cupy.zeros = Array, gpu.empty, gpu.zeros
    cupy.arange = lambda *arguments: np.arange(*arguments).view(Array)

    def asarray(values, dtype=None):
        return values if isinstance(values, Array) else np.array(values, dtype).view(Array)

    def of_numpy(name):
        function = getattr(np, name)

        def call(*arguments, **named):
            gpu.inside = True
            try:
                return function(*arguments, **named)
            finally:
                gpu.inside = False

        return call

    cupy.asarray = asarray
    for each in ("maximum", "matmul", "concatenate", "stack", "take_along_axis", "exp", "log"):
        setattr(cupy, each, of_numpy(each))
    cupy.ones = lambda *arguments: np.ones(*arguments).view(Array)
    stream = types.SimpleNamespace(synchronize=gpu.drain)
    cupy.cuda = types.SimpleNamespace(
        get_current_stream=lambda: stream,
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 1),
        Device=lambda number: types.SimpleNamespace(use=lambda: None),
    )
    pool = types.SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: 1000)
    pool.set_limit = lambda size: setattr(gpu, "free_nbytes", size or float("inf"))
    cupy.get_default_memory_pool = lambda: pool
    return cupy


def put_in(monkeypatch, gpu):
    """Have isthmus find `gpu` where it looks for CuPy and its GPU."""
    from isthmus import devices
    from isthmus.kernels import gpu as kernels_of_gpu
    from isthmus.links import on_device as residence
    from isthmus.measuring import computing as measuring

    cupy = cupy_of(gpu)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(devices, "gpu_library", lambda oldest=75: cupy)
    for module in (kernels_of_gpu, residence, measuring):
        monkeypatch.setattr(module, "the_device", lambda: gpu)
    return cupy
