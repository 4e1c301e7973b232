"""Answers across the link: those of the offline run, bytes of the formula, none later than may be."""

import dataclasses
import math
import time

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given
from hypothesis import strategies as some
from test_trained_model import kept

import isthmus
from isthmus.errors import PlanError
from isthmus.inference.dispatch import DISPATCHES
from isthmus.inference.following import Following
from isthmus.inference.forward import digest_of, joined, parts_of
from isthmus.inference.halves import halves_of
from isthmus.inference.messages import empty_batch, head_of, split_of
from isthmus.models import Convolutional, Perceptron

RANDOM = np.random.default_rng(0)
REQUESTS = RANDOM.integers(0, 256, (400, 8, 8)).astype(np.uint8)


def model(hidden, seed):
    made = Perceptron(64, hidden, 5)
    return made, made.initial(seed)


EDGE, CLOUD = model((4,), 1), model((32, 16), 2)


def offline(pair, features=REQUESTS):
    return joined(parts_of(*pair))(features)


def cascade(tiers, share, **digests):
    """Return a cascade with a threshold that keeps about such a share, whatever it loses."""
    truth = offline(CLOUD).argmax(1)
    made = isthmus.plan_cascade(
        tiers.cluster,
        offline(EDGE),
        offline(CLOUD),
        truth,
        requests_per_second=1.0,
        nbytes=64,
        accuracy_loss=1.0,
        measure="margin",
    )
    return dataclasses.replace(made, threshold=made.threshold_at(share), share=share, **digests)


def ask(tiers, **options):
    """Return the Answers of the edge rank, on all ranks None but there."""
    arrivals = options.pop("arrivals", None)
    with isthmus.Inference(tiers, **options) as inference:
        if inference.asks:
            return inference.answer(REQUESTS, arrivals)
        inference.serve()
    return None


@pytest.mark.ranks(3)
def test_answers_are_those_of_the_offline_run_and_bytes_those_of_the_formula(comm):
    if comm is None:
        return
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 1))) as tiers:
        both, own, plan = offline(CLOUD).argmax(1), offline(EDGE).argmax(1), cascade(tiers, 0.4)
        kept = plan.keeps(offline(EDGE))
        for options, wanted, from_cloud in (
            ({"plan": "cloud", "cloud": CLOUD}, both, np.ones(400, bool)),
            ({"plan": "edge", "edge": EDGE}, own, np.zeros(400, bool)),
            (
                {"plan": plan, "edge": EDGE, "cloud": CLOUD, "queue_seconds": math.inf},
                np.where(kept, own, both),
                ~kept,
            ),
            ({"plan": "cloud", "cloud": CLOUD, "batch": 7, "dispatch": "round_robin"}, both, None),
        ):
            found = ask(tiers, **options)
            if found is None:
                continue
            np.testing.assert_array_equal(found.answers, wanted)
            if from_cloud is not None:
                np.testing.assert_array_equal(found.from_cloud, from_cloud)
            sent = int(found.from_cloud.sum())
            assert found.sent_nbytes == found.predicted_nbytes == 64 * sent + 32 * found.batches
            total = np.nansum(list(found.terms.values()), axis=0)
            np.testing.assert_allclose(total, found.seconds, atol=1e-6)
            if options.get("dispatch") == "round_robin":
                turns = np.flatnonzero(np.diff(found.server)) + 1  # after each batch the other's
                sizes = np.diff(turns, prepend=0, append=len(found.server))
                assert len(sizes) == found.batches
                assert sizes.max() <= 7

        scores = ask(tiers, plan="cloud", cloud=CLOUD, answers="scores", batch=11)
        if scores is not None:  # the same bits as in one batch of 400
            np.testing.assert_array_equal(scores.answers, offline(CLOUD))


