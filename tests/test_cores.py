"""Ranks that share cores: a pipeline of chunks goes no faster than a host does all its ranks' work."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given
from hypothesis import strategies as st

import isthmus
from isthmus.compression.chunks import chunk_entries
from isthmus.pages.furthest_off import furthest_off
from isthmus.timing.stages import hierarchical_stages

SIZE = 4_000_000
INT8 = isthmus.Int8()


def cluster(*hosts, ranks=(4, 4)):
    """Return sites of a fast network whose ranks lie on `hosts`: (ranks, cores) each."""
    table = cluster_of(*ranks, bytes_per_second=1e9)
    for site in table["site"]:
        site["network"] = {"latency_seconds": 0.0, "bytes_per_second": 4e9}
        site |= {
            "add_bytes_per_second": 2e9,
            "encode_bytes_per_second": 1e9,
            "decode_bytes_per_second": 1e9,
        }
    if hosts:
        told = [{"ranks": list(mine), "cores": cores} for mine, cores in hosts]
        table["calibration"] = {"ranks": sum(ranks), "hosts": told}
    return isthmus.Cluster(table)


def interval(cluster):
    return hierarchical_stages(cluster, SIZE, INT8, True).interval


def by_hand(cores):
    """Return the seconds of the work of 2 x 4 ranks on a chunk over the cores of one host.

    Each leader encodes one wire and decodes two, which both did at once when it was measured. A chunk
    goes over three hops of each site up and down, and keeps two ranks busy on each: two of each site
    were measured at once. Three ranks of each site add; all were measured at once.
    """
    nbytes = 4 * chunk_entries(INT8, SIZE)
    coding = 2 * (nbytes / 1e9 + nbytes / 1e9) * min(1, cores / 2)
    handing = 2 * (3 * 2 * 2 * nbytes / 4e9) * min(1, cores / 4)
    adding = 2 * 3 * nbytes / 2e9 * min(1, cores / 8)
    return (coding + handing + adding) / cores


def test_a_crowded_host_holds_up_all_stages_alike_by_hand():
    alone, everyone = interval(cluster()), range(8)
    for cores in (1.0, 2.0):
        assert interval(cluster((everyone, cores))) == pytest.approx(by_hand(cores))
        assert by_hand(cores) > 1.2 * alone
    assert interval(cluster((everyone, 8.0))) == pytest.approx(alone)
    assert interval(cluster((range(4), 4.0), (range(4, 8), 4.0))) == pytest.approx(alone)
    free, crowded = (
        hierarchical_stages(each, SIZE, INT8, True) for each in (cluster(), cluster((everyone, 2.0)))
    )
    factors = [crowded.each[name] / free.each[name] for name in ("encode", "decode", "reduce")]
    assert factors == pytest.approx([by_hand(2.0) / alone] * 3)
    assert crowded.first == free.first  # few ranks work on the first chunk
    assert crowded.ways[0][0] == free.ways[0][0]


@given(st.floats(0.25, 4.0), st.floats(1.0, 4.0), st.sampled_from([(2, 2), (1, 3), (1, 1, 2)]))
def test_more_cores_never_take_longer_and_as_many_as_ranks_change_nothing(cores, more, ranks):
    everyone = tuple(range(sum(ranks)))
    few, many, free = (
        isthmus.predict_allreduce(each, SIZE, algorithm="hierarchical", compressor=INT8).seconds
        for each in (
            cluster((everyone, cores), ranks=ranks),
            cluster((everyone, cores * more), ranks=ranks),
            cluster(ranks=ranks),
        )
    )
    assert few >= many * (1 - 1e-9)
    assert many >= free * (1 - 1e-9)
    assert math.isfinite(few)


def test_cores_of_another_number_of_ranks_are_not_believed():
    known = cluster((range(8), 2.0)).to_table()
    known["calibration"]["ranks"] = 16
    assert interval(isthmus.Cluster(known)) == interval(cluster())


@pytest.mark.parametrize(
    ("terms", "known", "compute", "words"),
    [
        ({"compute": (0.01, 0.0102)}, cluster(), "real", "No term is off by more than 3 % of a step"),
        ({"update": (0.0, 0.004)}, cluster(), "real", "cluster file does not say what it takes"),
        ({"compute": (0.01, 0.02)}, cluster(), "paced", "this machine is too slow for"),
        ({"encode": (0.01, 0.02)}, cluster((range(8), 2.0)), "real", "8 ranks of a host share 2 cores"),
        ({"encode": (0.01, 0.02)}, cluster((range(8), 8.0)), "real", "as it was when it was calibrated"),
        ({"encode": (0.01, 0.02)}, cluster(), "real", "was not calibrated: isthmus calibrate"),
        ({"compute": (0.01, 0.005)}, cluster(), "real", "Ranks compute faster than the cluster file"),
        ({"links": (0.01, 0.03), "wait": (0, 0.01)}, cluster(), "real", "or others use them"),
        ({"links": (0.01, 0.005)}, cluster(), "real", "hidden behind more computing"),
        ({"links": (0.01, 0.01), "wait": (0, 0.01)}, cluster(), "real", "Ranks were late in turn"),
    ],
)
def test_the_report_says_which_term_was_furthest_off_and_why(terms, known, compute, words):
    run = SimpleNamespace(
        terms=[(name, *seconds) for name, seconds in terms.items()],
        step_seconds=(0.02, sum(measured for _, measured in terms.values())),
        cluster=known,
        settings={"cluster": {"compute": compute}},
    )
    (sentence,) = furthest_off(run)
    assert words in sentence
    run.step_seconds = (0.02, None)
    assert furthest_off(run) == []


@pytest.mark.ranks(2)
def test_calibration_counts_the_cores_that_ranks_have_when_all_are_busy(comm):
    """Two ranks that are both held to one core by the kernel have one between them."""
    import os

    from isthmus.measuring.calibrate import hosts_of

    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
            for _ in range(5):  # a rank may begin late, and have the core for itself then
                (host,) = hosts_of(tiers.world)
                if host.cores <= 1.1:
                    break
    finally:
        os.sched_setaffinity(0, allowed)
    assert host.ranks == (0, 1)
    assert 0 < host.cores <= 1.1
    assert np.isfinite(host.cores)
