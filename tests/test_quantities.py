"""Numbers of every library are taken alike everywhere, and what is no number is refused on all ranks."""

import decimal
import fractions

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.models import Convolutional, Perceptron
from isthmus.quantities import plain, real, slices, whole
from isthmus.timing.choice import choose_allreduce

WHOLE = [
    3,
    3.0,
    np.int64(3),
    np.uint8(3),
    np.float32(3),
    np.array(3),
    np.array(3.0),
    fractions.Fraction(3),
]


TWO = isthmus.Cluster(cluster_of(1, 1, bytes_per_second=12.3e6))


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_a_whole_number_is_one_whatever_its_type(value):
    assert whole("n", value) == 3
    assert type(whole("n", value)) is int
    assert type(real("n", value)) is float


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.True_,
        "3",
        None,
        [3],
        np.array([3]),
        1j,
        slice(3),
        float("nan"),
        float("inf"),
        np.float32("nan"),
        decimal.Decimal(3),
    ],
    ids=repr,
)
def test_what_is_no_number_is_none(value):
    with pytest.raises(ValueError, match="n must be (a whole number|finite), not"):
        whole("n", value)
    with pytest.raises(ValueError, match="n must be (a number|finite), not"):
        real("n", value)


def test_numbers_keep_their_limits():
    with pytest.raises(ValueError, match=r"n must be a whole number, not 2\.5"):
        whole("n", 2.5)
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        whole("n", np.int8(0), least=1)
    with pytest.raises(ValueError, match=r"n must not be negative, not -0\.5"):
        real("n", np.float32(-0.5), least=0)
    with pytest.raises(ValueError, match="n must be at most 1, not 2"):
        real("n", 2, most=1)
    with pytest.raises(ValueError, match="buckets must be slices"):
        slices("buckets", [slice(0, 4, 2)], 4)
    assert slices("buckets", [slice(np.int8(2), None), slice(None, 2.0)], 4) == [
        slice(2, 4),
        slice(0, 2),
    ]
    assert plain({"a": np.arange(2), "b": [np.float32(0.5), (np.int8(1),)]}) == {
        "a": [0, 1],
        "b": [0.5, (1,)],
    }


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (isthmus.Int8(block=np.int64(64)), isthmus.Int8(block=64)),
        (isthmus.Int4(block=np.int16(64)), isthmus.Int4(block=64)),
        (isthmus.OneBit(block=np.float64(64)), isthmus.OneBit(block=64)),
        (isthmus.TopK(ratio=np.float64(0.5)), isthmus.TopK(ratio=0.5)),
        (isthmus.LowRank(np.int64(2), np.array([[3, 4]])), isthmus.LowRank(2, ((3, 4),))),
        (
            isthmus.Workload(
                np.prod((3, 4)),
                np.int8(8),
                buckets=[slice(np.int64(0), np.int64(12))],
                sample_nbytes=np.float32(4),
                chunk_nbytes=np.int32(100),
            ),
            isthmus.Workload(12, 8, buckets=(slice(0, 12),), sample_nbytes=4.0, chunk_nbytes=100),
        ),
        (Perceptron(np.int64(3), np.array([4]), np.int8(2)), Perceptron(3, (4,), 2)),
        (Convolutional(np.int64(8), 8.0, np.array([2])), Convolutional(8, 8, (2,))),
    ],
)
def test_what_is_made_with_numpy_s_numbers_is_what_python_s_make(given, same):
    assert given == same
    assert repr(given) == repr(same)


@pytest.mark.parametrize(
    "make",
    [
        lambda: isthmus.Int8(block=64.5),
        lambda: isthmus.Int4(block="64"),
        lambda: isthmus.OneBit(None),
        lambda: isthmus.TopK("half"),
        lambda: isthmus.TopK(float("nan")),
        lambda: isthmus.LowRank(1.5),
        lambda: isthmus.LowRank(1, ((2.5, 3),)),
        lambda: isthmus.Workload(2.5),
        lambda: isthmus.Workload(4, 0),
        lambda: isthmus.Workload(4, buckets=(4,)),
        lambda: Perceptron(hidden=(16.5,)),
        lambda: Convolutional(channels=(True,)),
        lambda: choose_allreduce(TWO, 10, largest_error="small"),
        lambda: isthmus.predict_allreduce(TWO, 2.5, algorithm="ring"),
        lambda: isthmus.plan_single_pass(1.0, [1.0], [1.0], rounds=1.5),
        lambda: isthmus.plan_shards(TWO, [10, -9], isthmus.Workload()),
        lambda: isthmus.plan_shards(TWO, [10, np.inf], isthmus.Workload()),
        lambda: isthmus.plan_shards(TWO, [10, 9], isthmus.Workload(), least_samples="some"),
        lambda: isthmus.plan_shards(TWO, [10, 9], isthmus.Workload(), pinned={"0": "site0"}),
    ],
)
def test_what_is_no_number_is_a_value_error_that_says_so(make):
    with pytest.raises(ValueError, match=r"must (be|not be)"):
        make()


