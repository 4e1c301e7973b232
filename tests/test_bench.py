"""`isthmus bench`: what it measures adds up, what it writes can be read, what is wrong is told once."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from matplotlib.image import imread
from patience import launched

import isthmus
from isthmus.benchmarking.bounds import bound_seconds
from isthmus.benchmarking.kernels import KERNELS, Arrays, KernelOptions, share_of_triad
from isthmus.benchmarking.links import pairs
from isthmus.benchmarking.options import CollectivesOptions, LinksOptions, named_compressor, sizes_nbytes
from isthmus.benchmarking.spread import spread_of
from isthmus.errors import EmulationError, ReplicaError
from isthmus.jobs.launch import mpirun, rank_environment
from isthmus.kernels import NAMES
from isthmus.testbed import own_counters

pytestmark = pytest.mark.slow

ISTHMUS = [sys.executable, "-m", "isthmus"]
LATENCY_SECONDS, BYTES_PER_SECOND = 0.003, 2e7
PROVENANCE = {"version", "started", "command", "commit", "python", "versions", "processor"}


def call(folder, ranks, *arguments):
    start = [mpirun(), "-n", str(ranks)] if ranks else []
    command = [*start, *ISTHMUS, "bench", *arguments]
    return launched(command, cwd=folder, env=rank_environment(COLUMNS="200"))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a cluster file of one cloud rank and two edge ranks."""
    folder = tmp_path_factory.mktemp("bench")
    table = cluster_of(1, 2, latency_seconds=LATENCY_SECONDS, bytes_per_second=BYTES_PER_SECOND)
    (folder / "cluster.toml").write_text(tomli_w.dumps(table))
    (folder / "alone.toml").write_text(tomli_w.dumps(cluster_of(1)))
    return folder


@pytest.fixture(scope="module")
def collectives(lab):
    """What a run on paced links says, writes to its folder, and tells."""
    done = call(
        lab,
        3,
        "collectives",
        "cluster.toml",
        "--links",
        "paced",
        "--smallest",
        16,
        "--largest",
        100_000,
        "--repetitions",
        3,
        "--compressor",
        "none",
        "--compressor",
        "top_k:ratio=0.1",
        "--compressor",
        "int8:block=16",
        "--output",
        "out",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), lab / "out", done.stderr


def test_every_size_algorithm_and_compressor_is_measured(collectives):
    answer, _, told = collectives
    results = answer["results"]
    assert {(result["algorithm"], result["compressor"]) for result in results} >= {
        ("ring", "none"),
        ("hierarchical", "none"),
        ("hierarchical", "top_k:ratio=0.1"),
        ("hierarchical", "int8:block=16"),
    }
    assert not any(result["algorithm"] == "mpi" for result in results)
    for chosen in {(result["algorithm"], result["compressor"]) for result in results}:
        assert [
            result["nbytes"]
            for result in results
            if (result["algorithm"], result["compressor"]) == chosen
        ] == [16, 64, 256, 1024, 4096, 16384, 100_000]
    for result in results:
        spread = result["seconds_spread"]
        assert (
            0
            < spread["least"]
            <= spread["lower_quartile"]
            <= spread["median"]
            <= spread["upper_quartile"]
            <= spread["most"]
        )
        assert result["median_seconds"] == spread["median"]
        assert 2 <= result["repetitions"] <= 3
        assert result["ranks"] == 3
        assert result["interface_nbytes"] is None
        assert result["same_bits"]
    assert sum(line.split()[0].isdigit() for line in told.splitlines()) == len(results)


