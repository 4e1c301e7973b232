"""Splits: no other is shorter, and they say whether splitting pays at all."""

import itertools
import time

import numpy as np
import pytest
from clusters import cluster_of
from hypothesis import given, settings
from hypothesis import strategies as st

import isthmus
from isthmus.errors import PlanError
from isthmus.planning.splits import Layer

CODING = 1e8  # bytes a second


def cluster(**link):
    table = cluster_of(1, 1, **{"latency_seconds": 0.01, "bytes_per_second": 12.5e6} | link)
    for site in table["site"]:
        site |= {"encode_bytes_per_second": CODING, "decode_bytes_per_second": 2 * CODING}
    return isthmus.Cluster(table)


def planned(layers, *, places=None, **options):
    return isthmus.plan_split(places or cluster(), layers, source="site1", target="site0", **options)


def drawn(seed, count, chain=False):
    """Return layers of a random graph, each of which is read; the first is the data."""
    random = np.random.default_rng(seed)
    layers = [Layer("0", 0.0, 0.0, int(random.integers(1, 1e5)))]
    for number in range(1, count):
        before = random.choice(number, min(number, 1 + random.integers(3)), replace=False)
        inputs = None if chain else [str(each) for each in before]
        seconds, entries = random.exponential(0.01), int(random.exponential(2e4))
        layers.append(Layer(str(number), seconds, seconds / random.uniform(2, 20), entries, inputs))
    return layers


def brute(layers, objective, answer_at, rates, compressor):
    """Return the least seconds of all ways to run each layer here or there."""
    size, number = len(layers), {layer.name: index for index, layer in enumerate(layers)}
    edges = []
    for index, layer in enumerate(layers):
        before = [layers[index - 1].name] * (index > 0) if layer.inputs is None else layer.inputs
        edges += [(number[name], index) for name in before]
    entries = [layer.entries for layer in layers]
    nbytes = [4 * each if compressor is None else compressor.wire_nbytes(each) for each in entries]
    answers = set(range(size)) - {u for u, _ in edges}
    best = np.inf
    for rest in itertools.product([True, False], repeat=size - 1):
        here = [True, *rest]
        if any(here[v] and not here[u] for u, v in edges):
            continue
        source = sum(layer.source_seconds for layer, mine in zip(layers, here) if mine)
        target = sum(layer.target_seconds for layer, mine in zip(layers, here) if not mine)
        crossing = {u for u, v in edges if here[u] and not here[v]}
        sent = sum(nbytes[u] for u in crossing)
        coded = 4 * sum(entries[u] for u in crossing) / CODING if compressor else 0.0
        source, target = source + coded, target + coded / 2
        back = sum(4 * entries[v] / 12.5e6 for v in answers if not here[v]) * (answer_at == "source")
        late = 0.0 if all(here) else 0.01 * (1 + (answer_at == "source"))
        seconds = [
            source + sent / rate + target + back + late
            if objective == "latency"
            else max(source, sent / rate, target, back)
            for rate in rates or [12.5e6]
        ]
        best = min(best, np.mean(seconds))
    return best


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.integers(0, 10**6), st.integers(1, 9), st.booleans(), st.sampled_from(["latency", "period"]),
    st.sampled_from(["source", "target"]), st.sampled_from([None, [1e6, 2e7], [3e5, 1e7, 1e8]]),
    st.sampled_from([None, isthmus.Int8(64), isthmus.Int4(64)]),
)  # fmt: skip
def test_no_other_split_is_shorter(seed, count, chain, objective, answer_at, rates, compressor):
    layers = drawn(seed, count, chain)
    made = planned(layers, objective=objective, answer_at=answer_at, rates=rates, activations=compressor)
    shortest = brute(layers, objective, answer_at, rates, compressor)
    assert made.seconds == pytest.approx(shortest, rel=1e-6)
    assert made.lower_bound_seconds <= made.seconds
    assert made.gap < 1e-5
    if objective == "latency":
        assert sum(made.terms.values()) == pytest.approx(made.seconds)


def test_twelve_layers_are_as_short_as_the_shortest():
    for seed in range(2):
        layers = drawn(seed, 12)
        for objective in ("latency", "period"):
            shortest = brute(layers, objective, "source", None, None)
            assert planned(layers, objective=objective).seconds == pytest.approx(shortest, rel=1e-6)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("chain", "objective"), [(False, "latency"), (True, "latency"), (True, "period")]
)
def test_two_thousand_layers_take_a_tenth_of_a_second(chain, objective):
    layers = drawn(1, 2000, chain)
    planned(layers[:20], objective=objective)  # scipy is loaded
    before = time.process_time()
    planned(layers, objective=objective)
    assert time.process_time() - before < 1  # 0.1 s on a quiet core


def test_an_output_is_sent_once_for_all_that_read_it():
    layers = [
        Layer("data", 0, 0, 1_000_000),
        Layer("stem", 0.001, 0.001, 1000),
        *(Layer(name, 1.0, 0.01, 10, ["stem"]) for name in "abc"),
        Layer("join", 1.0, 0.01, 10, ["a", "b", "c"]),
    ]
    made = planned(layers)
    assert made.sent == ("stem",)
    assert made.nbytes == 4000
    assert made.source_layers == ("data", "stem")
    assert made.sentences[0].startswith("the split pays: stem sent to site0, 4,000 bytes where the data")
    assert made.sentences[1].startswith("10 % more speed at site0 saves 4 ms")