def test_a_plan_made_with_numpy_s_numbers_is_the_same():
    table = cluster_of(2, 2, bytes_per_second=12.3e6)
    for site in table["site"]:
        site.update(storage_nbytes=1e9)
    cluster = isthmus.Cluster(table)
    for site in table["site"]:
        site.update(
            ranks=np.int64(2),
            storage_nbytes=np.float32(1e9),
            samples_per_second=np.full(2, site["samples_per_second"]),
        )
    same = isthmus.Cluster(table)
    assert same.sites == cluster.sites
    shards = [10, 20, 30, 40, 50]
    plain_plan = isthmus.plan_shards(
        cluster, shards, isthmus.Workload(100), pinned={0: "site1"}, least_samples=1, budget=1e9, alpha=2
    )
    plan = isthmus.plan_shards(
        same,
        np.array(shards),
        isthmus.Workload(np.int64(100)),
        pinned={np.int64(0): "site1"},
        least_samples=np.float32(1),
        budget=np.float32(1e9),
        alpha=np.int64(2),
    )
    assert plan.to_dict() == plain_plan.to_dict()


def test_shards_are_packed_and_read_by_numpy_s_numbers(tmp_path):
    shards = isthmus.pack_shards({"x": np.arange(10)}, tmp_path, shards=np.int64(3))
    assert shards.samples == (3, 3, 4)
    assert list(shards.read(np.int64(1))["x"]) == [3, 4, 5]
    with pytest.raises(ValueError, match="shards must be a whole number"):
        isthmus.pack_shards({"x": np.arange(10)}, tmp_path / "other", shards=2.5)


@pytest.mark.ranks(2)
def test_numpy_s_numbers_and_what_is_none_on_one_rank_alone(comm):
    """Without a rank that waits: what is wrong on one is raised on all."""
    with isthmus.split_tiers(comm, TWO) as tiers:
        mine = comm.rank == 1
        allreduce = isthmus.Allreduce(
            tiers,
            np.prod((4, 5)) if mine else 20,
            weight=np.float32(3) if mine else 1,
            compressor=isthmus.Int8(np.int64(4) if mine else 4),
            chunk_nbytes=np.int32(100) if mine else 100,
            buckets=[slice(np.int64(0), np.int64(20))] if mine else None,
        )
        assert allreduce(np.full(20, comm.rank, "f4")).tolist() == [0.75] * 20
        allreduce.reweigh(np.int8(1))
        for name, wrong, words in (
            ("size", 2.5, "whole number"),
            ("weight", "much", "a number"),
            ("weight", -1, "negative"),
            ("weight", float("nan"), "finite"),
            ("chunk_nbytes", 2.5, "whole number"),
            ("buckets", 5, "slices"),
            ("buckets", [(0, 20)], "slices"),
            ("compressor", "int8", "Int8()"),
            ("compressor", isthmus.Int8, "Int8()"),
            ("algorithm", 3, "algorithm must be"),
        ):
            with pytest.raises(ValueError, match="on rank 1") as caught:
                isthmus.Allreduce(tiers, **{"size": 20} | ({name: wrong} if mine else {}))
            assert words in str(caught.value)
        with pytest.raises(ValueError, match="on rank 1"):
            allreduce.reweigh("much" if mine else 1)
        assert allreduce(np.full(20, comm.rank, "f4")).tolist() == [0.5] * 20


@pytest.mark.ranks(2)
def test_what_json_has_no_word_for_is_an_error_on_all_ranks(comm):
    from isthmus.links.agreement import broadcast_json, gather_json

    mine = comm.rank == 1
    assert gather_json(comm, np.float32(comm.rank)) == [0.0, 1.0]
    assert gather_json(comm, float("inf")) == [float("inf")] * 2
    for ask in (gather_json, lambda comm, value: broadcast_json(comm, value, root=1)):
        with pytest.raises(TypeError, match="no place in JSON"):
            ask(comm, object() if mine else 1)