@pytest.mark.ranks(2)
def test_a_slow_cloud_costs_no_more_than_the_deadline_and_a_broken_answer_is_told(comm):
    if comm is None:
        return

    def slow(features):
        time.sleep(3)
        return offline(CLOUD, features)

    def broken(features):
        scores = offline(CLOUD, features)
        scores[::2] = np.nan
        return scores

    offline(EDGE)  # loads what is compiled
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        late = ask(tiers, plan="cloud", edge=EDGE, cloud=slow, batch=400, deadline_seconds=0.1)
        first = ask(tiers, plan="cloud", edge=EDGE, cloud=slow, batch=400)
        waits = ask(tiers, plan="cloud", edge=EDGE, cloud=slow, batch=400, hedge=False)
        lost = ask(tiers, plan="cloud", cloud=broken, batch=400)
        if late is None:
            return
        for hedged in (late, first):
            assert not hedged.from_cloud.any()
            np.testing.assert_array_equal(hedged.answers, offline(EDGE).argmax(1))
        assert late.seconds.min() > 0.05
        assert late.seconds.max() < 2.5
        assert waits.from_cloud.all()
        assert waits.seconds.min() > 3
        np.testing.assert_array_equal(lost.answers < 0, np.arange(400) % 2 == 0)


@pytest.mark.ranks(2)
def test_a_split_gives_the_whole_models_scores_and_sends_what_its_layers_give(comm):
    if comm is None:
        return
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        data = {"name": "input", "entries": 64, "nbytes": 64}
        layers = [data | {"source_seconds": 0.0, "target_seconds": 0.0}]
        for part in parts_of(*CLOUD):
            cost = 1e-6 if part.name == "layer0" else 1.0
            layers.append(
                {"name": part.name, "entries": part.entries}
                | {"source_seconds": cost, "target_seconds": 1e-6}
            )
        source, target = tiers.cluster.names[1], tiers.cluster.names[0]
        layers[1]["target_seconds"] = 1.0
        ends = {"source": source, "target": target}
        plan = isthmus.plan_split(tiers.cluster, layers, **ends)
        assert plan.sent[0] == "layer0"
        found = ask(tiers, plan=plan, edge=CLOUD, cloud=CLOUD, answers="scores")
        if found is not None:
            np.testing.assert_array_equal(found.answers, offline(CLOUD))
            assert found.sent_nbytes == found.predicted_nbytes == 400 * 4 * 32 + 32 * found.batches

        for compressor in (isthmus.Int8(block=20), isthmus.Int4(block=8, rounding="stochastic")):
            small = isthmus.plan_split(tiers.cluster, layers, **ends, activations=compressor)
            assert small.sent == plan.sent
            assert small.nbytes == compressor.wire_nbytes(32)
            first, second = halves_of(small, parts_of(*CLOUD), compressor)
            both = {"edge": CLOUD, "cloud": CLOUD, "answers": "scores", "activations": compressor}
            found = ask(tiers, plan=small, batch=7, **both)
            hedged = ask(tiers, plan=small, deadline_seconds=1e-9, **both)
            with pytest.raises(PlanError, match=r"plan_split and Inference the same activations"):
                isthmus.Inference(tiers, plan=plan, **both)
            if found is None:
                continue
            wanted = second(first(REQUESTS))  # of batches of 7 and fewer the same bits as of one
            np.testing.assert_array_equal(found.answers, wanted)
            np.testing.assert_array_equal(hedged.answers, wanted)
            sent = 400 * compressor.wire_nbytes(32) + 32 * found.batches
            assert found.sent_nbytes == found.predicted_nbytes == sent
            off = np.abs(wanted - offline(CLOUD)).max()
            assert 0 < off < 0.2 * np.abs(offline(CLOUD)).max()

        layers[1]["target_seconds"] = layers[2]["target_seconds"] = layers[3]["target_seconds"] = 9.0
        alone = isthmus.plan_split(tiers.cluster, layers, **ends, activations=isthmus.Int8())
        assert not alone.sent
        found = ask(tiers, plan=alone, edge=CLOUD, cloud=CLOUD, activations=isthmus.Int8())
        if found is not None:
            np.testing.assert_array_equal(found.answers, offline(CLOUD).argmax(1))
            assert found.sent_nbytes == 0
            assert not found.from_cloud.any()