def test_where_nothing_pays_it_says_so():
    image = Layer("image", 0, 0, 784, nbytes=784)
    net = [Layer("convolution", 0.01, 0.0005, 8 * 784), Layer("scores", 0.01, 0.0005, 10)]
    made = planned([image, *net], places=cluster(latency_seconds=0.001))
    assert made.sent == ("image",)
    assert made.nbytes == 784
    assert made.sentences[0] == (
        "no split pays, as all activations are larger: the data itself, 784 bytes, is sent to site0; "
        "3.07 ms, and 20 ms with nothing sent"
    )
    made = planned([image, *net], places=cluster(latency_seconds=1.0))
    assert made.sent == made.target_layers == ()
    assert made.sentences[0].startswith("nothing is sent: 20 ms, and 2e+03 ms if the data is")


def test_under_changing_rates_the_mean_over_them_is_the_least():
    """Nine quick seconds and a slow one: the plan for the last rate loses to the one for all."""
    layers = [
        Layer("data", 0, 0, 25_000),
        Layer("small", 0.02, 0.001, 500),
        Layer("answer", 0.3, 0.01, 1),
    ]
    rates = [1e5] + [1e8] * 9

    def mean(plan):
        return np.mean(
            [sum(plan.terms.values()) - plan.terms["send"] + 0.01 + plan.nbytes / rate for rate in rates]
        )

    over_all = planned(layers, rates=rates)
    assert over_all.sent == ("small",)
    assert over_all.seconds == pytest.approx(mean(over_all))
    for other in (planned(layers, rates=rates[-1:]), planned(layers, rates=[1e3])):
        assert mean(other) > over_all.seconds


def test_the_latency_is_paid_where_one_of_two_answers_is_beyond():
    heads = [Layer("alarm", 0.001, float("inf"), 1, ["data"]), Layer("boxes", 1.0, 0.01, 10, ["data"])]
    made = planned([Layer("data", 0, 0, 100), *heads])
    assert made.target_layers == ("boxes",)
    assert made.terms["send"] == pytest.approx(0.01 + 400 / 12.5e6)
    assert made.gap < 1e-8


def test_layers_stay_where_they_take_finite_seconds():
    data, inf = Layer("data", 0, 0, 10), float("inf")
    made = planned([data, Layer("a", 0.1, inf, 10), Layer("b", 9.0, 9.0, 10), Layer("c", inf, 0.1, 10)])
    assert made.source_only_seconds == inf == made.input_sent_seconds
    assert made.source_layers[:2] == ("data", "a")
    assert "c" in made.target_layers
    for objective in ("latency", "period"):
        with pytest.raises(PlanError, match=r"\(a\) comes after what runs at the target alone \(c\)"):
            planned([data, Layer("c", inf, 1, 10), Layer("a", 1, inf, 10)], objective=objective)
    with pytest.raises(PlanError, match="layer 'a' can run at neither end"):
        planned([data, Layer("a", inf, inf, 10)])


@pytest.mark.parametrize(
    ("layers", "options", "error", "words"),
    [
        ([], {}, ValueError, "layers must have one at least"),
        ([{"name": "a", "second": 1}], {}, ValueError, "must have name, source_seconds"),
        ([Layer("a", 0, 0, 1)] * 2, {}, ValueError, "'a' stands there twice"),
        ([Layer("a", 0, 0, 1), Layer("b", -1, 0, 1)], {}, ValueError, "'b': source_seconds must not"),
        ([Layer("a", 0, 0, 1), Layer("b", 0, float("nan"), 1)], {}, ValueError, "must be finite"),
        ([Layer("a", 0, 0, 1.5)], {}, ValueError, "'a': entries must be a whole number"),
        ([Layer("a", 0, 0, 1), Layer("b", 0, 0, 1, ["c"])], {}, ValueError, "'b' reads 'c', and no"),
        ([Layer("a", 0, 0, 1, ["b"]), Layer("b", 0, 0, 1)], {}, PlanError, "in a circle: a > b > a"),
        ([Layer("a", 0, 0, 1)], {"objective": "speed"}, ValueError, "must be latency or period"),
        ([Layer("a", 0, 0, 1)], {"answer_at": "moon"}, ValueError, "must be source or target"),
        ([Layer("a", 0, 0, 1)], {"rates": [1e6, 0]}, ValueError, "leave out what was an outage"),
        ([Layer("a", 0, 0, 1)], {"target": "moon"}, ValueError, "no site is called 'moon'; known"),
        ([Layer("a", 0, 0, 1)], {"target": "site1"}, ValueError, "source and target are both 'site1'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(layers, options, error, words):
    with pytest.raises(error, match=words):
        isthmus.plan_split(cluster(), layers, **{"source": "site1", "target": "site0"} | options)


@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([None, isthmus.Int8(64)]))
def test_of_all_splits_of_a_chain_the_best_is_that_of_the_same_rates(seed, count, compressor):
    layers, ends = drawn(seed, count, chain=True), {"source": "site1", "target": "site0"}
    rates = np.random.default_rng(seed).exponential(3e6, 5) + 1e4
    every = isthmus.plan_splits(cluster(), layers, **ends, activations=compressor)
    one = planned(layers, activations=compressor, rates=rates)
    best = every.best((1 / rates).mean())
    means = every.seconds_at(rates).mean(axis=0)
    assert means[best] == pytest.approx(min(means)) == pytest.approx(one.seconds)
    assert len(every.splits) == count
    assert [len(split.source_layers) for split in every.splits] == list(range(1, count + 1))


def test_all_splits_are_of_chains():
    data = Layer("data", 0.0, 0.0, 10)
    with pytest.raises(ValueError, match="must be a chain"):
        isthmus.plan_splits(
            cluster(),
            [data, Layer("a", 1, 1, 1), Layer("b", 1, 1, 1, ["data"])],
            source="site1",
            target="site0",
        )
    with pytest.raises(PlanError, match="neither end"):
        isthmus.plan_splits(
            cluster(), [data, Layer("a", np.inf, np.inf, 1)], source="site1", target="site0"
        )
