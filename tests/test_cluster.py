"""Cluster files: read whole, written back the same, and refused in one line."""

import copy

import pytest
from clusters import cluster_of
from hypothesis import given
from hypothesis import strategies as st

from isthmus import Cluster
from isthmus.errors import ClusterError
from isthmus.topology.tiers import cluster_ranks


def test_the_two_site_example_reads_as_written(repository):
    cluster = Cluster.from_toml(repository / "experiments/two_sites.toml")
    assert cluster.names == ("cloud", "edge")
    assert cluster.size == 4
    assert cluster.rates == (10000.0, 10000.0, 2000.0, 1500.0)
    assert cluster.site_of_rank == (0, 0, 1, 1)
    assert list(cluster.ranks_of_site("edge")) == [2, 3]
    (link,) = cluster.route("edge", "cloud")
    assert (link.latency_seconds, link.bytes_per_second) == (0.01, 12.5e6)
    assert cluster.hub == 0


def test_each_direction_of_a_link_is_its_own():
    table = cluster_of(1, 1)
    table["link"] = [
        {"from": "site0", "to": "site1", "latency_seconds": 0.1, "bytes_per_second": 1e6},
        {"from": "site1", "to": "site0", "latency_seconds": 0.2, "bytes_per_second": 2e6}]
    cluster = Cluster(table)
    assert cluster.route("site0", "site1")[0].bytes_per_second == 1e6
    assert cluster.route("site1", "site0")[0].latency_seconds == 0.2


def test_links_of_one_name_share_what_goes_one_way():
    cluster = Cluster(cluster_of(1, 1, 1, shared="uplink"))
    up = {link.pipe for link in cluster.links if link.target == "site0"}
    down = {link.pipe for link in cluster.links if link.source == "site0"}
    assert len(up) == len(down) == 1
    assert up != down


def test_a_route_goes_over_the_fewest_links_and_the_hub_is_central():
    table = cluster_of(1, 1, 1)
    table["link"][1]["between"] = ["site1", "site2"]
    cluster = Cluster(table)
    assert [link.target for link in cluster.route("site0", "site2")] == ["site1", "site2"]
    assert cluster.route("site0", "site0") == ()
    table["site"][1]["tier"] = "cloud"
    assert Cluster(table).hub == 1


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_what_is_written_reads_back_the_same(tmp_path_factory, sites, shared):
    cluster = Cluster(cluster_of(*sites, **({"shared": "uplink"} if shared else {})))
    path = tmp_path_factory.mktemp("cluster") / "cluster.toml"
    cluster.to_toml(path)
    again = Cluster.from_toml(path)
    assert (again.sites, again.links) == (cluster.sites, cluster.links)


def changed(*path, **keys):
    """Return a change of a table: at `path`, set or (None) drop `keys`."""
    def change(table):
        for part in path:
            table = table[part]
        for key, value in keys.items():
            table.pop(key, None) if value is None else table.update({key: value})
    return change


