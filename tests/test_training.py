"""Training: the same bits on every rank and after every stop; what goes wrong goes wrong together."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of

import isthmus
from isthmus.checked_files import BLOCK_NBYTES
from isthmus.errors import CheckpointError, NonFiniteError, OutputError, ReplicaError
from isthmus.links.agreement import gather_json
from isthmus.models import Perceptron
from isthmus.shards.batches import LocalSamples
from isthmus.training.checkpoint import read_checkpoint, write_checkpoint
from isthmus.training.checkpoint_file import CHECKPOINT
from isthmus.training.loop import MEASURED, State, Training
from isthmus.training.recipe import Recipe
from isthmus.training.replicas import Replicas
from isthmus.training.strategies.strategy import Member
from isthmus.vectors import bucket_slices

MODEL = Perceptron(6, (5,), 3)
RECIPE = Recipe(epochs=3, steps=4, learning_rate=0.1, seed=7)


def samples_of(rank, count):
    draw = np.random.default_rng([5, rank])
    features = draw.normal(size=(count, 6)).astype("f4")
    return LocalSamples({"features": features, "targets": draw.integers(0, 3, count)})


def training_of(tiers, counts, recipe=RECIPE, compressor=None, model=MODEL, buckets=1, **options):
    local = samples_of(tiers.world.rank, counts[tiers.world.rank])
    allreduce = isthmus.Allreduce(
        tiers,
        model.size,
        compressor=compressor,
        weight=float(local.samples),
        buckets=bucket_slices(model.tensor_slices, buckets),
    )
    return Training(
        tiers, model, local, Member(allreduce), recipe, State.initial(model, recipe), **options
    )


def run(training):
    for _ in training.steps():
        pass
    return Replicas(training).compare()


@pytest.mark.ranks(4)
@pytest.mark.parametrize("counts", [(10, 10, 10, 10), (17, 9, 3, 0), (40, 0, 0, 0)])
@pytest.mark.parametrize("buckets", [1, 4])
def test_unequal_ranks_learn_what_one_process_would(comm, counts, buckets):
    """Against plain SGD in float64 on the union of what every rank's batches hold."""
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        training = training_of(tiers, counts, buckets=buckets)
        run(training)
    everyone = [samples_of(rank, count) for rank, count in enumerate(counts)]
    parameters = MODEL.initial(RECIPE.seed).astype("f8")
    momentum, gradient = np.zeros((2, MODEL.size))
    for epoch in range(RECIPE.epochs):
        batches = [
            list(local.batches(steps=RECIPE.steps, seed=RECIPE.seed, epoch=epoch)) for local in everyone
        ]
        for step in range(RECIPE.steps):
            total = np.zeros(MODEL.size)
            for features, targets in (mine[step] for mine in batches):
                MODEL.gradient(parameters, features, targets, gradient)
                total += gradient
            momentum = RECIPE.optimiser.momentum * momentum + total * RECIPE.steps / sum(counts)
            parameters -= RECIPE.learning_rate * momentum
    np.testing.assert_allclose(training.state.parameters, parameters, rtol=2e-4, atol=2e-5)


@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    "compressor",
    [
        None,
        isthmus.Int8(8, "stochastic"),
        isthmus.TopK(0.2),
        isthmus.TopK(0.5, "threshold"),
        isthmus.TopK(0.2, "random"),
        isthmus.TopK(0.2, bits=4),
        isthmus.LowRank(1, MODEL.matrix_shapes),
    ],
)
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    comm, shared_folder, compressor, stop
):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        whole = run(training_of(tiers, (17, 9, 3, 0), compressor=compressor))
        half = training_of(tiers, (17, 9, 3, 0), compressor=compressor)
        for _ in half.steps():
            if half.state.step == stop:
                break
        state = half.member.gradients.memory[MODEL.size :]
        assert comm.rank or state.any() or not state.size
        path = shared_folder / "checkpoint.h5"
        write_checkpoint(path, half, {"run": 1})
        again = training_of(tiers, (17, 9, 3, 0), compressor=compressor)
        read_checkpoint(path, again, {"run": 1})
        assert again.state.step == stop
        assert again.member.sent_nbytes == half.member.sent_nbytes
        assert again.member.gradients.memory.tobytes() == half.member.gradients.memory.tobytes()
        assert run(again) == whole