def test_counted_bytes_over_the_cut_equal_the_formula(collectives):
    for result in collectives[0]["results"]:
        assert {(way["source"], way["target"]) for way in result["cut"]} == {
            ("site0", "site1"),
            ("site1", "site0"),
        }
        for way in result["cut"]:
            assert way["counted_nbytes"] == way["formula_nbytes"]
            if result["algorithm"] == "hierarchical":
                wire = named_compressor(result["compressor"]) or isthmus.Dense()
                assert way["counted_nbytes"] == wire.wire_nbytes(result["nbytes"] // 4)


def test_no_paced_allreduce_beats_the_bound(collectives):
    """The model itself is above the bound, and so is every repetition."""
    for result in collectives[0]["results"]:
        assert result["bound_seconds"] > LATENCY_SECONDS
        assert result["seconds_spread"]["least"] >= 0.98 * result["bound_seconds"]
        assert result["predicted_seconds"] >= 0.999 * result["bound_seconds"]


def test_each_line_of_the_file_says_what_made_it_and_the_picture_is_there(collectives):
    answer, folder, _ = collectives
    lines = lines_of(folder / "bench_collectives.jsonl")
    assert [{key: line[key] for key in result} for line, result in zip(lines, answer["results"])] == (
        answer["results"]
    )
    for line in lines:
        assert line.keys() >= PROVENANCE | {"hosts", "mpi_library"}
        assert "bench" in line["command"]
        assert len(line["hosts"]) == 3
    assert (folder / "bench_collectives.svg").read_text().count("bound L + n b / B") == 1
    assert imread(folder / "bench_collectives.png").std() > 0.01
    assert not list(folder.glob("*.partial"))


@pytest.mark.slow
def test_mpi_s_own_allreduce_is_measured_on_real_links(lab):
    done = call(
        lab,
        3,
        "collectives",
        "cluster.toml",
        "--algorithm",
        "mpi",
        "--smallest",
        64,
        "--largest",
        256,
        "--repetitions",
        2,
        "--compressor",
        "none",
        "-o",
        "mpi",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("results: mpi/bench_collectives.jsonl")
    lines = lines_of(lab / "mpi/bench_collectives.jsonl")
    assert [(line["algorithm"], line["nbytes"], line["cut"]) for line in lines] == [
        ("mpi", 64, []),
        ("mpi", 256, []),
    ]  # MPI does not tell to whom it sends


@pytest.mark.alone
def test_links_are_measured_beside_what_the_file_says(lab):
    done = call(
        lab,
        3,
        "links",
        "cluster.toml",
        "--links",
        "paced",
        "--largest",
        20_000,
        "--repetitions",
        3,
        "-o",
        "links",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    between = [result for result in results if result["source"] != result["target"]]
    assert {(result["kind"], *result["ranks"]) for result in between} == {
        ("ping-pong", 0, 1),
        ("one way", 0, 1),
        ("one way", 1, 0),
        ("both ways at once", 0, 1),
        ("both ways at once", 1, 0),
    }
    assert {tuple(sorted(result["ranks"])) for result in results} == {(0, 1), (1, 2)}
    for result in between:
        if result["kind"] == "ping-pong":
            assert result["file_seconds"] == pytest.approx(
                LATENCY_SECONDS + result["nbytes"] / BYTES_PER_SECOND
            )
            assert result["seconds_spread"]["least"] >= 0.98 * result["file_seconds"]
        else:
            assert result["file_bytes_per_second"] == BYTES_PER_SECOND
            assert result["bytes_per_second"] > 0.02 * BYTES_PER_SECOND
            assert result["bytes_per_second_spread"]["least"] < 1.1 * BYTES_PER_SECOND
    assert len(lines_of(lab / "links/bench_links.jsonl")) == len(results)
    assert (lab / "links/bench_links.svg").exists()


def test_kernels_are_measured_beside_a_triad(lab):
    done = call(
        lab,
        0,
        "kernels",
        "add",
        "encode_int8",
        "--nbytes",
        65536,
        "--repetitions",
        2,
        "-o",
        "kernels",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [result["kernel"] for result in results] == ["add", "encode_int8"]
    for result in results:
        assert result["elements"] == 16384
        assert result["share_of_triad"] > 0
    lines = lines_of(lab / "kernels/bench_kernels.jsonl")
    assert [line["kernel"] for line in lines] == ["add", "encode_int8"]
    assert lines[0].keys() >= PROVENANCE


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_of_the_table_runs(name):
    assert name.removesuffix("_stochastic") in NAMES
    shares, seconds = share_of_triad(name, Arrays(nbytes=8192), repetitions=1)
    assert len(shares) == len(seconds) == 1
    assert shares[0] > 0


@pytest.mark.parametrize(
    ("ranks", "code", "arguments", "words"),
    [
        (2, 4, ("collectives", "cluster.toml"), ["3 ranks, this job has 2", "mpirun -n 3"]),
        (0, 4, ("links", "alone.toml"), ["alone.toml: one site of one rank has no links"]),
        (2, 4, ("links", "no.toml"), ["no.toml: no such file"]),
        (3, 8, ("links", "cluster.toml", "-o", "cluster.toml/out"), ["cannot be written", "--output"]),
    ],
)
def test_a_mistake_is_told_once_in_one_line(lab, ranks, code, arguments, words):
    done = call(lab, ranks, *arguments)
    assert done.returncode == code, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("isthmus:")]
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in told


@pytest.mark.parametrize(
    ("ranks", "arguments"),
    [
        (2, ("collectives", "cluster.toml", "--algorithm", "star")),
        (0, ("collectives", "cluster.toml", "--largest", -4)),
        (0, ("kernels", "multiply")),
    ],
)
def test_wrong_arguments_end_with_code_2_once(lab, ranks, arguments):
    done = call(lab, ranks, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("isthmus: ") == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CollectivesOptions(algorithms=("star",)), "algorithm must be one of mpi, ring"),
        (lambda: CollectivesOptions(compressors=("zip",)), "one of none, dense, int8.*'zip'"),
        (lambda: CollectivesOptions(compressors=("top_k:ratio=2",)), "ratio must be in"),
        (lambda: CollectivesOptions(compressors=("int8:block=many",)), "int8:block=many"),
        (lambda: CollectivesOptions(compressors=("int8:size=4",)), "a key of block, rounding"),
        (lambda: CollectivesOptions(links="slow"), "links must be one of real, paced"),
        (lambda: CollectivesOptions(links="paced", algorithms=("mpi",)), "cannot be paced"),
        (lambda: CollectivesOptions(algorithms=("mpi",), compressors=("int8",)), '"mpi" sends exact'),
        (lambda: CollectivesOptions(smallest_nbytes=6), "multiple of 4 bytes, not 6"),
        (lambda: LinksOptions(smallest_nbytes=64, largest_nbytes=16), "64, is more than largest, 16"),
        (lambda: KernelOptions(names=("multiply",)), "'multiply'; known kernels: add"),
    ],
)
def test_options_are_checked_at_birth(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_algorithm_goes_with_the_compressors_that_it_can_use():
    assert CollectivesOptions(algorithms=("ring", "hierarchical")).combinations == [
        ("ring", "none"),
        ("hierarchical", "none"),
        ("hierarchical", "int8"),
    ]
    assert ("mpi", "none") in CollectivesOptions().combinations
    assert ("mpi", "none") not in CollectivesOptions(links="paced").combinations


def test_sizes_grow_by_four_from_the_smallest_to_the_largest():
    assert sizes_nbytes(4, 4) == [4]
    assert sizes_nbytes(4, 64) == [4, 16, 64]
    assert sizes_nbytes(4, 100) == [4, 16, 100]
    default = sizes_nbytes(4, 100_000_000)
    assert (default[0], default[-1], len(default)) == (4, 100_000_000, 13)


def test_a_compressor_is_named_with_its_arguments():
    assert named_compressor("none") is None
    assert named_compressor("top_k:ratio=0.5") == isthmus.TopK(0.5)
    assert named_compressor("top_k:ratio=0.02,bits=2") == isthmus.TopK(0.02, bits=2)
    assert named_compressor("int8:block=64,rounding=stochastic") == isthmus.Int8(64, "stochastic")


def test_the_bound_is_that_of_the_narrowest_way():
    table = cluster_of(1, 1, 1, latency_seconds=0.01, bytes_per_second=1e6)
    table["link"][1]["bytes_per_second"] = 1e5
    cluster = isthmus.Cluster(table)
    assert bound_seconds(cluster, 4000) == pytest.approx(0.01 + 4000 / 1e5)
    assert bound_seconds(cluster, 4000, isthmus.Int8(250)) == pytest.approx(0.01 + 1016 / 1e5)
    assert bound_seconds(isthmus.Cluster(cluster_of(3)), 4000) == 0


def test_pairs_are_leaders_of_linked_sites_and_neighbours_inside_sites():
    assert pairs(isthmus.Cluster(cluster_of(3, 1, 2))) == [(0, 3), (0, 4), (0, 1), (1, 2), (4, 5)]


def test_a_spread_is_in_order():
    assert list(spread_of([5.0, 1.0, 3.0, 4.0, 2.0]).values()) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_interfaces_are_read_on_a_testbed_alone(monkeypatch):
    monkeypatch.delenv("ISTHMUS_TESTBED", raising=False)
    assert own_counters() is None
    monkeypatch.setenv("ISTHMUS_TESTBED", "nobodys")
    with pytest.raises(EmulationError, match="none is up"):
        own_counters()


@pytest.mark.ranks(2)
def test_ranks_that_end_with_different_bits_are_found(comm):
    from isthmus.benchmarking.collectives import check_same_bits

    mean = np.ones(3, "f4")
    check_same_bits(comm, mean, "ring", "none", 12)
    if comm.rank == 1:
        mean[2] = np.nextafter(mean[2], np.float32(2))
    with pytest.raises(ReplicaError, match="ring .*different bits.*rank 1"):
        check_same_bits(comm, mean, "ring", "none", 12)


def test_help_fits_a_terminal_of_80_columns():
    for verb in ((), ("collectives",)):
        done = subprocess.run(
            [*ISTHMUS, "bench", *verb, "--help"],
            text=True,
            capture_output=True,
            env={**os.environ, "COLUMNS": "80"},
        )
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.ranks(3)
@pytest.mark.parametrize("same_machine", [True, False])
def test_ranks_start_at_one_instant(comm, same_machine):
    """Also where each machine's clock has a zero of its own, and where a rank comes late."""
    from isthmus.links.common_clock import CommonClock

    zero = 0.0 if same_machine else 1000.0 * comm.rank
    common = CommonClock(
        comm,
        lambda: time.perf_counter() + zero,
        machine=None if same_machine else f"machine {comm.rank}",
    )
    for late in range(3):
        time.sleep(0.02 * (comm.rank == late))
        before = common.clock()
        instant = common.start()
        assert before < instant <= common.clock()
        instants = comm.allgather(instant - zero)
        assert max(instants) - min(instants) < (1e-9 if same_machine else 0.2)
