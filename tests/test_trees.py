"""Sums over a tree of sites: one wire each way over every edge, the same bits everywhere."""

import hashlib
import math
import queue
import threading

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.collectives.given import GivenBucket
from isthmus.collectives.hierarchical import Hierarchical
from isthmus.errors import ClusterError
from isthmus.links.agreement import gather_json
from isthmus.links.counted import CountedComm
from isthmus.links.on_device import Host
from isthmus.links.stage_clock import StageClock
from isthmus.timing.choice import error_of
from isthmus.timing.window import SLACK_SECONDS, window_nbytes


class ThreadComm:
    """Leaders that are threads of this process: messages wait in a queue for each pair."""

    def __init__(self, rank, queues):
        self.rank, self.size, self.queues = rank, len(queues), queues

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        self.queues[self.rank][dest].put(buffer.copy())
        return Done()

    def Irecv(self, buffer, source, tag=0):  # noqa: N802
        return Coming(buffer, self.queues[source][self.rank])


class Done:
    def Wait(self):  # noqa: N802
        pass

    def Test(self):  # noqa: N802
        return True


class Coming:
    def __init__(self, buffer, queue):
        self.buffer, self.queue = buffer, queue

    def Wait(self):  # noqa: N802
        self._take(timeout=200)

    def Test(self):  # noqa: N802
        try:
            self._take(block=False)
        except queue.Empty:
            return False
        return True

    def _take(self, **how):
        if self.buffer is not None:
            self.buffer[:] = self.queue.get(**how)
            self.buffer = None


