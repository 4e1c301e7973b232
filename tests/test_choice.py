"""The planner's choice of an allreduce: the fastest within the error that is allowed."""

import pytest
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tree_planning import matrix

import isthmus
from isthmus.collectives import of_mpi
from isthmus.collectives.alike import sums_alike
from isthmus.collectives.of_mpi import OfMPI
from isthmus.compression.chunks import WIRE_NBYTES
from isthmus.jobs.choosing import arrange, choose
from isthmus.jobs.preparation import chosen_allreduce
from isthmus.jobs.settings import RunSettings
from isthmus.measuring import contenders as measuring
from isthmus.timing.choice import CHUNK_NBYTES, choose_allreduce, error_of, gaussian_error

RUN = {
    "cluster": {"file": "c.toml"},
    "data": {"train": "a", "test": "b"},
    "model": {"kind": "perceptron", "inputs": 100, "hidden": [200]},
}


@given(
    st.sampled_from([(4,), (2, 2), (1, 3), (1, 2, 1)]),
    st.integers(0, 10**7),
    st.floats(0, 1),
    st.floats(1e5, 1e11),
    st.floats(0, 0.1),
)
@settings(max_examples=60)
def test_nothing_within_the_error_is_predicted_to_be_faster(sites, size, error, rate, latency):
    cluster = isthmus.Cluster(cluster_of(*sites, bytes_per_second=rate, latency_seconds=latency))
    choice = choose_allreduce(cluster, size, largest_error=error)
    assert choice.best.error <= error
    for other in choice.candidates:
        assert other.error > error or other.seconds >= choice.best.seconds
    again = isthmus.predict_allreduce(
        cluster,
        size,
        algorithm=choice.best.algorithm,
        compressor=choice.best.compressor,
        chunk_nbytes=choice.best.chunk_nbytes,
    )
    assert again.seconds == choice.best.seconds


def test_a_narrow_link_compresses_as_far_as_the_error_allows():
    cluster = isthmus.Cluster(cluster_of(2, 2, bytes_per_second=1e6))
    chosen = [
        choose_allreduce(cluster, 10**6, largest_error=error).best.compressor
        for error in (0, 1e-6, 1e-4, 0.016, 0.37)
    ]
    assert chosen == [None, isthmus.Dense("float16"), isthmus.Int8(), isthmus.Int4(), isthmus.OneBit()]


def test_encoding_that_is_slower_than_the_link_does_not_pay():
    table = cluster_of(2, 2, bytes_per_second=1e9)
    for site in table["site"]:
        site["encode_bytes_per_second"] = 1e8
    choice = choose_allreduce(isthmus.Cluster(table), 10**6, largest_error=1.0)
    assert choice.best.compressor is None


def test_a_message_that_costs_much_makes_chunks_long():
    table = cluster_of(2, 2, bytes_per_second=1.25e7)
    for site in table["site"]:
        site["network"] = {"latency_seconds": 0.0, "bytes_per_second": 1e7}
    short = choose_allreduce(isthmus.Cluster(table), 20_000, algorithms=()).best.chunk_nbytes
    for site in table["site"]:
        site["message_seconds"] = 0.01
    long = choose_allreduce(isthmus.Cluster(table), 20_000, algorithms=()).best.chunk_nbytes
    assert short in CHUNK_NBYTES
    assert short < long == WIRE_NBYTES


@pytest.mark.parametrize(
    ("compressor", "largest"),
    [
        (isthmus.Int8(), 5.2e-5),
        (isthmus.Int4(), 1.6e-2),
        (isthmus.OneBit(), 0.364),
        (isthmus.Dense("float16"), 1e-7),
        (isthmus.Dense(), 0),
    ],
)
def test_the_error_on_gaussian_vectors_is_what_it_is_said_to_be(compressor, largest):
    assert gaussian_error(compressor) <= largest
    two, three, one = (isthmus.Cluster(cluster_of(*sites)) for sites in ((1, 1), (1, 1, 1), (2,)))
    assert error_of(three, 100, compressor) == 2 * error_of(two, 100, compressor)
    assert error_of(one, 100, compressor) == 0


def test_what_cannot_be_chosen_is_said():
    cluster = isthmus.Cluster(cluster_of(2, 2))
    with pytest.raises(ValueError, match="from 0 to 1, not 2"):
        choose_allreduce(cluster, 10, largest_error=2)
    with pytest.raises(ValueError, match="no candidate keeps an error of 0"):
        choose_allreduce(cluster, 10, compressors=(isthmus.Int8(),), algorithms=())