@pytest.mark.ranks(2)
def test_a_split_follows_the_link_and_answers_as_the_model_does_whichever_it_is(comm):
    if comm is None:
        return
    table = cluster_of(1, 1, latency_seconds=0.001, bytes_per_second=1e4)
    quick = cluster_of(1, 1, latency_seconds=0.001, bytes_per_second=1e9)
    layers = [
        {"name": "input", "entries": 64, "nbytes": 64, "source_seconds": 0.0, "target_seconds": 0.0}
    ]
    for part, seconds in zip(parts_of(*CLOUD), (0.0002, 0.01, 0.01)):
        layers.append(
            {"name": part.name, "entries": part.entries, "target_seconds": 1e-6}
            | {"source_seconds": seconds}
        )
    options = {"source": "site1", "target": "site0", "activations": isthmus.Int4(block=8)}
    chain = isthmus.plan_splits(isthmus.Cluster(quick), layers, **options)
    assert chain.best(1e-9) == 0  # as the plan's file has it, the data is sent
    with isthmus.split_tiers(comm, isthmus.Cluster(table)) as whole:
        tiers = whole.paced()
        told = {"plan": chain, "edge": CLOUD, "cloud": CLOUD, "answers": "scores", "batch": 10}
        told |= {"activations": options["activations"], "recent_seconds": 1e9}
        found = ask(tiers, **told, arrivals=np.arange(400) / 400)
        if found is None:
            return
        assert found.split[-1] > 0  # 640 bytes of data took 64 ms
        assert found.sent_nbytes == found.predicted_nbytes
        halves = [halves_of(each, parts_of(*CLOUD), told["activations"]) for each in chain.splits]
        for split in np.unique(found.split):
            mine = found.split == split
            first, second = halves[split]
            np.testing.assert_array_equal(found.answers[mine], second(first(REQUESTS[mine])))


def test_a_split_is_chosen_by_what_the_link_carried_lately_and_by_the_file_once_that_is_old():
    layers = [
        {"name": "input", "entries": 1000, "nbytes": 1000, "source_seconds": 0.0, "target_seconds": 0.0},
        {"name": "first", "entries": 25, "source_seconds": 0.1, "target_seconds": 0.001},
        {"name": "last", "entries": 2, "source_seconds": 0.5, "target_seconds": 0.001},
    ]
    cluster = isthmus.Cluster(cluster_of(1, 1, latency_seconds=0.0, bytes_per_second=1e6))
    chain = isthmus.plan_splits(cluster, layers, source="site1", target="site0")
    now = [0.0]
    following = Following(chain, [], 1e-6, 0.0, 30.0, lambda: now[0])
    assert following.choose() == 0
    following.note(7, sent=1.0, came=2.0, done=2.5, nbytes=1000)  # 1 kB/s
    assert following.seconds_per_byte == pytest.approx(1e-3)
    assert following.choose() == 1
    following.note(7, sent=2.0, came=2.5, done=3.0, nbytes=1000)  # the cloud was at work until then
    assert following.seconds_per_byte == pytest.approx(1e-3)
    following.note(8, sent=2.2, came=22.5, done=23.0, nbytes=1000)  # 20 s behind the one before
    assert following.seconds_per_byte == pytest.approx(21 / 2000)
    assert following.choose() == 2
    now[0] = 31.0
    assert following.seconds_per_byte == 1e-6
    assert following.choose() == 0


@pytest.mark.ranks(2)
def test_a_threshold_follows_the_queue_and_wrong_arguments_are_told_on_every_rank(comm):
    if comm is None:
        return
    slow = cluster_of(1, 1, latency_seconds=0.001, bytes_per_second=64 * 40.0)
    with isthmus.split_tiers(comm, isthmus.Cluster(slow)) as whole:
        tiers = whole.paced()
        arrivals = np.arange(400) / 160.0  # four times what the link carries
        plan = cascade(tiers, 0.0)
        assert plan.share == 0.0
        found = ask(tiers, plan=plan, edge=EDGE, cloud=CLOUD, queue_seconds=0.25, arrivals=arrivals)
        if found is not None:
            assert 0.05 < found.from_cloud.mean() < 0.6
            assert np.quantile(found.seconds, 0.99) < 4  # all sent would end 7.5 s late
        other = dataclasses.replace(plan, edge_model=digest_of(*CLOUD))
        for problem, text, options in (
            (PlanError, "plan the cascade again", {"plan": other, "edge": EDGE, "cloud": CLOUD}),
            (ValueError, "plan must be", {"plan": "both"}),
            (ValueError, "give cloud=", {"plan": "cloud"}),
            (ValueError, "dispatch must be", {"plan": "edge", "edge": EDGE, "dispatch": "any"}),
            (
                ValueError,
                "of a Split alone",
                {"plan": "edge", "edge": EDGE, "activations": isthmus.Int8()},
            ),
        ):
            with pytest.raises(problem, match=text):
                isthmus.Inference(tiers, **options)


