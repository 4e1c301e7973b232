"""More edge sites, other links, other compressors; and the verb that asks for them."""

import json
import sys

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from patience import launched

import isthmus
from isthmus.errors import ClusterError
from isthmus.folders.record import RunFolder
from isthmus.timing.scaling import Study, edge_counts, with_edge_sites, with_link_rate
from isthmus.timing.time_model import Workload

pytestmark = pytest.mark.slow


def calibrated(*sites, **link):
    """A cluster whose hub has work with every wire, so that compressing costs."""
    table = cluster_of(*sites, **link)
    for site in table["site"]:
        site |= {
            "samples_per_second": 1000.0,
            "encode_bytes_per_second": 2e8,
            "decode_bytes_per_second": 1e9,
        }
    return isthmus.Cluster(table)


def simulate(folder, *arguments):
    return launched([sys.executable, "-m", "isthmus", "simulate", *arguments], cwd=folder)


def test_copies_of_edge_sites_have_the_links_of_what_they_copy():
    cluster = isthmus.Cluster(cluster_of(2, 3, 4, shared="uplink"))
    more = with_edge_sites(cluster, 5)
    assert more.names == ("site0", "site1", "site2", "site1#2", "site2#2", "site1#3")
    assert [site.ranks for site in more.sites] == [2, 3, 4, 3, 4, 3]
    assert len(more.links) == 2 * 5
    assert {link.pipe for link in more.links} == {"uplink:up", "uplink:down"}
    assert with_edge_sites(cluster, 2).to_table() == cluster.to_table()
    assert with_edge_sites(cluster, 1).names == ("site0", "site1")


def test_edge_sites_behind_a_gateway_are_copied_with_it():
    table = cluster_of(1, 1, 1)
    table["link"][1]["between"] = ["site1", "site2"]
    more = with_edge_sites(isthmus.Cluster(table), 4)
    assert [link.target for link in more.route("site0", "site2#2")] == ["site1#2", "site2#2"]


def test_links_times_a_factor_and_counts_by_doubling():
    cluster = isthmus.Cluster(cluster_of(1, 1))
    assert {link.bytes_per_second for link in with_link_rate(cluster, 0.5).links} == {0.5e8}
    assert edge_counts(1) == [1]
    assert edge_counts(2) == [1, 2]
    assert edge_counts(20) == [1, 2, 4, 8, 16, 20]


def test_a_cluster_without_edge_sites_has_none_to_copy():
    with pytest.raises(ClusterError, match="to copy"):
        with_edge_sites(isthmus.Cluster(cluster_of(1)), 3)


@pytest.mark.parametrize("bytes_per_second", [2e7, 4e7, 5e7, 1e8, 1e10])
def test_int8_stops_paying_where_trying_every_count_says(bytes_per_second):
    study = Study(calibrated(1, 1, bytes_per_second=bytes_per_second), Workload(size=10**6), steps=1)
    every = study.edge_sites(range(1, 41))
    seconds = {(point.value, point.compressor): point.step_seconds for point in every}
    pays = [seconds[n, "int8"] < seconds[n, "dense float32"] * (1 - 1e-9) for n in range(1, 41)]
    last = max((n for n in range(1, 41) if pays[n - 1]), default=0)
    points = study.edge_sites(edge_counts(40))
    assert study.stops_paying(points) == (None if last == 40 else last + 1)


def test_int8_pays_up_to_where_the_hub_s_own_work_takes_longer_than_the_dense_wire():
    """By hand, latencies small: dense takes max(n / B, own work) a chunk, int8's own work is the
    longer by its encoding; so int8 stops paying about where own work of int8 reaches n / B."""
    study = Study(calibrated(1, 1, bytes_per_second=4e7), Workload(size=10**6), steps=1)
    stops = study.stops_paying(study.edge_sites(edge_counts(64)))
    # each byte: 1/4e7 on the link; up and down 2/1e9 of the network are not used by sites of one rank
    wires = (1 / 4e7 - 2 / 2e8) * 2 * 1e9  # wires that the hub decodes in the time that is left
    assert stops == pytest.approx(wires - 1, abs=2)


def test_more_edge_sites_on_one_uplink_take_longer_and_every_rank_keeps_its_samples():
    cluster = calibrated(1, 1, bytes_per_second=1e8, shared="uplink")
    points = Study(cluster, Workload(size=10**6), steps=3).edge_sites([1, 2, 4, 8])
    dense = [point for point in points if point.compressor == "dense float32"]
    assert np.all(np.diff([point.step_seconds for point in dense]) > 0)
    per_step = [point.samples_per_second * point.step_seconds for point in dense]
    np.testing.assert_allclose(per_step, [128 * (1 + count) for count in (1, 2, 4, 8)])
    assert 0 < dense[0].busiest_link <= 1


