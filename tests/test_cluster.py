"""Cluster files: read whole, written back the same, and refused in one line."""

import copy

import pytest
from clusters import cluster_of
from hypothesis import given
from hypothesis import strategies as st

from isthmus import Cluster, predict_allreduce
from isthmus.cluster.hosts import is_same_host
from isthmus.errors import ClusterError
from isthmus.links.tiers import cluster_ranks
from isthmus.planning.programme.exchanges import link_names
from isthmus.timing.scaling import with_edge_sites


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
        {"from": "site1", "to": "site0", "latency_seconds": 0.2, "bytes_per_second": 2e6},
    ]
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


def renamed(table, *names):
    """Return the table of a cluster with other names of its sites."""
    of = dict(zip((site["name"] for site in table["site"]), names))
    for site in table["site"]:
        site["name"] = of[site["name"]]
    for link in table.get("link", ()):
        link["between"] = [of[name] for name in link["between"]]
    return table


PUNCTUATION = st.text(st.sampled_from(list('a:>-"→. #')), min_size=1, max_size=5)


@given(st.lists(PUNCTUATION, min_size=3, max_size=4, unique=True))
def test_links_share_what_the_file_says_that_they_share_whatever_sites_are_called(names):
    cluster = Cluster(renamed(cluster_of(*[1] * len(names)), *names))
    assert len({link.pipe for link in cluster.links}) == len(cluster.links)
    assert all(link.shared is None for link in cluster.links)
    assert len(link_names(cluster)) == len(cluster.links) / 2
    assert Cluster(cluster.to_table()).links == cluster.links
    assert with_edge_sites(cluster, 5).size == 6


@given(PUNCTUATION)
def test_a_shared_name_is_the_links_own_whatever_it_is(name):
    cluster = Cluster(cluster_of(1, 1, 1, shared=name))
    assert {link.shared for link in cluster.links} == {name}
    assert len({link.pipe for link in cluster.links}) == 2
    assert Cluster(cluster.to_table()).links == cluster.links


def test_a_colon_in_a_name_does_not_change_what_is_predicted():
    plain, other = (
        Cluster(renamed(cluster_of(2, 2, 2), *names))
        for names in (("cloud", "east", "west"), ("hub: main", "edge:east", "edge:west"))
    )
    plain, other = (Cluster(cluster.to_table()) for cluster in (plain, other))
    assert predict_allreduce(plain, 10**6, algorithm="hierarchical") == predict_allreduce(
        other, 10**6, algorithm="hierarchical"
    )