@given(some.integers(1, 70), some.integers(0, 2**31), some.sampled_from([1, 3]))
def test_the_bits_of_a_sample_do_not_depend_on_the_batch(count, seed, channels):
    random = np.random.default_rng(seed)
    made = Convolutional(channels=(3, 5), classes=4, inputs=(channels, 12, 11))
    parameters = random.normal(size=made.size).astype(np.float32)
    features = random.integers(0, 256, (count, channels, 12, 11)).astype(np.uint8)
    whole = joined(parts_of(made, parameters))(features)
    one = int(random.integers(count))
    np.testing.assert_array_equal(
        joined(parts_of(made, parameters))(features[one : one + 1])[0], whole[one]
    )
    exact = made.scores(parameters.astype(np.float64), features)
    np.testing.assert_allclose(whole, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_is_not_hidden_by_a_layer(bad):
    for made, shape in (
        (Perceptron(6, (5,), 3), (6,)),
        (Convolutional(channels=(2,), classes=3, height=6, width=6), (6, 6)),
    ):
        features = np.ones((3, *shape), np.float32)
        features[1] = bad
        scores = joined(parts_of(made, made.initial(0)))(features)
        assert np.isfinite(scores[[0, 2]]).all()
        expected = made.scores(made.initial(0), features)
        np.testing.assert_array_equal(np.isfinite(scores), np.isfinite(expected))


def test_on_onnx_runtime_a_model_says_what_it_says_here(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from isthmus.inference.onnx_runtime import onnx_function

    for place, made in enumerate(
        (Perceptron(16, (8,), 3), Convolutional(channels=(2,), classes=3, height=6, width=6))
    ):
        kept(tmp_path / str(place), made)
        trained = isthmus.load_model(tmp_path / str(place))[0]
        features = RANDOM.normal(size=(9, *made.inputs_shape)).astype(np.float32)
        found = onnx_function(trained)(features)
        np.testing.assert_allclose(found, joined(parts_of(trained))(features), rtol=1e-4, atol=1e-4)


def test_rules_share_requests_out_as_they_say():
    free = np.ones(3, bool)
    rates = [1.0, 2.0, 5.0]
    turns = {name: rule(rates) for name, rule in DISPATCHES.items()}
    assert [turns["round_robin"].choose(free, np.zeros(3)) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    chosen = [turns["weighted"].choose(free, np.zeros(3)) for _ in range(80)]
    assert np.bincount(chosen).tolist() == [10, 20, 50]
    assert turns["least_pending"].choose(free, np.array([0, 0, 3])) == 1
    assert turns["least_pending"].choose(np.array([True, False, False]), np.zeros(3)) == 0


@given(
    some.sampled_from(["u1", "i4", "f4", "f8"]),
    some.lists(some.integers(0, 9), max_size=5),
    some.integers(1, 9),
    some.integers(0, 5000),
)
def test_a_head_says_what_follows(dtype, shape, count, split):
    batch = np.zeros((count, *shape), dtype)
    head = head_of(batch, split)
    made = empty_batch(head)
    assert (made.shape, made.dtype, split_of(head)) == (batch.shape, batch.dtype, split)


def test_what_a_head_cannot_say_is_refused():
    for batch in (np.zeros((2, 1, 1, 1, 1, 1, 1)), np.zeros(2, complex), np.zeros(2, ">f4")):
        with pytest.raises(ValueError, match="native integers or floats"):
            head_of(batch)
