"""`isthmus check`: what is broken is named, with the cure, and nothing else fails."""

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import test_cli
from clusters import cluster_of
from patience import launched
from test_cli import RUN, command, with_changes, write
from test_compiled import NO_FOLDER

import isthmus
from isthmus.checks import gpu, machine, mpi, ranks, slurm
from isthmus.checks.findings import exit_code, failed, grouped, passed, warned
from isthmus.errors import NoDeviceError, ranks_in_words
from isthmus.jobs.launch import rank_environment

pytestmark = pytest.mark.slow

lab = test_cli.lab  # the fixture
BESIDE = str(Path(sys.executable).parent)


def check(folder, ranks, *arguments, **environment):
    """Return (exit code, the table that was printed, the completed process)."""
    plain = {"COLUMNS": "200", "PATH": f"{BESIDE}:{os.environ['PATH']}"}
    done = launched(
        command(ranks, "check", *arguments, "--json"),
        cwd=folder,
        env=rank_environment(**(plain | environment)),
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def with_program(name, text):
    """Put a program first on the PATH."""

    def act(lab):
        program(lab / "bin" / name, text)
        return {"PATH": f"{lab / 'bin'}:{BESIDE}:{os.environ['PATH']}"}

    return act


def with_module(name, text, ranks=None):
    """Put a module before all others; `sitecustomize` runs as Python starts, on `ranks` alone."""

    def act(lab):
        guard = (
            "import os\nrank = os.environ.get('OMPI_COMM_WORLD_RANK', '0')\n"
            f"if rank in {[str(rank) for rank in ranks]}:\n"
            if ranks
            else ""
        )
        body = "".join(f"    {line}\n" for line in text.splitlines()) if ranks else text
        (lab / "modules").mkdir()
        (lab / "modules" / f"{name}.py").write_text(guard + body)
        return {"PYTHONPATH": str(lab / "modules")}

    return act


def with_environment(**variables):
    return lambda lab: variables


def with_run(changes=None, cluster=None):
    """Change the run's settings, and the cluster's table by `cluster(table)`."""

    def act(lab):
        table = cluster_of(1, 2)
        if cluster:
            cluster(table)
        write(lab, run=with_changes(RUN, changes or {}), cluster=table)
        return {}

    return act


def with_both(first, second):
    return lambda lab: first(lab) | second(lab)


def with_data(act_on_folder):
    def act(lab):
        act_on_folder(lab / "data/train")
        return {}

    return act


def other_set(lab):
    """Rank 2 sees another packed set in the same place."""
    arrays = {"features": np.ones((300, 16), "f4"), "targets": np.zeros(300, "u1")}
    isthmus.pack_shards(arrays, lab / "other", 20)
    return with_module(
        "sitecustomize",
        f"""\
import isthmus.shards.shard_file as module
first = module.ShardSet.open.__func__
module.ShardSet.open = classmethod(lambda kind, folder, *keys: first(
    kind, {str(lab / "other")!r} if str(folder).endswith("train") else folder, *keys))""",
        [2],
    )(lab)


UNSEEN = """\
import os, pathlib
there = pathlib.Path.is_dir
pathlib.Path.is_dir = lambda path: not str(path).endswith('data/train') and there(path)"""
ONE_FILE_LESS = """\
import os
every = os.scandir
class Entries(list):
    def __enter__(self): return self
    def __exit__(self, *_): pass
def scandir(path='.'):
    if not str(path).endswith('data/train'):
        return every(path)
    return Entries(entry for entry in every(path) if entry.name != 'shard-00007.h5')
os.scandir = scandir"""
SMALL_SHM = """\
import os
look = os.statvfs
def statvfs(path):
    found = tuple(look(path))
    return os.statvfs_result((4096, 4096, 256, 256, 256) + found[5:] if path == '/dev/shm' else found)
os.statvfs = statvfs"""
SLOW_CLOCK = "import time\nright = time.time\ntime.time = lambda: right() + 500"
ONE_CORE = "import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
BROKEN = "raise ImportError('planted')"

# name: (what breaks it, ranks, whether the run is checked too, subject, status, exit code, words, the
# ranks that say so or None for all)
BROKEN_ENVIRONMENTS = {
    "wrong mpirun first on the PATH": (
        with_program("mpirun", "echo 'HYDRA build details:'; echo '    Version: 4.1.2'"),
        0,
        False,
        "launcher",
        "FAIL",
        15,
        ["bin/mpirun", "HYDRA", "4.1.2", "Open MPI", f"{BESIDE}/mpirun"],
        None,
    ),
    "an older mpirun first on the PATH": (
        with_program("mpirun", "echo 'mpirun (Open MPI) 4.1.4'"),
        0,
        False,
        "launcher",
        "FAIL",
        15,
        ["4.1.4", "start with"],
        None,
    ),
    "mpirun is not on the PATH": (
        with_environment(PATH="/nowhere"),
        0,
        False,
        "launcher",
        "WARN",
        0,
        ["not on the PATH", "export PATH"],
        None,
    ),
    "ranks of another launcher": (
        with_environment(PMI_SIZE="3", PMI_RANK="0"),
        0,
        False,
        "launcher",
        "FAIL",
        15,
        ["started 3 ranks", "world of 1", "one build"],
        None,
    ),
    "a launcher of another version": (
        with_environment(OMPI_VERSION="4.1.4"),
        -2,
        False,
        "launcher",
        "FAIL",
        15,
        ["Open MPI 4.1.4", "start with"],
        None,
    ),
    "no MPI library": (
        with_environment(MPI4PY_LIBMPI="/nowhere/libmpi.so"),
        0,
        False,
        "MPI library",
        "FAIL",
        15,
        ["cannot be loaded", "MPI4PY_LIBMPI"],
        None,
    ),
    "MPI without threads": (
        with_environment(MPI4PY_RC_THREAD_LEVEL="single"),
        0,
        False,
        "MPI threads",
        "WARN",
        0,
        ["single", "unset MPI4PY_RC_THREAD_LEVEL"],
        None,
    ),
    "compiled code that cannot call MPI": (
        with_environment(NUMBA_DISABLE_JIT="1"),
        0,
        False,
        "MPI calls",
        "WARN",
        0,
        ["made by Python", "NUMBA_DISABLE_JIT is set", "unset NUMBA_DISABLE_JIT"],
        None,
    ),
    "ranks bound to one core": (
        with_module("sitecustomize", ONE_CORE),
        2,
        False,
        "cores",
        "WARN",
        0,
        ["2 ranks on 1 core"],
        None,
    ),
    "a clock that is wrong": (
        with_module("sitecustomize", SLOW_CLOCK, [1]),
        2,
        False,
        "clocks",
        "WARN",
        0,
        ["rank 1", "500 s ahead", "chrony"],
        None,
    ),
    "hardly any shared memory": (
        with_module("sitecustomize", SMALL_SHM, [1]),
        2,
        False,
        "shared memory",
        "FAIL",
        15,
        ["1 MiB free for 2 ranks", "--shm-size"],
        [1],
    ),
    "a TMPDIR that is not there": (
        with_environment(TMPDIR="/proc/nowhere"),
        0,
        False,
        "temporary folder",
        "FAIL",
        8,
        ["/proc/nowhere", "No such file", "TMPDIR"],
        None,
    ),
    "kernels that are not compiled": (
        with_environment(NUMBA_DISABLE_JIT="1"),
        0,
        False,
        "Numba",
        "WARN",
        0,
        ["100 times slower", "unset NUMBA_DISABLE_JIT"],
        None,
    ),
    "too many threads": (
        with_environment(NUMBA_NUM_THREADS="5000"),
        0,
        False,
        "Numba",
        "WARN",
        0,
        ["5000 threads", "NUMBA_NUM_THREADS"],
        None,
    ),
    "no place for kernels": (
        with_module("sitecustomize", NO_FOLDER),
        0,
        True,
        "kernel cache",
        "WARN",
        0,
        ["Read-only", "compiled anew", "set NUMBA_CACHE_DIR"],
        None,
    ),
    "another place for kernels": (
        with_environment(NUMBA_CACHE_DIR="/proc/nowhere"),
        0,
        False,
        "kernel cache",
        "WARN",
        0,
        ["/proc/nowhere", "kept in", "set NUMBA_CACHE_DIR"],
        None,
    ),
    "a Numba that is broken": (
        with_module("numba", BROKEN),
        0,
        False,
        "Numba",
        "FAIL",
        15,
        ["planted", "pip install"],
        None,
    ),
    "no HDF5 filters": (
        with_module("hdf5plugin", BROKEN),
        0,
        False,
        "HDF5 filters",
        "FAIL",
        5,
        ["planted", "pip install", "hdf5plugin"],
        None,
    ),
    "CuPy without a driver": (
        with_module("cupy", ""),
        0,
        False,
        "GPU",
        "WARN",
        0,
        ["no NVIDIA driver", "--gpus all"],
        None,
    ),
    "a Slurm that is down": (
        with_program("scontrol", "echo 'Slurmctld(primary) at here is DOWN'"),
        0,
        False,
        "Slurm",
        "WARN",
        0,
        ["does not answer", "scontrol ping"],
        None,
    ),
    "another allocation than the job": (
        with_environment(SLURM_JOB_ID="7", SLURM_NTASKS="5"),
        2,
        False,
        "Slurm",
        "WARN",
        0,
        ["job 7", "5 tasks, 2 ranks", "mpirun -n 5"],
        None,
    ),
    "no settings": (
        lambda lab: (lab / "run.toml").unlink() or {},
        0,
        True,
        "settings",
        "FAIL",
        3,
        ["run.toml: no such file"],
        None,
    ),
    "a key that is not known": (
        with_run({"training.batchsize": 3}),
        3,
        True,
        "settings",
        "FAIL",
        3,
        ["training.batchsize", "did you mean 'batch_size'"],
        None,
    ),
    "no write access": (
        lambda lab: (lab / "runs").write_text("") or {},
        3,
        True,
        "output folder",
        "FAIL",
        8,
        ["runs", "cannot be written", "run.folder"],
        [0],
    ),
    "a cluster that is wrong": (
        with_run(cluster=lambda table: table.update(site=[])),
        0,
        True,
        "cluster",
        "FAIL",
        4,
        ["cluster.toml: site"],
        None,
    ),
    "too many ranks": (
        with_run(),
        4,
        True,
        "cluster",
        "FAIL",
        4,
        ["3 ranks, this job has 4", "mpirun -n 3"],
        None,
    ),
    "a host that the job does not have": (
        with_run(cluster=lambda table: table["site"][1].update(hosts=["moon"])),
        3,
        True,
        "cluster",
        "FAIL",
        4,
        ["moon", "`hosts`"],
        None,
    ),
    "rates that were not measured": (
        with_run(),
        0,
        True,
        "rates",
        "WARN",
        0,
        ["cluster.toml", "isthmus calibrate"],
        None,
    ),
    "a GPU that is not there": (
        with_both(
            with_module("cupy", BROKEN),
            with_run(cluster=lambda table: table["site"][1].update(device="gpu")),
        ),
        3,
        True,
        "device",
        "FAIL",
        10,
        ['device = "gpu"', "planted", 'set device = "cpu"'],
        [1, 2],
    ),
    "low rank on a GPU": (
        with_both(
            with_module("cupy", BROKEN),
            with_run(
                {"allreduce.compressor": "low_rank"}, lambda table: table["site"][1].update(device="gpu")
            ),
        ),
        0,
        True,
        "device",
        "FAIL",
        10,
        ["low_rank encodes on CPUs", "another compressor", "planted"],
        [0, 0],
    ),
    "no data": (
        with_data(shutil.rmtree),
        3,
        True,
        "data train",
        "FAIL",
        5,
        ["no rank sees", "isthmus pack"],
        None,
    ),
    "no data on one host": (
        with_module("sitecustomize", UNSEEN, [1]),
        3,
        True,
        "data train",
        "WARN",
        0,
        ["not seen here", "from rank 0", "copy"],
        [1],
    ),
    "a shard missing on one host": (
        with_module("sitecustomize", ONE_FILE_LESS, [2]),
        3,
        True,
        "data train",
        "FAIL",
        5,
        ["1 of 20 shards", "shard-00007.h5", "copy"],
        [2],
    ),
    "another set on one host": (
        other_set,
        3,
        True,
        "data train",
        "FAIL",
        5,
        ["different sets", "copy one set"],
        None,
    ),
    "a shard that is cut": (
        with_data(lambda folder: (folder / "shard-00000.h5").write_bytes(b"cut")),
        0,
        True,
        "data train",
        "FAIL",
        5,
        ["shard-00000.h5", "again"],
        None,
    ),
    "a model of other inputs": (
        with_run({"model.inputs": 17}),
        0,
        True,
        "data train",
        "FAIL",
        5,
        ["16 numbers a sample", "17"],
        None,
    ),
    "a site that does not exist": (
        with_run({"plan.pinned": {"0": "moon"}}),
        0,
        True,
        "plan",
        "FAIL",
        6,
        ["'moon'", "known sites"],
        None,
    ),
    "bits taken for bytes": (
        with_run(cluster=lambda table: table["link"][0].update(bytes_per_second=1e9)),
        0,
        True,
        "plan",
        "WARN",
        0,
        ["bits per second", "mend the link"],
        None,
    ),
    "no room": (
        with_run(cluster=lambda table: [site.update(storage_nbytes=100.0) for site in table["site"]]),
        3,
        True,
        "plan",
        "FAIL",
        6,
        ["storage"],
        None,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN_ENVIRONMENTS)
def test_what_is_broken_is_named(lab, name):
    breaks, job_ranks, with_settings, subject, status, code, words, speakers = BROKEN_ENVIRONMENTS[name]
    environment = breaks(lab)
    if job_ranks < 0:  # variables that mpirun sets itself
        job_ranks, exported = -job_ranks, environment
        environment = with_module("sitecustomize", f"import os\nos.environ.update({exported})")(lab)
    returned, made, done = check(lab, job_ranks, *(["run.toml"] if with_settings else []), **environment)
    found = [
        group for group in made["findings"] if group["subject"] == subject and group["status"] == status
    ]
    assert found, done.stdout
    assert returned == made["exit_code"] == code, done.stdout
    for word in words:
        assert any(word in f"{group['found']}; {group['cure']}" for group in found), (word, found)
    expected = list(range(made["ranks"])) if speakers is None else speakers
    assert sorted(rank for group in found for rank in group["ranks"]) == expected
    fails = {group["subject"] for group in made["findings"] if group["status"] == "FAIL"}
    follow = {"a model of other inputs": {"data test"}}
    assert fails - follow.get(name, set()) <= {subject}, done.stdout
    passes = {group["subject"] for group in made["findings"] if group["status"] == "PASS"}
    assert made["ranks"] > 1 or passes.isdisjoint(fails), done.stdout
    assert "Traceback" not in done.stderr


def test_a_machine_that_is_fit_passes(lab):
    code, made, done = check(lab, 0)
    assert code == made["exit_code"] == 0, done.stdout
    assert made["status"] in ("PASS", "WARN")
    subjects = [group["subject"] for group in made["findings"]]
    for subject in (
        "MPI library",
        "fault tolerance",
        "MPI calls",
        "MPI threads",
        "launcher",
        "cores",
        "shared memory",
        "temporary folder",
        "CPU",
        "Numba",
        "kernel cache",
        "HDF5 filters",
        "GPU",
        "Slurm",
        "output folder",
    ):
        assert subjects.count(subject) == 1, subject
    assert all(group["cure"] for group in made["findings"] if group["status"] != "PASS")


def test_a_run_that_is_fit_passes_on_every_rank_and_leaves_nothing(lab):
    write(lab, cluster=cluster_of(1, 2, bytes_per_second=9e7))
    before = sorted(lab.rglob("*"))
    code, made, done = check(lab, 3, "run.toml")
    assert code == 0, done.stdout
    lines = {group["subject"]: group for group in made["findings"]}
    for subject in ("clocks", "settings", "cluster", "data train", "data test", "plan"):
        assert lines[subject]["status"] == "PASS"
        assert lines[subject]["ranks"] == [0, 1, 2]
    assert lines["output folder"]["ranks"] == [0]
    assert sorted(lab.rglob("*")) == before


def test_another_cluster_file_is_checked_in_place_of_the_settings(lab):
    (lab / "cluster.toml").rename(lab / "other.toml")
    code, made, done = check(lab, 0, "run.toml", "--cluster", "other.toml")
    assert code == 0, done.stdout
    assert any(group["subject"] == "plan" and group["status"] != "FAIL" for group in made["findings"])
    assert check(lab, 0, "run.toml")[0] == 4
    alone = launched(command(0, "check", "--cluster", "other.toml"), cwd=lab, env=rank_environment())
    assert alone.returncode == 2
    assert "add RUN.toml" in alone.stderr


def test_words_are_lines_with_their_cures(lab):
    write(lab, run=with_changes(RUN, {"plan.pinned": {"0": "moon"}}))
    done = launched(command(0, "check", "run.toml"), cwd=lab, env=rank_environment())
    assert done.returncode == 6
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("FAIL  plan")]
    assert lines[place + 1].split()[0] == "cure:"
    assert "1 FAIL" in lines[-1]


def test_ranks_of_another_launcher_leave_the_word_to_the_first(lab):
    """Each has a world of its own; a launcher ends all ranks when one of them ends with a code."""
    third = rank_environment(PMI_SIZE="3", PMI_RANK="1")
    done = launched(command(0, "check", "--json"), cwd=lab, env=third)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_equal_answers_are_one_line_and_the_first_failure_gives_the_code():
    a, b = passed("x", "well"), failed("x", "bad", "mend", isthmus.IsthmusError)
    groups = grouped([[a, warned("y", "slow", "wait")], [b], [a]], ["h0", "h1", "h0"])
    assert [(group["subject"], group["status"], group["ranks"], group["hosts"]) for group in groups] == [
        ("x", "PASS", [0, 2], ["h0"]),
        ("x", "FAIL", [1], ["h1"]),
        ("y", "WARN", [0], ["h0"]),
    ]
    machine_fails = failed("z", "bad", "mend")
    assert exit_code(grouped([[machine_fails]], ["h"])) == 15
    assert exit_code(grouped([[a]], ["h"])) == 0
    assert ranks_in_words([0, 1, 2, 5]) == "ranks 0-2, 5"
    assert ranks_in_words([3]) == "rank 3"


def test_what_cannot_be_broken_here_is_judged_by_its_facts(monkeypatch, tmp_path):
    monkeypatch.delenv("OMPI_MCA_mpi_ft_enable", raising=False)
    assert mpi.fault_tolerance().status == "PASS"
    monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1")
    assert "a run goes on without ranks" in mpi.fault_tolerance().found
    monkeypatch.setenv("OMPI_MCA_btl", "self,sm")
    assert mpi.transports(["a", "a"]).status == "PASS"
    assert mpi.transports(["a", "b"]).status == "FAIL"
    monkeypatch.setenv("OMPI_MCA_pml", "ucx")
    assert mpi.transports(["a", "b"]) is None
    monkeypatch.delenv("OMPI_MCA_pml")
    monkeypatch.setenv("OMPI_MCA_btl", "tcp,self")
    assert mpi.transports(["a", "b"]).status == "PASS"
    assert machine.cpu("x86_64", {"sse2"}).status == "WARN"
    assert machine.cpu("x86_64", {"avx2", "avx512f"}).found.endswith("AVX-512")
    assert machine.shared_memory(tmp_path / "none").status == "WARN"
    assert machine.memory([10, 20, 5], ["a", "a", "b"], {"a": 30, "b": 5}) is None
    assert "a 2.7" in machine.memory([10, 20], ["a", "a"], {"a": 29, "b": 5}).found
    assert machine.memory([10], ["a"], {"a": None}) is None
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun\n")
    (no_cupy,) = gpu.gpu(driver)
    assert (no_cupy.status, "580.65.06" in no_cupy.found) == ("WARN", True)

    def too_old():
        raise NoDeviceError("no GPU can be used: this one has compute capability 6.0")

    monkeypatch.setattr(gpu, "gpu_library", too_old)
    assert "580.65, but no GPU can be used" in gpu.devices("580.65").found
    assert gpu.cuda_aware("/nowhere/libmpi.so").status == "WARN"
    for name, tasks in (("SLURM_NTASKS_HET_GROUP_0", "2"), ("SLURM_NTASKS_HET_GROUP_1", "3")):
        monkeypatch.setenv(name, tasks)
    assert slurm.tasks_allocated() == 5


def test_cores_are_counted_by_host_and_by_quota(tmp_path):
    def facts(*cores, quota=None, of=8, spins=False):
        return {"cores": list(cores), "quota": quota, "of": of, "spins": spins}

    two_hosts = {"a": [0, 1], "b": [2]}
    on_a, on_b = ranks.cores_for_ranks([facts(0), facts(0), facts(0)], two_hosts)
    assert (on_a.status, on_b.status) == ("WARN", "PASS")
    assert "--bind-to none" in on_a.cure
    few = [facts(0, 1, of=2)] * 3
    (crowded,) = ranks.cores_for_ranks(few, {"a": [0, 1, 2]})
    assert "3 ranks on 2 cores" in crowded.found
    (spinning,) = ranks.cores_for_ranks([facts(0, 1, of=2, spins=True)] * 3, {"a": [0, 1, 2]})
    assert "unset OMPI_MCA_mpi_yield_when_idle" in spinning.cure
    (limited,) = ranks.cores_for_ranks([facts(*range(8), quota=1.5)] * 2, {"a": [0, 1]})
    assert "2 ranks on 1 core" in limited.found
    (threaded,) = ranks.cores_for_ranks([facts(0, 1, of=2)] * 2, {"a": [0, 1]}, threads=2)
    assert "of 2 threads" in threaded.found
    (planned,) = ranks.cores_for_ranks([facts(0, 1, of=2)], {"a": [0]}, planned=3, started=False)
    assert "--oversubscribe" in planned.cure
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert ranks.cpu_quota(tmp_path / "cpu.max") == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert ranks.cpu_quota(tmp_path / "cpu.max") is None
    assert ranks.cpu_quota(tmp_path / "none") is None


@pytest.mark.ranks(3)
def test_a_clock_that_is_behind_is_told(comm, monkeypatch):
    import time

    right = time.time
    if comm.rank == 2:
        monkeypatch.setattr(time, "time", lambda: right() - 0.25)
    assert "rank 2" in ranks.clocks(comm).found


@pytest.mark.ranks(3)
def test_paced_links_are_for_one_host(comm):
    from types import SimpleNamespace

    from isthmus.checks import run  # it needs MPI, which the process that starts ranks must not
    from isthmus.jobs.settings import RunSettings

    paced = RunSettings.model_validate(with_changes(RUN, {"cluster.links": "paced"}))
    assert run.links(SimpleNamespace(hosts=["a", "a"]), paced).status == "PASS"
    apart = run.links(SimpleNamespace(hosts=["a", "b"]), paced)
    assert (apart.status, apart.error) == ("FAIL", "SettingsError")
    assert run.links(SimpleNamespace(hosts=["a", "b"]), RunSettings.model_validate(RUN)) is None