@pytest.mark.parametrize(
    ("allreduce", "links", "expected"),
    [
        ({}, "real", ("hierarchical", None)),
        ({"algorithm": "auto"}, "paced", ("hierarchical", "int8")),
        ({"algorithm": "auto", "compressor": "one_bit"}, "real", ("hierarchical", "one_bit")),
        (
            {"algorithm": "auto", "compressor": {"kind": "low_rank", "rank": 2}},
            "real",
            ("hierarchical", "low_rank"),
        ),
    ],
)
def test_settings_that_say_auto_get_an_algorithm_and_a_reason(allreduce, links, expected):
    wanted = RunSettings.model_validate(
        RUN | {"allreduce": allreduce, "cluster": {"file": "c.toml", "links": links}}
    )
    got, why = choose(wanted, isthmus.Cluster(cluster_of(2, 2, bytes_per_second=1e6)))
    compressor = got.allreduce.compressor
    assert (got.allreduce.algorithm, compressor and compressor.kind) == expected
    assert (why is None) == ("algorithm" not in allreduce)
    assert RunSettings.from_json(got.to_json(), "here").make_compressor() == got.make_compressor()
    if why:
        assert why["reason"].startswith("hierarchical with")


def test_auto_never_chooses_what_cannot_be_paced():
    """One fast network and ranks that are alike: halving wins where it may."""
    table = cluster_of(8, bytes_per_second=1e9)
    run = RUN | {"allreduce": {"algorithm": "auto", "largest_error": 0}}
    for links in ("real", "paced"):
        wanted = RunSettings.model_validate(run | {"cluster": {"file": "c.toml", "links": links}})
        got, why = choose(wanted, isthmus.Cluster(table))
        names = [each["name"] for each in why["candidates"]]
        assert ("recursive" in names) == (links == "real")
        assert got.allreduce.algorithm != "auto"


def calibrated(table, ranks, **contenders):
    """Return the cluster as if calibration had found MPI's own to be as foretold, and these factors."""
    table["calibration"] = {
        "ranks": ranks,
        "allreduce": {"nbytes": [4, 10**8], "factors": [1, 1], "low": [1, 1], "high": [1, 1]},
        "contenders": [
            {"name": name, "nbytes": [1000, 1000_000], "factors": factors}
            for name, factors in contenders.items()
        ],
    }
    return isthmus.Cluster(table)


def test_what_calibration_has_measured_decides_and_mpi_is_tried_where_it_was():
    def chosen(size, ranks=4, **contenders):
        table = cluster_of(4, bytes_per_second=1e9)
        return choose_allreduce(calibrated(table, ranks, **contenders), size)

    assert chosen(250).best.algorithm == "doubling"
    assert chosen(250, mpi=[0.5, 1.0]).best.algorithm == "mpi"
    assert "mpi" not in {each.algorithm for each in chosen(250, ranks=3).candidates}  # of other ranks
    assert chosen(250, mpi=[50.0, 1.0]).best.algorithm != "mpi"
    assert chosen(250_000, mpi=[50.0, 0.5]).best.algorithm == "mpi"
    plain = isthmus.Cluster(cluster_of(4, bytes_per_second=1e9))
    ends = [isthmus.predict_allreduce(plain, size, algorithm="ring").seconds for size in (250, 250_000)]
    for size, seconds in ((125_125, 0.75 * ends[0] + 0.125 * ends[1]), (250_000, 0.25 * ends[1])):
        told = {each.name: each.seconds for each in chosen(size, ring=[1.5, 0.25]).candidates}
        assert told["ring"] == pytest.approx(seconds)
    beyond = isthmus.predict_allreduce(plain, 10**6, algorithm="ring").seconds
    for factor, seconds in ((0.25, beyond - 0.75 * ends[1]), (1.5, 1.5 * beyond)):
        told = {each.name: each.seconds for each in chosen(10**6, ring=[1.0, factor]).candidates}
        assert told["ring"] == pytest.approx(seconds)  # what a burst saves does not grow


