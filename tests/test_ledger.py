"""Who took which samples: whatever ranks come and go, each is taken once an epoch."""

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.errors import ShardError
from isthmus.jobs.resuming import until_checkpoint
from isthmus.links.agreement import from_root, gather_json, together
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.recovery.handover import adapted, arrays_of, mates
from isthmus.recovery.ledger import Ledger, Part
from isthmus.shards.batches import LocalSamples


def placements(draw, shards, ranks):
    """Return shards on ranks at random."""
    of_rank = [[] for _ in range(ranks)]
    for shard in draw.permutation(shards):
        of_rank[draw.integers(ranks)].append(int(shard))
    return [sorted(each) for each in of_rank]


@pytest.mark.parametrize("seed", range(20))
def test_every_sample_is_taken_once_whoever_comes_and_goes(seed):
    draw = np.random.default_rng(seed)
    samples, steps, epochs = draw.integers(0, 30, 12).tolist(), int(draw.integers(1, 9)), 3
    ledger = Ledger(samples, steps, seed)
    changes = {0, *draw.integers(1, steps * epochs, draw.integers(0, 6)).tolist()}
    taken = [np.zeros(sum(samples), int) for _ in range(epochs)]
    firsts = np.cumsum([0, *samples])
    for first, end in zip(sorted(changes), [*sorted(changes)[1:], steps * epochs]):
        ranks = int(draw.integers(1, 6))
        part = Part(first, {}, placements(draw, len(samples), ranks))
        ledger.add(part)
        for rank, shards in enumerate(part.shards_of_rank):
            numbers = np.concatenate([np.arange(*firsts[each : each + 2]) for each in [*shards, 0]])
            numbers = numbers[: len(numbers) - samples[0]]
            local, rest = LocalSamples({"x": numbers}), ledger.rest_of(rank)
            for step in range(first, end):  # what a rank does
                epoch, done = divmod(step, steps)
                now = rest if rest is not None and rest.epoch == epoch else None
                since, rows = (now.since, now.rows) if now else (0, None)
                (batch,) = next(
                    local.batches(
                        steps=steps - since,
                        seed=seed,
                        epoch=epoch,
                        start=done - since,
                        rows=rows,
                        since=since,
                    )
                )
                np.add.at(taken[epoch], batch, 1)
    for epoch in range(epochs):
        assert (taken[epoch] == 1).all()
        assert (ledger.taken(epoch) == 1).all()  # and the ledger knows it
        assert ledger.account(epoch) == {"once": sum(samples), "again": 0, "lost": {}}


def test_a_new_rank_begins_as_the_first_of_its_site():
    """Sites that exchange now and then have an optimizer each, the same on all of their ranks."""
    assert mates(["a", "b", "b"], ["a", "b", "b", "b", "c"]) == [0, 1, 1, 1, 0]
    held = [{"optimiser/m": np.full(2, rank), "buffers/f": np.full(2, rank)} for rank in range(3)]
    wanted = {name: np.zeros(2) for name in held[0]}
    for before, mate, of in ((None, 1, 1), (2, 1, 2), (None, 0, 0)):
        found = arrays_of(held, before, wanted, mate)
        assert found["optimiser/m"].tolist() == [of] * 2
        assert found["buffers/f"].tolist() == [0 if before is None else before] * 2


def test_samples_that_nobody_could_read_are_told_by_shard():
    ledger = Ledger([10, 20, 30], 5, 0)
    ledger.add(Part(0, {}, [[0, 1], [2]]))
    ledger.add(Part(7, {}, [[0, 1], []]))  # shard 2 went with its rank, after two steps of the epoch
    assert ledger.account(0) == {"once": 60, "again": 0, "lost": {}}
    assert ledger.account(1) == {"once": 42, "again": 0, "lost": {"2": 18}}
    assert ledger.never == [2]


def test_the_same_ranks_go_on_from_a_checkpoint_with_other_shards_where_that_may_be():
    def identity(placement):
        sites = [["a", "cloud", 1], ["b", "edge", 1]]
        return {"ranks": 2, "sites": [0, sites], "plan": {"hash": placement}, "training": {}}

    holders = {"parameters": [0, 0], "gradients/memory": [0, 1], "strategy/agreed": [0, 0]}
    table = {"step": 4, "identity": identity("h"), "notes": {"parts": 1}, "holder_of_rank": holders}
    entries = {"parameters": 3, "gradients/memory": 3, "strategy/agreed": 1}
    arrays = {f"{name}/{rank}": np.ones(count) for name, count in entries.items() for rank in (0, 1)}
    wanted = [entries] * 2
    assert adapted(arrays, table, wanted, identity("h"), placed_anew=True) is table
    assert adapted(arrays, table, wanted, identity("g")) is table
    found = adapted(arrays, table, wanted, identity("g"), placed_anew=True)
    assert found["holder_of_rank"] == holders
    assert found["notes"] == {"parts": 1, "came_from": [0, 1], "lost": []}
    assert found["identity"]["plan"] == {"hash": "g"}


@pytest.mark.parametrize("compressor", [None, isthmus.Int8(64), isthmus.TopK(0.1)])
def test_threads_sum_as_ranks_do(compressor):
    cluster = isthmus.Cluster(cluster_of(3, 1, 2))
    given = np.random.default_rng(0).standard_normal((6, 500)).astype("f4")

    def act(table, rank):
        tiers = tiers_in_process(table, cluster, rank)
        mean = isthmus.Allreduce(tiers, 500, compressor=compressor)(given[rank])
        return mean, gather_json(tiers.world, rank), from_root(tiers.world, lambda: "told", 4)

    made = in_threads(6, act)
    assert len({mean.tobytes() for mean, _, _ in made}) == 1
    assert np.abs(made[0][0] - given.mean(0)).max() < (1e-6 if compressor is None else 2)
    assert all(each[1:] == (list(range(6)), "told") for each in made)


def test_a_thread_that_fails_ends_the_others():
    cluster = isthmus.Cluster(cluster_of(2, 1))

    def fail(table, rank):
        tiers = tiers_in_process(table, cluster, rank)
        if rank == 1:
            raise ShardError("gone")
        gather_json(tiers.world, rank)

    with pytest.raises(ShardError, match="gone"):
        in_threads(3, fail)

    def wrong():
        raise ShardError("wrong")

    with pytest.raises(ShardError, match="wrong"):
        in_threads(3, lambda table, rank: together(tiers_in_process(table, cluster, rank).world, wrong))


def test_who_came_or_went_after_a_checkpoint_and_before_the_next_step_is_not_of_it():
    kinds = ["members", "step", "members", "lost", "evaluation", "members", "lost", "joined", "step"]
    steps = [0, 3, 3, 3, 3, 3, 3, 3, 4]  # the checkpoint is written after the evaluation
    lines = [{"kind": kind, "step": step} for kind, step in zip(kinds, steps, strict=True)]
    assert [*map(until_checkpoint(3, 2), lines)] == [True] * 5 + [False] * 4
    assert [*map(until_checkpoint(3, None), lines)] == [True] * 8 + [False]
