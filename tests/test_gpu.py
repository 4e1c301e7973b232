"""Kernels on a GPU, as far as a machine without one can say: they compile for three generations of GPUs,
without spills; what they are given is checked; and played by the host they write the reference's bytes.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import host_device
import numpy as np
import pytest

import isthmus
from isthmus import devices, kernels
from isthmus.errors import NoDeviceError
from isthmus.kernels import cpu, device, device_arrays, gpu, reference

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
MAY_USE_LOCAL_MEMORY = {"encode_one_bit_any"}  # a stack of sums, for blocks that no register holds


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A device that the host plays."""
    if host_device.why_not():
        pytest.skip(host_device.why_not())
    return host_device.HostDevice(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def on_host(host, monkeypatch):
    """The same, and kernels.gpu runs on it."""
    monkeypatch.setattr(gpu, "the_device", lambda: host)
    host.launches.clear()
    return host


@pytest.fixture
def programs(monkeypatch):
    """The folder of `make gpu-test` and `make gpu-bench` can be imported from."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments/gpu"))


@pytest.mark.parametrize("name", kernels.NAMES)
def test_every_kernel_has_the_signature_of_the_reference(name):
    assert inspect.signature(getattr(gpu, name)) == inspect.signature(getattr(reference, name))


def test_every_source_is_loaded_and_shipped():
    here = {path.stem for path in device.FOLDER.glob("*.cu")}
    assert here == set(device.SOURCES)
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tool["package-data"]["isthmus.kernels"] == ["*.cu", "*.cuh"]


@pytest.mark.parametrize("name", device.SOURCES)
def test_a_source_is_loaded_with_its_headers_inside_once(name):
    text = device.source_text(name)
    assert "#include" not in text
    assert text.count("constexpr int MAGNITUDE") == text.count("constexpr int ROWS") == 1


def test_the_geometry_of_launches_is_that_of_the_sources():
    text = {name: device.source_text(name) for name in device.SOURCES}
    for source, said in (
        ("dense", f"THREADS = {gpu.THREADS};"),
        ("top_k", f"PICKERS = {gpu.PICKERS};"),
        ("dense", f"DENSE = {gpu.DENSE_ROW // 128};"),
        ("int4", f"GROUP = {reference.GROUP};"),
        ("top_k", f"POSITIONS = {reference.POSITIONS};"),
        ("top_k", f"UPPER = {gpu.UPPER}, LOWER = {gpu.LOWER};"),
        ("optimisers", f"DENSE = {gpu.DENSE_ROW // 128};"),
        ("optimisers", f"SQUARES = {reference.SQUARES};"),
        ("int8", f"SMALLEST_MAXIMUM = {reference.SMALLEST_MAXIMUM_BITS:#010x};"),
    ):
        assert said in text[source], said
    assert gpu.ROWS == gpu.THREADS // 32
    assert gpu.TILE == gpu.ROWS * 8 * 128
    for source in ("int8", "one_bit"):
        blocks = re.findall(r"^FOR_BLOCKS_OF\((\d+)\)", text[source], flags=re.MULTILINE)
        assert tuple(map(int, blocks)) == gpu.IN_REGISTERS


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("name", device.SOURCES)
def test_every_source_compiles_without_spills(name, architecture, tmp_path):
    done = subprocess.run(
        [
            "nvcc",
            *device.FLAGS,
            f"-arch={architecture}",
            "-Xptxas",
            "-v",
            "-Werror",
            "all-warnings",
            "-cubin",
            "-o",
            tmp_path / "out",
            device.FOLDER / f"{name}.cu",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    compiled = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes "
        r"spill stores, (\d+) bytes spill loads",
        done.stderr,
        flags=re.DOTALL,
    )
    assert compiled
    for kernel, stack, *spills in compiled:
        assert spills == ["0", "0"], f"{kernel} spills"
        assert stack == "0" or kernel in MAY_USE_LOCAL_MEMORY, f"{kernel} uses local memory"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("name", device.SOURCES)
def test_no_product_is_fused_with_a_sum_and_no_denormal_is_flushed(name, tmp_path):
    subprocess.run(
        [
            "nvcc",
            *device.FLAGS,
            "-arch=sm_75",
            "-ptx",
            "-o",
            tmp_path / "out",
            device.FOLDER / f"{name}.cu",
        ],
        check=True,
    )
    ptx = (tmp_path / "out").read_text()
    assert ".visible .entry" in ptx
    assert not re.search(r"\bfma\.|\bmad\.f|\.ftz|\.approx|div\.full", ptx)


def test_played_by_the_host_every_kernel_writes_the_bytes_of_the_reference(on_host, programs):
    """Special numbers of some sizes, arrays that are not aligned among them; `slow` takes all."""
    import cases

    compare(cases, cases.vectors(np.random.default_rng(2), (0, 1, 37, 257, 1025, 1300)))


@pytest.mark.slow
def test_played_by_the_host_every_kernel_writes_those_bytes_for_all_sizes(on_host, programs):
    import check_bytes

    assert check_bytes.check_all(gpu, np.copy, np.copy, print, random_count=5) == []


def compare(cases, vectors):
    random, seen = np.random.default_rng(3), set()
    for number, (what, vector, residual) in enumerate(vectors):
        put = np.copy if number % 3 else lambda array: cases.misaligned(array, np.copy)
        for case in cases.cases(random, vector, residual):
            seen.add(case.name)
            assert cases.difference(case, gpu, put, np.copy) is None, what
    assert seen == set(kernels.NAMES)


def test_top_k_goes_past_one_block_of_positions(on_host, programs):
    import cases

    random = np.random.default_rng(0)
    vector, residual = (random.normal(size=150_001).astype("f4") for _ in range(2))
    for case in cases.cases(random, vector, residual):
        if "top_k" in case.name or "above" in case.name:
            assert cases.difference(case, gpu, np.copy, np.copy) is None


def test_the_parts_of_a_block_too_long_for_registers_are_summed_by_halves(on_host):
    """Against the CPU, 2^16 entries a block: 512 sums whose order matters in the last bits."""
    vector = np.random.default_rng(0).normal(size=100_000).astype("f4")
    both = [(np.zeros(2, "f4"), np.zeros(12_500, "u1"), vector.copy()) for _ in range(2)]
    for module, (scales, codes, residual) in zip((cpu, gpu), both):
        module.encode_one_bit(vector, residual, 65536, scales, codes)
    for one, other in zip(*both):
        np.testing.assert_array_equal(one, other)


def test_a_whole_vector_is_one_launch(on_host):
    size = 100_000
    vector, residual, total = (np.ones(size, "f4") for _ in range(3))
    maxima, codes = np.zeros(391, "f4"), np.zeros(size, "i1")
    gpu.encode_int8(vector, residual, 256, None, 0, maxima, codes)
    gpu.add_int8(maxima, codes, 256, total)
    four = np.zeros(98, "f4"), np.zeros(1563, "u2"), np.zeros(50_000, "u1")
    gpu.encode_int4(vector, residual, 64, None, 0, *four)
    gpu.encode_one_bit(vector, residual, 1024, np.zeros(98, "f4"), np.zeros(12_500, "u1"))
    assert on_host.launches == [
        ("encode_int8_256", 49, 256),
        ("decode_int8_256", 49, 256),
        ("encode_int4", 13, 256),
        ("encode_one_bit_1024", 13, 256),
    ]


def test_a_good_threshold_is_three_launches(on_host):
    vector = np.random.default_rng(0).normal(size=20_000).astype("f4")
    threshold = np.sort(np.abs(vector))[-190]
    outputs = np.zeros(1, "u4"), np.zeros(200, "f4"), np.zeros(200, "u2")
    assert gpu.encode_above(vector, np.zeros_like(vector), threshold, *outputs) == threshold
    assert [name for name, *_ in on_host.launches] == ["top_k_mark", "top_k_scan", "top_k_write"]


def test_a_vector_without_entries_launches_nothing(on_host):
    empty = np.zeros(0, "f4")
    gpu.add(empty, empty)
    gpu.encode_int8(empty, None, 256, None, 0, empty, np.zeros(0, "i1"))
    gpu.add_top_k(np.zeros(0, "u4"), empty, np.zeros(0, "u2"), empty)
    assert on_host.launches == []


def test_a_lane_that_leaves_its_warp_is_found(host, tmp_path, monkeypatch):
    """The stand-in is no use if it lets through what a GPU would not."""
    source = (
        'extern "C" __global__ void f(int* a) { if (threadIdx.x == 3) return;'
        " a[0] += __shfl_xor_sync(~0u, 1, 1); }"
    )
    monkeypatch.setattr(host_device, "SOURCES", ("bad",))
    monkeypatch.setattr(host_device, "source_text", lambda name: source)
    bad = host_device.HostDevice(tmp_path)
    with pytest.raises(AssertionError, match="a lane left its warp"):
        bad.run("bad", "f", 1, 32, (np.zeros(1, "i4"),))


class OtherArray(np.ndarray):
    """An array that says it lives elsewhere."""

    device = "another GPU"


WRONG = {
    "on the host": (lambda good: good.tolist(), "vector is an array of builtins, not of the device"),
    "another dtype": (lambda good: good.astype("f8"), r"must be float32 with shape \(8,\), not float64"),
    "another length": (lambda good: good[:5].copy(), r"not float32 with shape \(5,\)"),
    "two dimensions": (lambda good: good.reshape(2, 4), r"with shape \(2, 4\)"),
    "not contiguous": (lambda good: np.zeros(16, "f4")[::2], "vector is not contiguous; pass a copy"),
    "not at a multiple": (lambda good: np.zeros(33, "u1")[1:].view("f4"), "multiple of 4 bytes"),
    "on another device": (lambda good: good.view(OtherArray), "total is on device .*another GPU"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_arrays_that_do_not_fit_are_refused_before_any_launch(fault):
    spoil, message = WRONG[fault]
    good = np.zeros(8, "f4")

    class Host:
        ndarray, address = np.ndarray, staticmethod(lambda array: array.ctypes.data)

    with pytest.raises(ValueError, match=message):
        device_arrays.check(
            Host, vector=(spoil(good), np.dtype("f4"), 8), total=(good, np.dtype("f4"), 8)
        )


def test_more_entries_than_there_are_cannot_be_chosen(on_host):
    with pytest.raises(ValueError, match="5 entries cannot be chosen from 4"):
        gpu.encode_top_k(
            np.zeros(4, "f4"), None, np.zeros(1, "u4"), np.zeros(5, "f4"), np.zeros(5, "u2")
        )
    with pytest.raises(ValueError, match="too long to choose from"):
        device_arrays.check_chosen(2**31, 1)


def test_every_kernel_checks_its_arrays(on_host):
    """A float64 vector in the place of the first array, whatever the kernel."""
    for name in kernels.NAMES:
        parameters = inspect.signature(getattr(gpu, name)).parameters
        given = {"block": 256, "key": np.uint64(1), "first": 0, "nesterov": False}
        given |= {"kept": 82, "bits": 2}
        numbers = ("factor", "threshold", "scale", "decay", "shrink", "beta1", "beta2")
        given |= dict.fromkeys((*numbers, "rate", "correction", "epsilon"), 1.0)
        arguments = [
            given.get(each, np.zeros((1, 1) if "low_rank" in name else 1, "f8")) for each in parameters
        ]
        with pytest.raises(ValueError, match="must be"):
            getattr(gpu, name)(*arguments)
    assert on_host.launches == []


class FakeCupy:
    """What CupyDevice asks of CuPy; a compiler that refuses what says so, and a list of launches."""

    class NVRTCError(Exception):
        pass

    class ndarray(np.ndarray):  # noqa: N801
        device = nullcontext()
        device.compute_capability = "90"

    def __init__(self):
        self.cuda, self.nvrtc = self, self
        self.empty, self.zeros, self.asnumpy = np.empty, np.zeros, np.asarray
        self.compiled, self.launched, self.destroyed = [], [], 0

    def createProgram(self, source, name, headers, names):  # noqa: N802
        return name

    def compileProgram(self, program, options):  # noqa: N802
        self.compiled.append((program, options))
        if program == "one_bit.cu":
            raise self.NVRTCError

    def getCUBIN(self, program):  # noqa: N802
        return program.encode()

    def getProgramLog(self, program):  # noqa: N802
        return "line 1 is wrong"

    def destroyProgram(self, program):  # noqa: N802
        self.destroyed += 1

    def RawModule(self, path):  # noqa: N802
        assert Path(path).read_bytes() == b"int8.cu"
        return self

    def get_function(self, name):
        return lambda grid, block, arguments: self.launched.append((name, grid, block, arguments))


def test_sources_are_compiled_once_with_the_flags_and_loaded_as_machine_code():
    """CuPy's own compiling flushes denormals, whatever the options say."""
    cupy = FakeCupy()
    there, array = device.CupyDevice(cupy), np.zeros(3, "f4").view(cupy.ndarray)
    for _ in range(2):
        there.run("int8", "encode_int8_256", 5, 256, (array, None, np.int64(3)))
    assert cupy.compiled == [("int8.cu", (*device.FLAGS, "-arch=sm_90"))]
    assert "-ftz=false" in device.FLAGS
    name, grid, block, (first, null, size) = cupy.launched[1]
    assert (name, grid, block, size) == ("encode_int8_256", (5,), (256,), 3)
    assert first is array
    assert (null, null.dtype) == (0, np.intp)
    with pytest.raises(RuntimeError, match="one_bit.cu: line 1 is wrong"):
        there.compiled("one_bit", "90")
    assert cupy.destroyed == 2


class FakeStreams:
    """What CupyDevice asks of CuPy to copy: a list of what it was asked."""

    memcpyDeviceToHost, memcpyHostToDevice = "out", "in"  # noqa: N815
    empty = zeros = asnumpy = ndarray = None

    def __init__(self):
        self.cuda, self.runtime, self.told = self, self, []

    def alloc_pinned_memory(self, nbytes):
        return bytearray(512 * -(-nbytes // 512))

    def Event(self, disable_timing):  # noqa: N802
        return FakeEvent(self)

    def Stream(self, non_blocking):  # noqa: N802
        assert non_blocking  # else the caller's stream would wait for it
        return FakeStream(self, "copies")

    def get_current_stream(self):
        return FakeStream(self, "caller's")

    def memcpyAsync(self, *arguments):  # noqa: N802
        self.told.append(("copy", *arguments))


class FakeEvent:
    def __init__(self, cupy):
        self.cupy = cupy

    def record(self, stream=None):
        self.cupy.told.append(("record", stream.ptr if stream else "caller's"))


class FakeStream:
    def __init__(self, cupy, ptr):
        self.cupy, self.ptr = cupy, ptr

    def wait_event(self, event):
        self.cupy.told.append((self.ptr, "waits"))


def test_copies_out_follow_the_callers_stream_in_their_own_and_copies_in_are_in_it():
    cupy = FakeStreams()
    there, array = device.CupyDevice(cupy), SimpleNamespace(nbytes=12, data=SimpleNamespace(ptr=77))
    buffer = there.page_locked(12)
    assert (buffer.dtype, buffer.nbytes, buffer.flags.writeable) == ("u1", 12, True)
    there.copy_out(array, buffer)
    assert cupy.told == [
        ("record", "caller's"),
        ("copies", "waits"),
        ("copy", buffer.ctypes.data, 77, 12, "out", "copies"),
        ("record", "copies"),
    ]
    cupy.told.clear()
    there.copy_in(buffer, array)
    assert cupy.told == [("copy", 77, buffer.ctypes.data, 12, "in", "caller's"), ("record", "caller's")]


class FakeRuntime:
    """What CuPy says of GPUs that are not there, or too old."""

    def __init__(self, count, capability="90"):
        self.cuda = self.runtime = self
        self.count, self.compute_capability = count, capability

    def getDeviceCount(self):  # noqa: N802
        if isinstance(self.count, Exception):
            raise self.count
        return self.count

    def Device(self):  # noqa: N802
        return self


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, "CuPy cannot be imported"),
        (FakeRuntime(0), "CUDA sees no device"),
        (FakeRuntime(RuntimeError("cudaErrorInsufficientDriver")), "cudaErrorInsufficientDriver"),
        (FakeRuntime(1, "70"), "compute capability 7.0, the kernels need 7.5"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_an_error_with_the_reason(cupy, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for cached in (devices.gpu_library, device.the_device):
        cached.cache_clear()
    stranger = type("ndarray", (), {"__module__": "cupy"})()
    with pytest.raises(NoDeviceError, match=message):
        kernels.for_array(stranger)


class Elsewhere(np.ndarray):
    """An array of a library that is not NumPy."""


Elsewhere.__module__ = "cupy"


def test_a_wire_elsewhere_than_its_vector_is_refused():
    with pytest.raises(ValueError, match="wire is an array of cupy, the vector of numpy"):
        isthmus.Int8().encode(np.zeros(4, "f4"), np.zeros(8, "u1").view(Elsewhere))


def test_compressors_give_the_same_wires_on_a_gpu(on_host, monkeypatch):
    """Two steps, so that what is carried over is the same too."""
    vector = np.random.default_rng(0).normal(size=5000).astype("f4")
    for compressor in (
        isthmus.Dense(),
        isthmus.Dense("float16"),
        isthmus.Int8(rounding="stochastic"),
        isthmus.Int4(),
        isthmus.OneBit(),
        isthmus.TopK(),
        isthmus.TopK(0.1, "threshold"),
        isthmus.TopK(0.1, "random"),
        isthmus.TopK(0.02, bits=2),
        isthmus.TopK(0.5, bits=4),
    ):
        ends = []
        for module in (cpu, gpu):
            monkeypatch.setattr(kernels, "for_array", lambda array, module=module: module)
            wire, total = np.zeros(compressor.wire_nbytes(5000), "u1"), np.ones(5000, "f4")
            residual, state = np.zeros(5000, "f4"), np.zeros(compressor.state_entries(5000), "f4")
            for step in range(2):
                compressor.encode(vector, wire, residual, key=step + 2**63, state=state)
                compressor.add_decoded(wire, total)
            ends.append([each.tobytes() for each in (wire, total, residual, state)])
        assert ends[0] == ends[1], compressor


def test_an_array_of_the_gpu_gets_the_kernels_of_the_gpu(on_host):
    assert kernels.for_array(type("ndarray", (), {"__module__": "cupy"})()) is gpu
    assert kernels.for_array(np.zeros(1)) is cpu


@pytest.mark.parametrize("program", ["check_bytes", "bandwidth", "check_collectives", "host_path"])
def test_the_programs_for_a_gpu_say_that_there_is_none_and_run_from_the_source_tree(program, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [sys.executable, ROOT / f"experiments/gpu/{program}.py"],
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == NoDeviceError.exit_code, done.stderr
    assert "no GPU can be used: CuPy cannot be imported (not here)" in done.stderr


def test_the_programs_for_a_gpu_need_none_of_the_packages_that_a_bare_machine_lacks():
    missing = (
        "pydantic",
        "tomli_w",
        "threadpoolctl",
        "hdf5plugin",
        "typer",
        "rich",
        "matplotlib",
        "jinja2",
        "lazy_loader",
    )
    program = (
        f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
        "import check_bytes, check_collectives, bandwidth, host_path, site_ranks\n"
        "from isthmus.collectives.allreduce import Allreduce\n"
        "list(check_collectives.exchanges())\n"
        "from isthmus.shards.batches import LocalSamples\n"
        "from isthmus.models import Perceptron\n"
        "from isthmus.training.loop import Training\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "experiments/gpu")},
    )
    assert done.returncode == 0, done.stderr