class Leaders:
    """The exchanges of all leaders of a tree, one rank a site."""

    def __init__(
        self, tree, size, compressor, feedback=False, buckets=None, chunk_nbytes=600, window=math.inf
    ):
        sites = len(tree.parents)
        queues = [[queue.SimpleQueue() for _ in range(sites)] for _ in range(sites)]
        self.sent = np.zeros((sites, sites), np.int64)
        self.buckets = buckets or [slice(0, size)]
        self.exchanges = [
            Hierarchical(
                ThreadComm(0, [[None]]),
                CountedComm(ThreadComm(site, queues), self.sent[site], range(sites)),
                site,
                tree,
                size,
                self.buckets,
                [compressor] * len(self.buckets),
                [feedback] * len(self.buckets),
                chunk_nbytes,
                StageClock(None),
                Host(),
                window,
            )
            for site in range(sites)
        ]

    def sums(self, vectors, key=0, advances=False):
        """Return what each site has for the sum, float32[sites, size]; `vectors` stay as they are."""
        totals, failed = np.array(vectors, "f4"), []

        def run(site):
            try:
                exchange, total = self.exchanges[site], totals[site]
                exchange.clock.start()
                for number, bucket in enumerate(self.buckets):
                    mine = GivenBucket(bucket, [total[bucket].copy()], 1.0)
                    exchange.start(total, number, key, mine)
                    if advances:
                        exchange.advance(total, key)
                exchange.finish(total, key)
            except BaseException as problem:
                failed.append(problem)

        threads = [threading.Thread(target=run, args=(site,)) for site in range(len(totals))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive()
        if failed:
            raise failed[0]
        return totals


@st.composite
def trees(draw, least=2, most=6):
    """Any tree of 2 to 6 sites, with one or two at its top."""
    sites = draw(st.integers(least, most))
    order = draw(st.permutations(range(sites)))
    two = sites == 2 or draw(st.booleans())
    parents = [None] * sites
    for place in range(2 if two else 1, sites):
        parents[order[place]] = order[draw(st.integers(0, place - 1))]
    return AggregationTree(tuple(parents), order[0])


COMPRESSORS = (
    isthmus.Dense(),
    isthmus.Dense("bfloat16"),
    isthmus.Int8(),
    isthmus.Int8(block=64, rounding="stochastic"),
    isthmus.Int4(),
    isthmus.OneBit(),
    isthmus.TopK(0.1),
    isthmus.TopK(0.1, bits=2),
    isthmus.LowRank(1),
)


def vectors_of(sites, size, seed):
    return np.random.default_rng(seed).normal(size=(sites, size)).astype("f4")


def edges(tree):
    """Return both directions of the tree's edges."""
    ways = [
        (site, tree.above(site)) for site in range(len(tree.parents)) if tree.above(site) is not None
    ]
    return {*ways, *(way[::-1] for way in ways)}


@settings(max_examples=60)
@given(trees(), st.sampled_from(COMPRESSORS), st.integers(0, 1500), st.integers(1, 3), st.data())
def test_what_is_given_is_sent_or_kept_over_any_tree_one_wire_each_way(
    tree, compressor, size, steps, data
):
    cut = data.draw(st.integers(0, size)) if compressor.grain else size
    buckets = [slice(cut, size), slice(0, cut)] if 0 < cut < size else None
    window = data.draw(st.sampled_from([0, 1300, math.inf]))
    leaders = Leaders(tree, size, compressor, feedback=True, buckets=buckets, window=window)
    sites = len(tree.parents)
    given_, sent = np.zeros(size), np.zeros(size)
    for step in range(steps):
        vectors = vectors_of(sites, size, step)
        sums = leaders.sums(vectors, key=step, advances=step == 1)
        assert all(each.tobytes() == sums[0].tobytes() for each in sums)
        given_ += vectors.sum(axis=0, dtype="f8")
        sent += sums[0]
    kept = sum(exchange.residual.astype("f8") for exchange in leaders.exchanges)
    np.testing.assert_allclose(given_, sent + kept, atol=1e-4)
    wires = leaders.sent[leaders.sent > 0]
    assert set(zip(*np.nonzero(leaders.sent))) == (edges(tree) if size else set())
    assert len(set(wires.tolist())) <= 1  # as much on every edge, whatever hangs below
    for site, exchange in enumerate(leaders.exchanges):
        foretold = np.zeros(sites, np.int64)
        for peer, nbytes in exchange.predicted():
            foretold[peer] += nbytes
        np.testing.assert_array_equal(steps * foretold, leaders.sent[site])


@pytest.mark.parametrize("tree", [AggregationTree.star(0, 3), AggregationTree((None, None, 1), 0)])
def test_no_more_is_on_its_way_up_than_the_window_and_a_hub_waits_for_none(tree, monkeypatch):
    """Chunks of 600 bytes, 60 of them; three fit into the window."""
    away, rise = {}, Hierarchical._rise

    def watched(exchange, total, key):
        rise(exchange, total, key)
        nbytes = sum(chunk.wire_nbytes for chunk in exchange.falling)
        away[exchange.index] = max(away.get(exchange.index, 0), nbytes)

    monkeypatch.setattr(Hierarchical, "_rise", watched)
    Leaders(tree, 9000, isthmus.Dense(), window=2399).sums(vectors_of(3, 9000, 0))
    assert away == {site: 0 if tree.above(site) is None else 1800 for site in range(3)}


def test_where_the_caller_does_other_work_all_is_sent_at_once():
    buckets = [slice(0, 3000), slice(3000, 9000)]
    star = AggregationTree.star(0, 2)
    exchange = Leaders(star, 9000, isthmus.Dense(), buckets=buckets, window=2399).exchanges[0]
    exchange.clock.start()
    total, away = np.zeros(9000, "f4"), []
    for number, bucket in enumerate(buckets):  # and nobody answers
        exchange.start(total, number, 0, GivenBucket(bucket, [total[bucket].copy()], 1.0))
        away.append(len(exchange.falling))
    exchange.advance(total, 0)
    assert [*away, len(exchange.falling)] == [20, 20, 60]


def test_a_window_is_what_the_link_carries_while_a_chunk_goes_up_and_comes_down():
    link = {"latency_seconds": 0.01, "bytes_per_second": 12.5e6}
    two, star, shared, alone = (
        isthmus.Cluster(table)
        for table in (
            cluster_of(1, 1, **link),
            cluster_of(1, 1, 1, **link),
            cluster_of(1, 1, 1, **link, shared="uplink"),
            cluster_of(2),
        )
    )
    once = 0.01 + 60_000 / 12.5e6
    whole = pytest.approx(12.5e6 * (2 * once + SLACK_SECONDS))
    assert [window_nbytes(two, site, 60_000) for site in (0, 1)] == [whole] * 2
    assert [window_nbytes(star, site, 60_000) for site in (0, 1, 2)] == [math.inf, whole, whole]
    # Two wires share one rate, each way.
    crowded = 0.01 + 2 * 60_000 / 12.5e6
    part = pytest.approx(12.5e6 / 2 * (2 * crowded + SLACK_SECONDS))
    assert [window_nbytes(shared, site, 60_000) for site in (1, 2)] == [part] * 2
    assert window_nbytes(alone, 0, 60_000) == math.inf
    # The last site reaches the one above it over the first: two wires on each link, and two levels.
    deep = star.with_tree(AggregationTree((None, 0, 1), 0))
    far = pytest.approx(12.5e6 / 2 * (2 * (0.03 + 2 * 60_000 / 12.5e6) + 2 * SLACK_SECONDS))
    assert window_nbytes(deep, 1, 60_000) == far


def quantisation_bound(tree, vectors, step):
    """Return the largest error of any entry of the sum: half a step of each encoding on its way.

    step: of the largest entry that is encoded. An encoding is off by half a step of what it is given,
    which is the sum below it and what that is already wrong by.
    """
    sites = len(tree.parents)
    sums, wrong = vectors.astype("f8"), np.zeros(sites)
    for site in reversed(tree.downwards):
        if site == tree.hub and tree.partner is None:
            continue
        wrong[site] += step / 2 * (np.abs(sums[site]).max() + wrong[site])
        if (parent := tree.parents[site]) is not None:
            sums[parent] += sums[site]
            wrong[parent] += wrong[site]
    top = [tree.hub] if tree.partner is None else [tree.hub, tree.partner]
    total, off = np.abs(sums[top].sum(axis=0)).max(), wrong[top].sum()
    if sites == 2:
        return off
    return off + step / 2 * (total + off)


@settings(max_examples=60)
@given(
    trees(),
    st.sampled_from([(isthmus.Int8(), 1 / 127), (isthmus.Int4(), 1 / 7)]),
    st.integers(1, 1500),
    st.integers(0, 9),
)
def test_the_error_is_half_a_step_a_level_and_no_more(tree, kind, size, seed):
    compressor, step = kind
    vectors = vectors_of(len(tree.parents), size, seed)
    true = vectors.sum(axis=0, dtype="f8")
    error = np.abs(Leaders(tree, size, compressor).sums(vectors)[0] - true).max()
    assert error <= quantisation_bound(tree, vectors, step) * 1.001 + 1e-5


@pytest.mark.parametrize(
    ("parents", "hub", "quantisations"),
    [
        ((None, None), 0, 1),
        ((None, 0, 0, 0), 0, 2),
        ((None, 0, 1, 2), 0, 4),
        ((None, None, 1, 1, 1), 0, 3),
        ((1, None, 1, 1, 1), 1, 2),
    ],
)
def test_the_squared_error_grows_by_one_quantisation_a_level(parents, hub, quantisations):
    tree = AggregationTree(parents, hub)
    assert tree.quantisations == quantisations
    vectors = vectors_of(len(parents), 100_000, 1)
    true = vectors.sum(axis=0, dtype="f8")
    found = Leaders(tree, 100_000, isthmus.Int8(), chunk_nbytes=60_000).sums(vectors)[0]
    nmse = ((found - true) ** 2).sum() / (true**2).sum()
    assert nmse <= quantisations * 5.2e-5
    if quantisations > 1:  # the least: the sum as it comes down, and what the top took in
        assert nmse > 5e-5


def chain(*ranks):
    """A cloud, a region, and edges that reach the rest through the region."""
    table = cluster_of(*ranks)
    for link in table["link"][1:]:
        link["between"] = ["site1", link["between"][1]]
    return table


@pytest.mark.ranks(5)
def test_a_region_sums_for_its_edges_in_a_job(comm):
    """Sites of several ranks, chunks and buckets; the same over any tree as by the counted formula."""
    size = 40_000
    for ranks in ((1, 1, 1, 1, 1), (2, 1, 2), (1, 2, 1, 1)):
        for hub in ("site0", "site1", ["site0", "site1"]):
            cluster = isthmus.Cluster(chain(*ranks) | {"hub": hub})
            with isthmus.split_tiers(comm, cluster) as tiers:
                for compressor in (None, isthmus.Int8(), isthmus.LowRank(1)):
                    check_job(tiers, size, compressor)


def check_job(tiers, size, compressor):
    rank, world = tiers.world.rank, tiers.world
    allreduce = isthmus.Allreduce(tiers, size, compressor=compressor)
    vectors = [vectors_of(1, size, each)[0] for each in range(world.size)]
    first, mean = (allreduce(vectors[rank]).astype("f8") for _ in range(2))
    assert len({*gather_json(world, hashlib.sha256(mean.tobytes()).hexdigest())}) == 1
    np.testing.assert_array_equal(allreduce.sent_to_sites, 2 * allreduce.predicted_to_sites())
    kept = np.sum(gather_json(world, allreduce.residual.tolist()), axis=0)
    given_ = 2 * np.mean(vectors, 0, "f8")
    assert kept.any() == (compressor is not None)
    np.testing.assert_allclose(given_, first + mean + kept, atol=2e-5)
    uplink = int(allreduce.sent_to_sites.sum() - allreduce.sent_to_sites[tiers.site_index])
    of_site = gather_json(world, uplink)
    wire = of_site[tiers.cluster.ranks_of_site("site0")[0]]
    for name in tiers.cluster.names[2:]:  # an edge sends one wire, as the cloud over the uplink does
        assert of_site[tiers.cluster.ranks_of_site(name)[0]] == wire


BAD = {
    "a circle": (
        {1: {"parent": "site2"}, 2: {"parent": "site1"}},
        {},
        "site[1].parent",
        "take `parent` out",
    ),
    "its own parent": ({1: {"parent": "site1"}}, {}, "site[1].parent", "is a circle"),
    "an unknown parent": ({1: {"parent": "site9"}}, {}, "site[1].parent", "known sites: site0"),
    "a parent without relay": (
        {1: {"relay": False}, 2: {"parent": "site1"}},
        {},
        "site[2].parent",
        "name another parent",
    ),
    "a hub without relay": ({1: {"relay": False}}, {"hub": "site1"}, "hub", "name another hub"),
    "an unknown hub": ({}, {"hub": "site9"}, "hub", "known sites: site0"),
    "three hubs": ({}, {"hub": ["site0", "site1", "site2"]}, "hub", "name one, or two"),
    "a hub with a parent": (
        {1: {"parent": "site0"}},
        {"hub": "site1"},
        "hub",
        "take one of the two out",
    ),
    "nobody relays": ({n: {"relay": False} for n in range(4)}, {}, "relay = false", "take it out"),
    "an unknown site of a ring": ({}, {"ring": ["site0", "site9"]}, "ring", "known sites: site0"),
    "a ring that meets a site twice": (
        {},
        {"ring": ["site0", "site1", "site1", "site2", "site3"]},
        "ring",
        "name each site once",
    ),
    "a ring that leaves sites out": (
        {},
        {"ring": ["site0", "site2"]},
        "ring",
        "leaves out 'site1', 'site3'; name each site once",
    ),
    "a ring through a site without relay": (
        {2: {"relay": False}},
        {"ring": ["site0", "site1", "site2", "site3"]},
        "ring",
        "take that out of the cluster file",
    ),
    "a site no link reaches": (
        {},
        {"link": [{"between": ["site0", "site1"], "latency_seconds": 0.1, "bytes_per_second": 1e6}]},
        "site2",
        "add a [[link]]",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_tree_is_told_with_file_key_and_cure(what):
    of_sites, keys, key, cure = BAD[what]
    table = chain(1, 1, 1, 1) | keys
    for site, changed in of_sites.items():
        table["site"][site] |= changed
    with pytest.raises(ClusterError) as caught:
        isthmus.Cluster(table, source="sites.toml")
    text = str(caught.value)
    assert text.startswith("sites.toml: ")
    assert key in text
    assert cure in text
    assert "\n" not in text


def test_a_file_tells_its_tree_or_the_routes_do():
    def tree(**keys):
        return isthmus.Cluster(chain(1, 1, 1, 1) | keys).tree

    assert tree() == AggregationTree((None, 0, 1, 1), 0)
    assert tree(hub="site1") == AggregationTree((1, None, 1, 1), 1)
    assert tree(hub=["site0", "site1"]) == AggregationTree((None, None, 1, 1), 0)
    table = chain(1, 1, 1, 1)
    table["site"][1]["relay"] = False  # then sums pass it as they are
    assert isthmus.Cluster(table).tree == AggregationTree.star(0, 4)
    table = chain(1, 1, 1, 1)
    table["site"][2]["parent"] = "site3"
    assert isthmus.Cluster(table).tree == AggregationTree((None, 0, 3, 1), 0)
    assert isthmus.Cluster(cluster_of(1, 1)).tree == AggregationTree.star(0, 2)


@given(trees(least=3))
def test_a_tree_that_is_told_reads_back_the_same(tree):
    sites = len(tree.parents)
    cluster = isthmus.Cluster(cluster_of(*[1] * sites)).with_tree(tree)
    assert cluster.tree == tree
    assert isthmus.Cluster(cluster.to_table()).tree == tree
    assert error_of(cluster, 1000, isthmus.Int8()) == pytest.approx(4.8e-5 * tree.quantisations, rel=0.1)
