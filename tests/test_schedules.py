"""Who sends what to whom: the trees are trees, the halves are halves."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.schedules import TREE_CHUNK_ENTRIES, Swap, core_ranks, doublings, halvings, trees

LONG = 4 * TREE_CHUNK_ENTRIES


@pytest.mark.parametrize("ranks", [*range(1, 40), 64, 100, 1000])
def test_each_tree_reaches_every_rank_in_few_hops_with_two_children_at_most(ranks):
    both = trees(ranks, LONG)
    assert len(both) == 2
    for tree in both:
        assert len(tree.parents) == ranks
        assert tree.parents.count(None) == 1
        assert max(tree.depth(rank) for rank in range(ranks)) <= math.ceil(math.log2(ranks))
        assert max(map(len, tree.children)) <= 2
        assert sorted(child for below in tree.children for child in below) == [
            rank for rank in range(ranks) if tree.parents[rank] is not None
        ]


@pytest.mark.parametrize("ranks", [*range(2, 40), 64, 100, 1000])
def test_a_rank_with_children_in_one_tree_is_a_leaf_in_the_other(ranks):
    """So no rank sends more than twice the vector; of an odd number rank 0 has one child in each."""
    first, second = (tree.children for tree in trees(ranks, LONG))
    both = [rank for rank in range(ranks) if first[rank] and second[rank]]
    assert both == ([0] if ranks % 2 else [])
    assert all(len(tree[0]) == 1 for tree in (first, second)) or ranks % 2 == 0


@given(st.integers(1, 20), st.integers(0, 200_000))
def test_the_chunks_of_the_trees_are_the_vector(ranks, size):
    chunks = [chunk for tree in trees(ranks, size) for chunk in tree.chunks]
    assert [entry for chunk in chunks for entry in (chunk.start, chunk.stop)][1:-1:2] == [
        chunk.start for chunk in chunks[1:]
    ]
    assert sum(tree.entries for tree in trees(ranks, size)) == size
    assert all(0 < chunk.stop - chunk.start <= TREE_CHUNK_ENTRIES for chunk in chunks)


def test_a_short_vector_goes_along_one_tree():
    assert len(trees(5, TREE_CHUNK_ENTRIES)) == 1
    assert len(trees(5, TREE_CHUNK_ENTRIES + 1)) == 2


@pytest.mark.parametrize(
    ("ranks", "core"),
    [
        (1, [0]),
        (2, [0, 1]),
        (3, [1, 2]),
        (4, [0, 1, 2, 3]),
        (5, [1, 2, 3, 4]),
        (6, [1, 3, 4, 5]),
        (7, [1, 3, 5, 6]),
        (8, list(range(8))),
    ],
)
def test_what_is_over_a_power_of_two_folds_into_its_neighbour(ranks, core):
    assert core_ranks(ranks) == core


@given(st.integers(1, 40))
def test_doubling_adds_every_rank_once_on_every_rank_in_the_fewest_steps(ranks):
    """Messages from one rank to another are taken in order."""
    steps = [list(doublings(ranks, rank)) for rank in range(ranks)]
    core = 1 << (ranks.bit_length() - 1)
    assert max(map(len, steps)) <= core.bit_length() - 1 + 2 * (ranks > core)
    has, under_way = [[rank] for rank in range(ranks)], {}
    while any(steps):
        before = sum(map(len, steps))
        for rank, own in enumerate(steps):
            if own and own[0].target is not None and (rank, own[0].target) not in under_way:
                under_way[rank, own[0].target] = list(has[rank])
        for rank, own in enumerate(steps):
            if not own:
                continue
            step = own[0]
            came = [] if step.source is None else under_way.get((step.source, rank))
            if came is None:
                continue
            own.pop(0)
            if step.source is not None:
                del under_way[step.source, rank]
                has[rank] = has[rank] + came if step.sums else came
        assert sum(map(len, steps)) < before, "nobody goes on"
    assert not under_way
    assert all(sorted(own) == list(range(ranks)) for own in has)
    assert doublings(3, 0) == [Swap(1, None), Swap(None, 1, sums=False)]


@given(st.integers(0, 6), st.integers(0, 10_000))
def test_two_ranks_halve_what_both_still_sum_until_each_entry_has_one_rank(log2, size):
    core = core_ranks(1 << log2)
    steps = [halvings(core, position, size) for position in range(len(core))]
    for rank, own in enumerate(steps):
        assert len(own) == log2
        for number, step in enumerate(own):
            of_peer = steps[step.peer][number]
            assert (of_peer.peer, of_peer.keep, of_peer.give) == (rank, step.give, step.keep)
            whole = own[number - 1].keep if number else slice(0, size)
            assert {whole.start, whole.stop} <= {
                step.keep.start,
                step.keep.stop,
                step.give.start,
                step.give.stop,
            }
            halves = sorted([(step.keep.start, step.keep.stop), (step.give.start, step.give.stop)])
            assert halves[0][1] == halves[1][0]
    if log2:
        last = sorted((own[-1].keep.start, own[-1].keep.stop) for own in steps)
        assert last[0][0] == 0
        assert last[-1][1] == size
        assert all(one[1] == other[0] for one, other in itertools.pairwise(last))
        assert max(stop - start for start, stop in last) <= -(-size // len(core))