def another_version(path):
    """Make a whole file of another version."""
    image = path.read_bytes()[BLOCK_NBYTES:]
    path.write_bytes(b"".join(replace(CHECKPOINT, version=7).sealed(image)))


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "is damaged"),
        (lambda path: path.write_bytes(b"hello"), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.unlink() or path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.unlink() or os.mkfifo(path), "cannot be read: is a pipe"),
        (another_version, "is of version 7, this program reads 6; use the isthmus that wrote it"),
        (
            lambda path: path.write_bytes(path.read_bytes()[BLOCK_NBYTES:]),
            "is of version 3 or older, this program reads 6; use the isthmus that wrote it",
        ),
        (lambda path: None, "is of another run: run = 2, was 1"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_on_all_ranks(comm, shared_folder, spoil, message):
    path = shared_folder / "checkpoint.h5"
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        training = training_of(tiers, (5, 5))
        write_checkpoint(path, training, {"run": 1})
        if comm.rank == 0:
            spoil(path)
        comm.Barrier()
        with pytest.raises(CheckpointError, match=message) as caught:
            read_checkpoint(path, training, {"run": 2})
        assert caught.value.everywhere
        assert len(str(caught.value).splitlines()) == 1
        other = training_of(tiers, (5, 5), model=Perceptron(6, (4,), 3))
        if "another run" in message:
            with pytest.raises(CheckpointError, match="shape"):
                read_checkpoint(path, other, {"run": 1})


@pytest.mark.ranks(2)
def test_a_checkpoint_with_one_other_bit_anywhere_is_refused_on_all_ranks(comm, shared_folder):
    path = shared_folder / "checkpoint.h5"
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        training = training_of(tiers, (5, 5), compressor=isthmus.Int8(8))
        write_checkpoint(path, training, {"run": 1})
        whole = path.read_bytes()
        comm.Barrier()  # before rank 0 writes another one
        for place in range(comm.size, len(whole), 11):
            if comm.rank == 0:
                other = bytearray(whole)
                other[place] ^= 1 << place % 8
                path.write_bytes(other)
            with pytest.raises(CheckpointError, match="is damaged: its bytes are not those") as caught:
                read_checkpoint(path, training, {"run": 1})
            assert caught.value.everywhere
        if comm.rank == 0:
            path.write_bytes(whole)
        read_checkpoint(path, training, {"run": 1})


@pytest.mark.ranks(2)
def test_a_checkpoint_that_cannot_be_written_is_an_error_on_all_ranks(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        training = training_of(tiers, (5, 5))
        with pytest.raises(OutputError, match="cannot be written"):
            write_checkpoint(Path("/proc/no/checkpoint.h5"), training, {})


def poison(training, rank, step, value=np.nan):
    """Make `rank`'s gradient of one step hold a NaN, or another `value`."""
    honest = training.model.gradient

    class Poisoned:
        def __getattr__(self, name):
            return getattr(honest.__self__, name)

        def gradient(self, parameters, features, targets, gradient, ready):
            def poisoned(first):
                if training.state.step == step and training.tiers.world.rank == rank:
                    gradient[max(3, first)] = value
                ready(first)

            return honest(parameters, features, targets, gradient, poisoned)

    training.model = Poisoned()


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("compressor", "value", "message"),
    [
        (
            isthmus.Dense("float16"),
            1e6,
            r"step 3: gradients are finite, .* Dense\(dtype='float16'\) holds, "
            "65504; take .*bfloat16",
        ),
        (isthmus.Dense("bfloat16"), 1e6, None),
        (None, 1e6, None),
    ],
)
def test_a_sum_that_a_wire_does_not_hold_says_which_would(comm, compressor, value, message):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        training = training_of(tiers, (9, 9), compressor=compressor)
        poison(training, 1, 2, value)
        if message is None:
            run(training)
            return
        with pytest.raises(NonFiniteError, match=message) as caught:
            run(training)
        assert caught.value.everywhere
        assert caught.value.ranks == []


@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    "compressor", [None, isthmus.Int8(8), isthmus.TopK(0.2), isthmus.LowRank(1, MODEL.matrix_shapes)]
)
@pytest.mark.parametrize("culprit", [0, 3])
def test_a_step_with_a_nan_is_stopped_or_skipped_by_all(comm, compressor, culprit):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 2))) as tiers:
        stopped = training_of(tiers, (9, 9, 9, 9), compressor=compressor)
        poison(stopped, culprit, 5)
        with pytest.raises(NonFiniteError, match=f"step 6.*ranks: {culprit}") as caught:
            run(stopped)
        assert caught.value.everywhere
        skip = replace(RECIPE, on_non_finite="skip")
        skipped = training_of(tiers, (9, 9, 9, 9), skip, compressor)
        poison(skipped, culprit, 5)
        seen = []
        for _ in skipped.steps():
            before = (skipped.state.parameters.copy(), skipped.member.gradients.memory.copy())
            seen.append((skipped.non_finite_ranks, before))
        assert [step for step, (ranks, _) in enumerate(seen) if ranks] == [5]
        np.testing.assert_array_equal(seen[4][1][0], seen[5][1][0])
        np.testing.assert_array_equal(seen[4][1][1], seen[5][1][1])
        assert np.isfinite(skipped.state.parameters).all()


