"""A machine that is too slow for its paces says so, and by how much."""

import json

import pytest
import test_cli
from clusters import cluster_of
from test_cli import RUN, call, with_changes, write
from test_report import Page, write_run

import isthmus
from isthmus.folders.pacing import link_not_held, not_held, ranks_not_held
from isthmus.pages.report import write_report
from isthmus.timing.fits import LinkFit

lab = test_cli.lab  # the fixture


@pytest.mark.parametrize(
    ("pace", "measured", "words"),
    [
        (0.01106, 0.0426, "x took 42.6 ms for a pace of 11.06, 3.85 times as long"),
        (0.0, 0.5, "x took 500 ms for a pace of 0"),
        (0.1, 0.1105, None),
        (0.001, 0.0015, None),
        (0.1, 0.05, None),
        (0.1, None, None),
    ],
)
def test_a_pace_is_not_held_where_it_takes_clearly_longer(pace, measured, words):
    assert not_held("x", pace, measured) == words


def test_the_slowest_rank_of_a_site_and_a_link_are_named():
    cluster = isthmus.Cluster(cluster_of(1, 2))
    fits = [
        LinkFit(latency, rate, 0.0, 1, 10)
        for latency, rate in ((0.0, 2000.0), (0.01, 500.0), (0.0, 100.0))
    ]
    (words,) = ranks_not_held(cluster, fits, 20)
    assert words == ("rank 2 of site1: computing 5 samples took 50 ms for a pace of 10, 5 times as long")
    link = cluster.links[0]
    table = {"latency_seconds": link.latency_seconds, "bytes_per_second": link.bytes_per_second}
    assert link_not_held(link, table) is None
    assert "1 MB took 101 ms for a pace of 11" in link_not_held(link, table | {"bytes_per_second": 1e7})


@pytest.mark.parametrize("held", [True, False])
def test_the_report_says_whether_times_are_those_of_the_cluster(tmp_path, held):
    folder = write_run(tmp_path / "run")
    if not held:
        table = json.loads((folder / "summary.json").read_text())
        for term in table["terms"]:
            term["measured_seconds"] = 0.0210
        (folder / "summary.json").write_text(json.dumps(table))
    shown = " ".join(" ".join(Page(write_report(folder).read_text()).shown).split())
    assert ("Times are those of that cluster, emulated" in shown) == held
    assert ("Times are not those of that cluster" in shown) != held
    assert ("crossing the links, a step, took 21 ms for a pace of 2.1, 10 times" in shown) != held


@pytest.mark.slow
def test_calibration_and_the_report_of_a_run_name_a_pace_that_nobody_can_hold(lab):
    table = cluster_of(1, 1)
    for site in table["site"]:
        site["samples_per_second"] = 1e9
    wide = {"model.hidden": [3000, 1000], "training.epochs": 1, "cluster.compute": "paced"}
    write(lab, cluster=table, run=with_changes(RUN, wide))
    done = call(lab, 2, "calibrate", "run.toml", "-o", "measured.toml", "--repetitions", 2)
    assert done.returncode == 0, done.stderr
    assert "not held: rank 0 of site0: computing 15 samples took" in done.stderr
    assert isthmus.Cluster.from_toml(lab / "measured.toml").rates == (1e9, 1e9)
    done = call(lab, 2, "train", "run.toml", "--json")
    assert done.returncode == 0, done.stderr
    (report,) = lab.glob("runs/*/report.html")
    assert "It was too slow for that" in report.read_text()
