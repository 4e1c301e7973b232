"""Vectors on a device: the bits of the host, in any mixture; MPI sees nothing that is not there yet.

The device is one that the host plays (late_device): kernels are those of the GPU, its memory is the
host's, and what is not waited for has not happened.
"""

import json
import subprocess
from pathlib import Path

import host_device
import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from late_device import Array, LateDevice, put_in
from test_rebalancing import lab
from test_training import MODEL, RECIPE, samples_of

import isthmus
from isthmus import devices
from isthmus.errors import NoDeviceError
from isthmus.jobs.train import train
from isthmus.links import on_device as residence
from isthmus.links.comm import Wrapped
from isthmus.links.world import TOGETHER
from isthmus.measuring import computing as measuring
from isthmus.measuring.calibrate import calibrate
from isthmus.measuring.computing import gradient_seconds, host_copy_bytes_per_second
from isthmus.models import Convolutional, Perceptron
from isthmus.security.key_files import make_keys
from isthmus.training.checkpoint import read_checkpoint, write_checkpoint
from isthmus.training.loop import State, Training
from isthmus.training.replicas import Replicas
from isthmus.training.strategies.strategy import Member

SIZE = 6007
BUCKETS = [slice(3072, SIZE), slice(0, 3072)]
EVERY, SOME = (0, 1, 2, 3), (0, 3)
pytestmark = pytest.mark.skipif(host_device.why_not() is not None, reason=str(host_device.why_not()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for the compiled kernels, made by rank 0 of a job."""
    from conftest import INSIDE, os

    path = tmp_path_factory.mktemp("kernels")
    if INSIDE in os.environ:
        from mpi4py import MPI

        from isthmus.links.agreement import broadcast_json

        world, shared = MPI.COMM_WORLD, type(path)(broadcast_json(MPI.COMM_WORLD, str(path)))
        if world.rank == 0:
            LateDevice(shared)
        world.Barrier()
        return shared
    return path


@pytest.fixture
def gpu(folder, monkeypatch):
    device = LateDevice(folder)
    device.cupy = put_in(monkeypatch, device)
    return device


class Spy(Wrapped):
    """A communicator that refuses what MPI must not be given, and notes what it was."""

    lets_past = True

    def __init__(self, comm, gpu, direct=False):
        super().__init__(comm)
        self.gpu, self.direct = gpu, direct

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        if tag != TOGETHER:
            self._look(buffer)
            assert buffer.ctypes.data not in self.gpu.copying, "sent before it was copied"
            self.gpu.events.append(("sent", buffer.ctypes.data))
        return self.comm.Isend(buffer, dest, tag)

    def Irecv(self, buffer, source, tag=0):  # noqa: N802
        if tag != TOGETHER:
            self._look(buffer)
            assert not (self.direct and self.gpu.queue), "kernels may still read what is there"
        return self.comm.Irecv(buffer, source, tag)

    def Allreduce(self, in_place, buffer):  # noqa: N802
        self._look(buffer)
        self.gpu.events.append(("sent", buffer.ctypes.data))
        self.comm.Allreduce(in_place, buffer)

    def _look(self, buffer):
        assert type(buffer) is (Array if self.direct else np.ndarray), "memory of the device"


def spied(tiers, gpu, direct=False):
    return tiers.through(lambda comm, ranks: Spy(comm, gpu, direct))


def vectors_of(rank, steps=3):
    return [np.random.default_rng([step, rank]).normal(size=SIZE).astype("f4") for step in range(steps)]


def bits_of(allreduce, vectors):
    """Return the bytes of every mean and of what is carried in the end."""
    means = []
    for vector in vectors:
        for bucket in allreduce.buckets:
            allreduce.start(vector[bucket])
        means.append(devices.to_host(allreduce.finish()).tobytes())
    return [*means, devices.to_host(allreduce.memory).tobytes(), allreduce.sent_nbytes]


HIERARCHIES = [
    ((2, 2), EVERY, "late"),
    ((2, 2), SOME, "late"),
    ((1, 2, 1), SOME, "late"),
    ((2, 2), SOME, "early"),
    ((4,), (1, 2), "late"),
    ((2, 2), EVERY, "direct"),
    ((1, 2, 1), SOME, "direct"),
]
FLAT = [((4,), EVERY, "late"), ((4,), SOME, "late"), ((4,), SOME, "direct")]
JOBS = [
    *(
        (*where, "hierarchical", compressor)
        for where in HIERARCHIES
        for compressor in (None, isthmus.Int8(rounding="stochastic"))
    ),
    ((2, 2), SOME, "late", "hierarchical", isthmus.TopK(0.05, "threshold")),
    *(
        (*where, algorithm, None)
        for where in FLAT
        for algorithm in ("ring", "tree", "doubling", "recursive", "mpi")
    ),
]


@pytest.mark.ranks(4)
@pytest.mark.parametrize(("sites", "on_gpu", "how", "algorithm", "compressor"), JOBS, ids=str)
def test_ranks_with_a_gpu_and_ranks_without_have_the_bits_of_the_host(
    comm, gpu, monkeypatch, sites, on_gpu, how, algorithm, compressor
):
    """Every mean, what is carried over, and the bytes; nothing is sent before it is there."""
    gpu.late, mine = how != "early", comm.rank in on_gpu
    monkeypatch.setattr(residence, "mpi_takes_device_arrays", lambda path: how == "direct")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:

        def bits(tiers, vectors):
            return bits_of(
                isthmus.Allreduce(
                    tiers,
                    SIZE,
                    algorithm,
                    compressor,
                    buckets=BUCKETS,
                    weight=1.0 + comm.rank,
                    chunk_nbytes=2000,
                ),
                vectors,
            )

        vectors = vectors_of(comm.rank)
        wanted = bits(tiers, vectors)
        if not mine:
            assert bits(tiers, vectors) == wanted
            return
        given = bits(spied(tiers, gpu, how == "direct"), [each.view(Array) for each in vectors])
        assert given == wanted
        if how != "direct":
            for place in {place for _, place in gpu.events}:
                told = [what for what, where in gpu.events if where == place]
                assert told == ["copied out", "waited", "sent"] * (len(told) // 3)


@pytest.mark.ranks(4)
def test_what_is_sealed_goes_by_the_host_also_where_mpi_takes_a_device_s_arrays(
    comm, gpu, monkeypatch, shared_folder
):
    monkeypatch.setattr(residence, "mpi_takes_device_arrays", lambda path: True)
    for site in ("site0", "site1") if comm.rank == 0 else ():
        make_keys(shared_folder / "keys", site)
    comm.Barrier()
    cluster, vectors = isthmus.Cluster(cluster_of(2, 2)), vectors_of(comm.rank)
    with isthmus.split_tiers(comm, cluster) as tiers:
        wanted = bits_of(isthmus.Allreduce(tiers, SIZE, compressor=isthmus.Int8()), vectors)
    with isthmus.split_tiers(comm, cluster, shared_folder / "keys") as tiers:
        allreduce = isthmus.Allreduce(spied(tiers, gpu), SIZE, compressor=isthmus.Int8())
        given = bits_of(allreduce, [each.view(Array) for each in vectors])
    assert given[:-1] == wanted[:-1]


@pytest.mark.ranks(4)
@pytest.mark.parametrize("algorithm", ["hierarchical", "ring"])
def test_page_locked_buffers_are_made_with_the_allreduce_or_in_its_first_calls(comm, gpu, algorithm):
    """Those of `hierarchical` before the first: how many messages are under way at once varies."""
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        compressor, first = (isthmus.Int8(), 0) if algorithm == "hierarchical" else (None, 3)
        allreduce = isthmus.Allreduce(
            tiers, SIZE, algorithm, compressor, chunk_nbytes=2000, like=gpu.zeros(0, "f4")
        )
        assert allreduce.memory.size == 0 or isinstance(allreduce.memory, Array)
        made = [len(gpu.locked)]
        for _ in range(first + 3):
            allreduce(gpu.zeros(SIZE, "f4"))
            made.append(len(gpu.locked))
        chunks = -(-SIZE // 1792)  # of seven blocks; in the site, and between sites both ways
        assert 0 < made[first] == made[-1] <= 3 * chunks + 6


@pytest.mark.ranks(4)
def test_only_wires_leave_the_device_where_a_site_is_one_rank(comm, gpu):
    compressor = isthmus.Int8()
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1, 1, 1))) as tiers:
        allreduce = isthmus.Allreduce(tiers, SIZE, compressor=compressor, like=gpu.zeros(0, "f4"))
        allreduce(gpu.zeros(SIZE, "f4"))
        assert {each.nbytes for each in gpu.locked} == {compressor.wire_nbytes(SIZE)}


FAULTS = {
    "on the host": (lambda gpu: np.zeros(SIZE, "f4"), ValueError, "of numpy, not of the device"),
    "not contiguous": (lambda gpu: gpu.zeros(2 * SIZE, "f4")[::2], ValueError, "not contiguous"),
    "another dtype": (lambda gpu: gpu.zeros(SIZE, "f8"), ValueError, "must be float32 .* not float64"),
    "misaligned": (lambda gpu: gpu.zeros(4 * SIZE + 1, "u1")[1:].view("f4"), ValueError, "of 4 bytes"),
    "without entries": (lambda gpu: gpu.zeros(0, "f4"), ValueError, r"not float32 with shape \(0,\)"),
    "no array": (lambda gpu: [0.0] * SIZE, ValueError, "an array of builtins"),
    "on another GPU": (lambda gpu: gpu.zeros(SIZE, "f4").view(Elsewhere), ValueError, "is on GPU 1"),
    "too large for the memory": ("full", NoDeviceError, "out of memory for an allreduce"),
}


class Elsewhere(Array):
    """An array of a GPU that is not this rank's."""

    device = "GPU 1"


Elsewhere.__module__ = "cupy"


@pytest.mark.ranks(4)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("compressor", [None, isthmus.Int8()], ids=str)
def test_a_vector_that_is_wrong_on_one_rank_is_one_error_on_all_and_the_next_is_right(
    comm, gpu, fault, compressor
):
    make, error, message = FAULTS[fault]
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        allreduce = isthmus.Allreduce(tiers, SIZE, compressor=compressor)
        good = vectors_of(comm.rank)[0].view(Array)
        allreduce(good)
        carried = allreduce.memory.tobytes()
        bad = good
        if comm.rank == 2:
            bad = good if make == "full" else make(gpu)
            gpu.free_nbytes = 1000 if make == "full" else gpu.free_nbytes
        with pytest.raises(error, match=f"{message}.*on rank 2"):
            allreduce(bad)
        gpu.free_nbytes = float("inf")
        assert devices.to_host(allreduce.memory).tobytes() == carried
        assert np.isfinite(devices.to_host(allreduce(good))).all()


@pytest.mark.ranks(4)
def test_what_cannot_be_on_a_device_is_refused_by_all_ranks(comm, gpu):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        with pytest.raises(NoDeviceError, match="LowRank encodes on CPUs alone.*on rank 3"):
            isthmus.Allreduce(
                tiers,
                SIZE,
                compressor=isthmus.LowRank(),
                like=gpu.zeros(0, "f4") if comm.rank == 3 else None,
            )
        gpu.free_nbytes = 100 if comm.rank == 1 else gpu.free_nbytes
        with pytest.raises(NoDeviceError, match="out of memory.*on rank 1"):
            isthmus.Allreduce(tiers, SIZE, compressor=isthmus.Int8(), like=gpu.zeros(0, "f4"))


def training_of(tiers, library, compressor=None, recipe=RECIPE):
    local, state = samples_of(tiers.world.rank, 9), State.initial(MODEL, recipe, library)
    allreduce = isthmus.Allreduce(
        tiers,
        MODEL.size,
        compressor=compressor,
        weight=9.0,
        buckets=[slice(20, MODEL.size), slice(0, 20)],
        like=state.parameters,
    )
    return Training(tiers, MODEL, local, Member(allreduce), recipe, state)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("on_gpu", [EVERY, SOME])
def test_training_ends_with_one_hash_wherever_ranks_compute(comm, gpu, shared_folder, on_gpu):
    """Also one that was stopped, whose checkpoint goes on with ranks elsewhere than they were."""
    library = gpu.cupy if comm.rank in on_gpu else np
    hashes, path = [], shared_folder / "checkpoint.h5"
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        for run, where in enumerate((np, library)):
            training = training_of(tiers, where, isthmus.Int8(8))
            for _ in training.steps():
                if run == 1 and training.state.step == 5:
                    write_checkpoint(path, training, {})
            hashes.append(Replicas(training).compare())
            assert type(training.gradient) is where.ndarray
        elsewhere = np if library is gpu.cupy else gpu.cupy
        resumed = training_of(tiers, elsewhere, isthmus.Int8(8))
        read_checkpoint(path, resumed, {})
        for _ in resumed.steps():
            pass
        assert hashes == [Replicas(resumed).compare()] * 2
        assert training.evaluate(training.local) == resumed.evaluate(resumed.local)


@pytest.mark.ranks(4)
def test_a_batch_that_does_not_fit_is_one_error_on_all_ranks(comm, gpu):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        training = training_of(tiers, gpu.cupy)
        steps = training.steps()
        next(steps)
        if comm.rank == 1:

            def full(values, slope):
                raise MemoryError("1 GB")

            gpu.cupy.maximum = full
        with pytest.raises(NoDeviceError, match=r"a batch of \d samples in step 2: 1 GB.*on rank 1"):
            next(steps)


@pytest.mark.parametrize("model", [Perceptron(20, (7,), 3), Convolutional(12, 12, (2, 3), 4)])
@pytest.mark.parametrize("kind", ["u1", "f4"])
def test_a_model_computes_where_its_parameters_live(gpu, model, kind):
    draw = np.random.default_rng(0)
    features, targets = draw.integers(0, 9, (5, *model.inputs_shape)).astype(kind), np.arange(5) % 3
    found = []
    for library in (np, gpu.cupy):
        parameters, gradient = library.asarray(model.initial(0)), library.zeros(model.size, "f4")
        loss = model.gradient(parameters, features, targets.astype(kind.replace("f4", "i8")), gradient)
        scores = model.scores(parameters, features)
        assert type(scores) is library.ndarray
        found.append([loss, devices.to_host(gradient).tobytes(), devices.to_host(scores).tobytes()])
    assert found[0] == found[1]


@pytest.mark.ranks(1)
def test_a_gpu_is_measured_when_its_work_is_done(comm, gpu, monkeypatch):
    monkeypatch.setattr("isthmus.measuring.computing.COPIES_NBYTES", 1000)
    waits = []
    monkeypatch.setattr("isthmus.measuring.computing.synchronise", lambda array: waits.append(array))
    features, targets = samples_of(0, 6).arrays.values()
    seconds = gradient_seconds(comm, MODEL, features, targets, (2, 4), 3, gpu.cupy)
    assert (seconds > 0).all()
    assert len(waits) == 2 * 4
    assert np.isinf(host_copy_bytes_per_second(2))
    assert np.isfinite(host_copy_bytes_per_second(2, gpu.cupy))


def test_the_mpi_library_itself_says_whether_it_takes_arrays_of_a_device(tmp_path):
    assert not devices.mpi_takes_device_arrays(None)
    assert not devices.mpi_takes_device_arrays(tmp_path / "none.so")
    for name, text, takes in (
        ("yes", "int MPIX_Query_cuda_support(void) { return 1; }", True),
        ("no", "int MPIX_Query_cuda_support(void) { return 0; }", False),
        ("silent", "int MPI_Init(void) { return 0; }", False),
    ):
        source, library = tmp_path / f"{name}.c", tmp_path / f"{name}.so"
        source.write_text(text)
        subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
        assert devices.mpi_takes_device_arrays(library) is takes


class Gpus:
    """Some GPUs of a machine."""

    def __init__(self):
        self.cuda, self.runtime, self.used = self, self, []

    def getDeviceCount(self):  # noqa: N802
        return 2

    def Device(self, number):  # noqa: N802
        self.used.append(number)
        return self

    def use(self):
        pass


def test_ranks_take_the_gpus_of_a_machine_in_turn(monkeypatch):
    gpus = Gpus()
    monkeypatch.setattr(devices, "gpu_library", lambda: gpus)
    for number in range(5):
        devices.take_device("gpu", number)
        devices.take_device("cpu", number)
    assert gpus.used == [0, 1, 0, 1, 0]


@pytest.mark.ranks(4)
def test_a_run_with_gpus_at_one_site_ends_as_one_without_and_is_calibrated(
    comm, gpu, shared_folder, monkeypatch
):
    """From files: `device = "gpu"` is all that differs."""
    monkeypatch.setattr(measuring, "COPIES_NBYTES", 1000)
    monkeypatch.setattr(measuring, "VECTOR_NBYTES", (400, 4000))
    for name in ("CODING_SECONDS", "MESSAGES_SECONDS"):
        monkeypatch.setattr(f"isthmus.measuring.calibrate.{name}", 0.01)
    path = lab(
        comm,
        shared_folder,
        cluster={"compute": "real"},
        plan={"replan": False},
        training={"epochs": 2, "batch_size": 60, "seed": 3},
        run={"trace": True},
    )
    hashes = []
    for device in ("cpu", "gpu"):
        if comm.rank == 0:
            table = cluster_of(2, 2, bytes_per_second=2e7)
            table["site"][0]["device"] = device
            (shared_folder / "cluster.toml").write_text(tomli_w.dumps(table))
        comm.Barrier()
        summary = train(comm, path, lambda line, passing=False: None)
        hashes.append(summary["parameter_hash"])
        traced = {
            event["name"]
            for event in json.loads(Path(summary["folder"], "trace.json").read_text())["traceEvents"]
            if event["ph"] == "X"
        }
        assert ("copy" in traced) == (device == "gpu")
        assert bool(gpu.locked) == (device == "gpu" and comm.rank < 2)
    assert hashes[0] == hashes[1]
    table = calibrate(comm, path, shared_folder / "measured.toml", 2, lambda line: None)
    cloud, edge = table["site"]
    assert (cloud["device"], "device" in edge) == ("gpu", False)
    assert cloud["host_copy_bytes_per_second"] > 0
    assert "host_copy_bytes_per_second" not in edge


@pytest.fixture
def programs(monkeypatch, repository):
    """The folder of `make gpu-test` and `make gpu-bench` can be imported from."""
    monkeypatch.syspath_prepend(str(repository / "experiments/gpu"))


@pytest.mark.ranks(4)
def test_the_check_for_a_machine_with_a_gpu_passes_here_and_finds_what_is_wrong(
    comm, gpu, programs, monkeypatch
):
    import check_collectives as program

    monkeypatch.setattr(program, "SITES", ((2, 2),))
    monkeypatch.setattr(program, "ON_GPU", ((0, 3),))
    monkeypatch.setattr(program, "STEPS", 1)
    chosen = list(program.exchanges())[::6]
    assert len(chosen) == 3
    monkeypatch.setattr(program, "exchanges", lambda: chosen)
    assert program.check_bits(comm, gpu.cupy, 5000, print) == []
    assert program.check_errors(comm, gpu.cupy, print, 1000) == []
    assert program.check_training(comm, gpu.cupy, print, hidden=2) == []
    one_off = gpu.cupy.asarray

    def spoilt(values, *more):
        values = np.array(values)
        values[-1:] += 1
        return one_off(values, *more)

    gpu.cupy.asarray = spoilt
    assert program.check_bits(comm, gpu.cupy, 5000, print)


def test_the_way_through_the_host_is_measured(gpu, programs):
    import host_path

    result = host_path.measure(gpu, 9000, 4, repetitions=2, warming=1)
    assert result["times_of_copies"] > 0
    assert sorted(each.nbytes for each in gpu.locked) == sorted(
        [isthmus.Int8().wire_nbytes(size) for size in (3072, 3072, 2856, 9000)]
    )