@pytest.mark.ranks(3)
def test_a_replica_that_drifts_by_one_bit_is_found(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 2))) as tiers:
        training = training_of(tiers, (5, 5, 5))
        Replicas(training).compare()
        if comm.rank == 2:
            training.state.parameters.view("i4")[4] ^= 1
        with pytest.raises(ReplicaError, match="on rank 2 differ"):
            Replicas(training).compare()


@pytest.mark.ranks(2)
def test_every_step_is_measured_on_every_rank(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        training = training_of(tiers, (8, 4), hold_seconds=lambda samples: 0.001 * samples)
        run(training)
        rows = training.gather_rows()
        assert training.rows == []
        if comm.rank:
            assert rows is None
            return
        assert rows.shape == (2, RECIPE.total_steps, len(MEASURED))
        of = dict(zip(MEASURED, np.moveaxis(rows, 2, 0)))
        np.testing.assert_array_equal(of["samples"].sum(axis=1), [24, 12])
        assert (of["compute"] >= 0.001 * of["samples"]).all()
        assert (of["step"] >= of["compute"] + of["allreduce"] - 1e-9).all()
        assert (np.diff(of["sent_link_nbytes"][0]) == 4 * MODEL.size).all()


@pytest.mark.ranks(3)
def test_evaluation_is_that_of_all_samples_together(comm):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 2))) as tiers:
        training = training_of(tiers, (5, 5, 5))
        found = training.evaluate(samples_of(comm.rank, (30, 0, 13)[comm.rank]))
        assert gather_json(comm, found) == [found] * 3
        nothing = training.evaluate(samples_of(comm.rank, 0))
    assert list(found) == list(nothing) == ["loss", "accuracy"]
    assert np.isnan(list(nothing.values())).all()
    loss, accuracy = found.values()
    parts = [samples_of(0, 30), samples_of(2, 13)]
    features, targets = (
        np.concatenate([part.arrays[name] for part in parts]) for name in ("features", "targets")
    )
    scores = MODEL.scores(training.state.parameters, features)
    assert accuracy == pytest.approx((scores.argmax(1) == targets).mean())
    gradient = np.empty(MODEL.size, "f4")
    expected = MODEL.gradient(training.state.parameters, features, targets, gradient) / 43
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [0.1] * 12), ("linear", [0.1 * (1 - k / 12) for k in range(12)])],
)
def test_the_learning_rate_follows_its_schedule(schedule, rates):
    recipe = replace(RECIPE, schedule=schedule)
    assert [recipe.learning_rate_of(step) for step in range(12)] == pytest.approx(rates)