BAD = {
    "a misspelt key": (changed("site", 0, sampels_per_second=1.0),
                       "site[0].sampels_per_second", "did you mean 'samples_per_second'"),
    "a misspelt table": (changed(linc=[]), "linc", "did you mean 'link'"),
    "a negative rate": (changed("site", 1, samples_per_second=-3.0),
                        "site[1].samples_per_second", "greater than 0"),
    "a rate of zero": (changed("site", 1, samples_per_second=0), "site[1]", "greater than 0"),
    "a rate that is not a number": (changed("site", 1, samples_per_second=float("nan")),
                                    "site[1]", "finite"),
    "a rate in words": (changed("link", 0, bytes_per_second="fast"),
                        "link[0].bytes_per_second", "'fast'"),
    "rates for other ranks": (changed("site", 1, samples_per_second=[1.0, 2.0, 3.0]),
                              "'site1'", "3 numbers for 2 ranks"),
    "no ranks": (changed("site", 0, ranks=0), "site[0].ranks", "greater than or equal to 1"),
    "an unknown tier": (changed("site", 0, tier="fog"), "site[0].tier", "'cloud' or 'edge'"),
    "no tier": (changed("site", 0, tier=None), "site[0].tier", "missing"),
    "no site": (changed(site=None), "site", "missing"),
    "two sites of one name": (changed("site", 1, name="site0"), "two sites", "its own name"),
    "a link to nobody": (changed("link", 0, between=["site0", "moon"]), "link[0]", "'moon'"),
    "a link to itself": (changed("link", 0, between=["site0", "site0"]), "link[0]", "itself"),
    "a link with one end": (changed("link", 0, **{"between": None, "from": "site0"}),
                            "link[0]", "both from"),
    "a link given twice": (lambda table: table["link"].append(table["link"][0]),
                           "link[1]", "twice"),
    "a site without a link": (changed(link=None), "no link leads", "add a [[link]]"),
    "negative latency": (changed("link", 0, latency_seconds=-1.0), "latency_seconds", "or equal"),
    "a host in two sites": (lambda table: [site.update(hosts=["a"]) for site in table["site"]],
                            "'a'", "one site"),
    "a rank in two sites": (
        lambda table: [site.update(world_ranks=[0, 1]) for site in table["site"]],
        "world_ranks", "one site"),
    "hosts and ranks": (changed("site", 0, hosts=["a"], world_ranks=[0, 1]), "hosts", "not both"),
    "a key of a network": (changed("site", 0, "network", bandwidth=1), "network.bandwidth",
                           "no key is called"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_cluster_is_said_in_one_line(name):
    change, where, cure = BAD[name]
    table = copy.deepcopy(cluster_of(2, 2))
    change(table)
    with pytest.raises(ClusterError) as caught:
        Cluster(table, source="lab.toml")
    message = str(caught.value)
    assert message.startswith("lab.toml: ")
    assert "\n" not in message
    assert where in message
    assert cure in message


def test_links_that_share_must_give_one_rate():
    table = cluster_of(1, 1, 1, shared="uplink")
    table["link"][1]["bytes_per_second"] = 5e5
    with pytest.raises(ClusterError, match="one rate"):
        Cluster(table)


@pytest.mark.parametrize(("content", "message"), [
    (None, "no such file"), ("[[site", "not valid TOML"), (b"\xff\xfe", "not text in UTF-8")])
def test_a_file_that_is_no_cluster_file_is_named(tmp_path, content, message):
    path = tmp_path / "cluster.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ClusterError, match=message) as caught:
        Cluster.from_toml(path)
    assert str(path) in str(caught.value)


def placed(table, hosts):
    return cluster_ranks(Cluster(table, "lab.toml"), hosts)


def test_sites_take_ranks_in_order_by_host_or_by_number():
    table = cluster_of(2, 2)
    assert placed(table, ["x"] * 4) == [0, 1, 2, 3]
    table["site"][1]["hosts"] = ["far1", "far2.lab.net"]
    assert placed(table, ["far1", "near", "far2", "near"]) == [2, 0, 3, 1]
    table = cluster_of(2, 2)
    table["site"][0]["world_ranks"] = [3, 1]
    assert placed(table, ["x"] * 4) == [2, 1, 3, 0]


@pytest.mark.parametrize(("change", "hosts", "message"), [
    ({}, ["x"] * 3, "have 4 ranks, this job has 3; start it with mpirun -n 4"),
    ({"hosts": ["far"]}, ["far", "x", "x", "x"], "wants 2 ranks on hosts far, but 1 ranks run"),
    ({"world_ranks": [0, 9]}, ["x"] * 4, "names rank 9"),
])
def test_a_job_that_does_not_fit_the_cluster_is_refused(change, hosts, message):
    table = cluster_of(2, 2)
    table["site"][1].update(change)
    with pytest.raises(ClusterError, match=message):
        placed(table, hosts)