def test_trees_and_rings_are_planned_before_an_allreduce_is_chosen():
    """Of six regions, in an order that is bad for a ring and with a bad hub first."""
    cluster = isthmus.Cluster(matrix(6, 8))
    for largest_error, compressor in ((0, None), (1e-3, "int8")):
        run = RUN | {"allreduce": {"algorithm": "auto", "largest_error": largest_error}}
        settings = RunSettings.model_validate(run)
        got, why = choose(settings, cluster)
        assert got.allreduce.algorithm == "hierarchical"
        kind = got.allreduce.compressor
        assert (kind and kind.kind) == compressor
        best = next(each for each in why["candidates"] if each["error"] <= largest_error)
        arranged, told = arrange(got, cluster)
        assert told is not None
        seconds = isthmus.predict_allreduce(
            arranged,
            settings.make_model().size,
            algorithm="hierarchical",
            compressor=got.make_compressor(),
            chunk_nbytes=got.allreduce.chunk_nbytes,
        ).seconds
        assert best["seconds"] == pytest.approx(seconds)
        assert error_of(arranged, 22_402, got.make_compressor()) == best["error"] <= largest_error
    table = matrix(4, 8)
    table["site"][1]["relay"] = False
    found = choose_allreduce(isthmus.Cluster(table), 1000, largest_error=0)
    assert {each.algorithm for each in found.candidates} == {"hierarchical"}


@pytest.mark.ranks(2)
def test_mpi_is_chosen_only_if_it_gives_all_ranks_the_same_bits(comm, monkeypatch):
    settings = RunSettings.model_validate(RUN | {"allreduce": {"algorithm": "auto", "largest_error": 0}})
    cluster, told = calibrated(cluster_of(2, bytes_per_second=1e9), 2, mpi=[0.01, 0.01]), []
    with isthmus.split_tiers(comm, cluster) as tiers:
        assert sums_alike(tiers, 10_001)
        got, why = chosen_allreduce(tiers, settings, told.append)
        assert got.allreduce.algorithm == "mpi"
        assert told == [f"allreduce: {why['reason']}"]
        assert got.make_compressor() is None
        plain = OfMPI.__call__

        def wrong(self, total):
            plain(self, total)
            total[-1:] *= 1 + 1e-6 * tiers.world.rank

        monkeypatch.setattr(of_mpi, "planned", OfMPI)
        monkeypatch.setattr(OfMPI, "__call__", wrong)
        assert not sums_alike(tiers, 10_001)
        got, why = chosen_allreduce(tiers, settings, told.append)
        assert got.allreduce.algorithm != "mpi"
        assert "mpi" not in {each["name"] for each in why["candidates"]}
        assert told[-1].endswith("MPI's own does not give all ranks the same bits")


@pytest.mark.ranks(2)
def test_calibration_measures_what_may_be_fastest_with_no_larger_error(comm, monkeypatch):
    """Told that a link is slow: int8 beside what has no larger error, float32 beside what is exact."""
    monkeypatch.setattr(measuring, "NBYTES", (4, 400_000))
    monkeypatch.setattr(measuring, "LONG_NBYTES", (40_000_000,))
    settings = RunSettings.model_validate(RUN | {"allreduce": {"algorithm": "auto"}})
    own = 4 * settings.make_model().size
    cluster = isthmus.Cluster(cluster_of(1, 1, bytes_per_second=1e7))
    with isthmus.split_tiers(comm, cluster) as tiers:
        found = measuring.contenders(tiers, settings, 3, cluster)
    table = cluster.to_table()
    table["calibration"] = {"ranks": 2, "contenders": found}
    measured = {each.name: each for each in isthmus.Cluster(table).calibration.contenders}
    int8 = "hierarchical with Int8(block=256, rounding='nearest')"
    assert measured[int8].nbytes[-1] == 400_000
    exact = [each for name, each in measured.items() if name in ("hierarchical", "tree")]  # alike here
    assert {4, own, 400_000} == {*exact[0].nbytes, *exact[-1].nbytes}  # of 40 MB all take too long
    assert "mpi" not in measured  # nobody knows what it does
    assert not any("OneBit" in name for name in measured)  # its error is too large
    assert min(min(each.factors) for each in measured.values()) > 0
    again = choose_allreduce(isthmus.Cluster(table), 100_000, largest_error=1e-4)
    chosen = next(each for each in again.candidates if each.name == int8)
    seconds = isthmus.predict_allreduce(
        cluster,
        100_000,
        algorithm="hierarchical",
        compressor=chosen.compressor,
        chunk_nbytes=chosen.chunk_nbytes,
    ).seconds
    assert chosen.seconds == pytest.approx(seconds * measured[int8].factors[-1], rel=1e-6)