def test_the_verb_tells_times_and_writes_pictures(tmp_path):
    calibrated(2, 2, bytes_per_second=4e7).to_toml(tmp_path / "cluster.toml")
    done = simulate(
        tmp_path,
        "cluster.toml",
        "--steps",
        5,
        "--stragglers",
        0.2,
        "--edge-sites",
        40,
        "--local-steps",
        2,
        "--buckets",
        3,
        "-o",
        "out",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert table["simulation"]["ranks"] == 4
    assert len(table["simulation"]["sync_seconds"]) == 3
    assert table["scaling"]["int8_stops_paying_at"] is not None
    assert "from " in table["scaling"]["answer"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "simulation.json",
        "scaling.svg",
        "scaling.png",
    }
    assert (tmp_path / "out/scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "int8" in (tmp_path / "out/scaling.svg").read_text()
    again = simulate(
        tmp_path,
        "cluster.toml",
        "--steps",
        5,
        "--stragglers",
        0.2,
        "--edge-sites",
        40,
        "--local-steps",
        2,
        "--buckets",
        3,
        "--json",
    )
    table.pop("output")
    assert json.loads(again.stdout) == table


def test_the_verb_takes_a_run_s_settings_and_says_what_it_found(repository):
    done = simulate(repository, "experiments/fashion_two_sites.toml", "--steps", 3, "--edge-sites", 2)
    assert done.returncode == 0, done.stderr
    for words in ("4 ranks, 3 steps", "a step: ", "edge>cloud", "int8 pays", "isthmus calibrate"):
        assert words in done.stdout


def test_a_run_is_simulated_on_another_cluster(repository, tmp_path):
    isthmus.Cluster(cluster_of(1, 4, 4)).to_toml(tmp_path / "other.toml")
    done = simulate(
        repository,
        "experiments/fashion_two_sites.toml",
        "--edge-sites",
        0,
        "--json",
        "--cluster",
        tmp_path / "other.toml",
    )
    assert json.loads(done.stdout)["simulation"]["ranks"] == 9


def test_stragglers_are_drawn_from_a_run_s_folder(tmp_path):
    isthmus.Cluster(cluster_of(1)).to_toml(tmp_path / "cluster.toml")
    folder = RunFolder(tmp_path)
    for step, seconds in enumerate((0.1, 0.2, 0.6), 1):
        folder.note(
            "step",
            step=step,
            epoch=0,
            seconds=seconds,
            loss=1.0,
            step_seconds=seconds,
            terms={"compute": seconds},
            sent_nbytes={"site": 0, "link": 0},
        )
    folder.note("evaluation", step=3, epoch=0, seconds=1.0, link_nbytes=0, loss=1.0, accuracy=0.5)
    folder.close()
    done = simulate(
        tmp_path, "cluster.toml", "--stragglers", ".", "--edge-sites", 0, "--batch-size", 1000, "--json"
    )
    assert done.returncode == 0, done.stderr
    seconds = json.loads(done.stdout)["simulation"]["sync_seconds"]
    assert {round(value, 9) for value in seconds} == {0.5, 1.0, 3.0}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no.toml"], 3, ["no.toml: no such file"]),
        (["cluster.toml", "--steps", 0], 2, ["--steps"]),
        (["cluster.toml", "--stragglers", -1], 3, ["--stragglers -1", "not negative"]),
        (["cluster.toml", "--stragglers", "nan"], 3, ["--stragglers nan"]),
        (["cluster.toml", "--stragglers", "nowhere"], 3, ["nowhere/metrics.jsonl", "a number such as"]),
        (["cluster.toml", "--stragglers", "."], 3, ["metrics.jsonl", "tells no 'step'"]),
        (["cluster.toml", "--cluster", "alone.toml"], 3, ["cluster.toml", "already"]),
        (["alone.toml"], 4, ["alone.toml", 'tier = "edge"']),
        (["bad.toml"], 4, ["bad.toml: site[0].ranks"]),
        (["cluster.toml", "--edge-sites", 2, "-o", "cluster.toml/out"], 8, ["cannot be written"]),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, arguments, code, words):
    for name, table in (("cluster", cluster_of(1, 1)), ("alone", cluster_of(1)), ("bad", cluster_of(0))):
        (tmp_path / f"{name}.toml").write_text(tomli_w.dumps(table))
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step"}\n')
    done = simulate(tmp_path, *arguments)
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    if code != 2:
        assert len(done.stderr.strip().splitlines()) == 1