def test_links_of_pairs_whose_names_join_alike_are_two():
    table = renamed(cluster_of(1, 1, 1), "a", "b-c", "c")
    table["site"].append({**table["site"][1], "name": "a-b"})
    table["link"].append({**table["link"][0], "between": ["a-b", "c"]})
    assert list(link_names(Cluster(table))) == ['"a"-"b-c"', "a-c", '"a-b"-"c"']


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
    "a misspelt key": (
        changed("site", 0, sampels_per_second=1.0),
        "site[0].sampels_per_second",
        "did you mean 'samples_per_second'",
    ),
    "a misspelt table": (changed(linc=[]), "linc", "did you mean 'link'"),
    "a negative rate": (
        changed("site", 1, samples_per_second=-3.0),
        "site[1].samples_per_second",
        "greater than 0",
    ),
    "a rate of zero": (changed("site", 1, samples_per_second=0), "site[1]", "greater than 0"),
    "a rate that is not a number": (
        changed("site", 1, samples_per_second=float("nan")),
        "site[1]",
        "finite",
    ),
    "a rate in words": (
        changed("link", 0, bytes_per_second="fast"),
        "link[0].bytes_per_second",
        "'fast'",
    ),
    "rates for other ranks": (
        changed("site", 1, samples_per_second=[1.0, 2.0, 3.0]),
        "'site1'",
        "3 numbers for 2 ranks",
    ),
    "no ranks": (changed("site", 0, ranks=0), "site[0].ranks", "greater than or equal to 1"),
    "an unknown tier": (changed("site", 0, tier="fog"), "site[0].tier", "'cloud' or 'edge'"),
    "no tier": (changed("site", 0, tier=None), "site[0].tier", "missing"),
    "no site": (changed(site=None), "site", "missing"),
    "two sites of one name": (changed("site", 1, name="site0"), "two sites", "its own name"),
    "a link to nobody": (changed("link", 0, between=["site0", "moon"]), "link[0]", "'moon'"),
    "a link to itself": (changed("link", 0, between=["site0", "site0"]), "link[0]", "itself"),
    "a link with one end": (
        changed("link", 0, **{"between": None, "from": "site0"}),
        "link[0]",
        "both from",
    ),
    "a link given twice": (lambda table: table["link"].append(table["link"][0]), "link[1]", "twice"),
    "a site without a link": (changed(link=None), "no link leads", "add a [[link]]"),
    "negative latency": (changed("link", 0, latency_seconds=-1.0), "latency_seconds", "or equal"),
    "a host in two sites": (
        lambda table: [site.update(hosts=["a"]) for site in table["site"]],
        "'a'",
        "one site",
    ),
    "a rank in two sites": (
        lambda table: [site.update(world_ranks=[0, 1]) for site in table["site"]],
        "world_ranks",
        "one site",
    ),
    "hosts and ranks": (changed("site", 0, hosts=["a"], world_ranks=[0, 1]), "hosts", "not both"),
    "a host with its slots": (changed("site", 0, hosts=["n1:4"]), "'n1:4'", "names or addresses"),
    "two hosts in one text": (changed("site", 0, hosts=["n1,n2"]), "'n1,n2'", "names or addresses"),
    "a host without a name": (changed("site", 0, hosts=[""]), "''", "names or addresses"),
    "a key of a network": (
        changed("site", 0, "network", bandwidth=1),
        "network.bandwidth",
        "no key is called",
    ),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("[[site", "not valid TOML"), (b"\xff\xfe", "not text in UTF-8")],
)
def test_a_file_that_is_no_cluster_file_is_named(tmp_path, content, message):
    path = tmp_path / "cluster.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ClusterError, match=message) as caught:
        Cluster.from_toml(path)
    assert str(path) in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_file(repository, tmp_path):
    path = tmp_path / "cluster.toml"
    text = (repository / "experiments/two_sites.toml").read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert Cluster.from_toml(path).names == ("cloud", "edge")


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


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("n1", "n1", True),
        ("n1", "n1.edge.org", True),
        ("n1.edge.org", "n1", True),
        ("n1.edge.org", "N1.Edge.org.", True),
        ("n1.edge.org", "n1.cloud.org", False),
        ("n1", "n2.edge.org", False),
        ("n1", "n10", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10", "10.0.0.2", False),
        ("fe80::1", "fe80::1", True),
        ("fe80::1", "fe80::2", False),
    ],
)
def test_whole_names_of_hosts_are_compared_whole_and_addresses_too(name, other, same):
    assert is_same_host(name, other) == is_same_host(other, name) == same


def test_hosts_of_one_first_name_in_two_domains_are_two_hosts():
    table = cluster_of(1, 1)
    table["site"][0]["hosts"], table["site"][1]["hosts"] = ["n1.cloud.org"], ["n1.edge.org"]
    assert placed(table, ["n1.edge.org", "n1.cloud.org"]) == [1, 0]


def test_hosts_by_address_are_told_apart():
    table = cluster_of(1, 1)
    table["site"][0]["hosts"], table["site"][1]["hosts"] = ["10.0.0.1"], ["10.0.0.2"]
    assert placed(table, ["10.0.0.2", "10.0.0.1"]) == [1, 0]


@pytest.mark.parametrize(
    ("mine", "other", "hosts"),
    [
        ({"hosts": ["n1"]}, {"hosts": ["n1.edge.org"]}, ["n1.edge.org", "n1.cloud.org"]),
        ({"hosts": ["n1.cloud.org"]}, {"hosts": ["n1.edge.org"]}, ["n1", "n1"]),
        ({"hosts": ["n1"]}, {"world_ranks": [0]}, ["n1", "n2"]),
    ],
)
def test_a_rank_that_two_sites_claim_is_an_error_that_names_both(mine, other, hosts):
    table = cluster_of(1, 1)
    table["site"][0].update(mine)
    table["site"][1].update(other)
    with pytest.raises(ClusterError, match="rank 0 runs on host n1.* 'site0' and 'site1' both claim"):
        placed(table, hosts)


@pytest.mark.parametrize(
    ("change", "hosts", "message"),
    [
        ({}, ["x"] * 3, "have 4 ranks, this job has 3; start it with mpirun -n 4"),
        ({"hosts": ["far"]}, ["far", "x", "x", "x"], "wants 2 ranks on hosts far, but 1 ranks run"),
        ({"world_ranks": [0, 9]}, ["x"] * 4, "names rank 9"),
    ],
)
def test_a_job_that_does_not_fit_the_cluster_is_refused(change, hosts, message):
    table = cluster_of(2, 2)
    table["site"][1].update(change)
    with pytest.raises(ClusterError, match=message):
        placed(table, hosts)
