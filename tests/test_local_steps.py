"""Strategies of rounds in ranks: the bits of the serial engine, resumed anywhere, and whole jobs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of
from test_docs import blocks
from test_rebalancing import lab, lines_of

import isthmus
from isthmus import outer
from isthmus.jobs.train import train
from isthmus.links.agreement import gather_json
from isthmus.pages.report import write_report
from isthmus.training.strategies.sums import Sums

SIZE, STEPS, WEIGHTS = 50, 23, [3.0, 5.0, 2.0, 0.0]
STRATEGIES = [
    isthmus.LocalSteps(every=4, outer=outer.Nesterov(0.7, 0.9), after=3, late=2),
    isthmus.LocalSteps(every=5),
    isthmus.Streaming(3, every=7, late=1, mixing=0.5, outer=outer.Adam(0.1)),
    isthmus.Streaming(2, every=6, late=0, mixing=0.0),
]


def slope(rank, place, step):
    """A gradient that differs between ranks and steps, in float32."""
    draw = np.random.default_rng([rank, step]).normal(size=place.size).astype("f4")
    return place * np.float32(0.3 + 0.1 * rank) + draw * (WEIGHTS[rank] > 0)


class Walk:
    """A loop over steps as a user writes it, of one rank."""

    def __init__(self, tiers, strategy, **arguments):
        weight = WEIGHTS[tiers.world.rank]
        self.rank, self.step = tiers.world.rank, 0
        self.member = strategy.join(Sums(tiers, SIZE, weight, **arguments), STEPS)
        self.place = np.linspace(-1, 1, SIZE, dtype="f4")
        self.member.begin(self.place)

    def go_on(self, until):
        while self.step < until:
            mean = self.member.gradients(slope(self.rank, self.place, self.step))
            self.place += mean * np.float32(-0.1)
            self.member.after_step(self.place)
            self.step += 1
        return self.place


@pytest.mark.slow
@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    ("strategy", "sites"), list(zip(STRATEGIES, [(1, 2, 1), (2, 2), (2, 2), (1, 1, 2)]))
)
def test_ranks_end_with_the_bits_of_the_serial_engine_and_of_a_resume_after_any_step(
    comm, strategy, sites
):
    """Fragments are longer than a bucket and than a message: all of them is summed."""
    site_of_rank = np.repeat(range(len(sites)), sites).tolist()
    serial = isthmus.serial_rounds(
        strategy,
        slope,
        np.linspace(-1, 1, SIZE, dtype="f4"),
        WEIGHTS,
        STEPS,
        local_steps=1,
        learning_rate=0.1,
        groups=site_of_rank,
        ends=True,
    )
    exact = {"chunk_nbytes": 16, "buckets": [slice(33, SIZE), slice(0, 33)]}
    coarse = exact | {"compressor": isthmus.Int8(block=4)}
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
        straight = Walk(tiers, strategy, **exact)
        for step in range(STEPS):
            straight.go_on(step + 1)
            np.testing.assert_array_equal(straight.member.anchor(straight.place), serial[step])
        assert straight.member.agreed
        np.testing.assert_array_equal(straight.place, serial[-1])
        assert (straight.member.predicted_to_sites() == straight.member.sent_to_sites).all()

        unasked = Walk(tiers, strategy, **coarse).go_on(STEPS)
        asked, kept = Walk(tiers, strategy, **coarse), {}
        for step in range(1, STEPS + 1):  # also while an exchange is under way
            asked.go_on(step)
            state = asked.member.state()
            kept[step] = {name: array.copy() for name, array in state.items()}, asked.place.copy()
        assert asked.place.tobytes() == unasked.tobytes()
        again = Walk(tiers, strategy, **coarse)
        for step in (1, 5, 8, 13, 14, STEPS):
            again.member.load(kept[step][0])
            again.place[:], again.step = kept[step][1], step
            assert again.go_on(STEPS).tobytes() == unasked.tobytes(), step
        assert gather_json(comm, again.place.tolist()) == [unasked.tolist()] * 4


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_a_decayed_residual_stands_in_for_momentum_as_its_paper_has_it(comm):
    """Beside a loop of its own over both sites, with the compressor's wires, and resumed in a round."""
    sparse, decay, every = isthmus.TopK(0.1, bits=2), np.float32(0.9), 4
    strategy = isthmus.LocalSteps(every, outer=outer.SparseLoCo(0.9, learning_rate=0.5))
    share = [np.float32(3 / 8), np.float32(5 / 8)]
    anchor = np.linspace(-1, 1, SIZE, dtype="f4")
    residuals, wire = np.zeros((2, SIZE), "f4"), np.empty(sparse.wire_nbytes(SIZE), "u1")
    for first in range(0, STEPS, every):
        mean = np.zeros(SIZE, "f4")
        for rank in range(2):
            place = anchor.copy()
            for step in range(first, min(first + every, STEPS)):
                place += slope(rank, place, step) * np.float32(-0.1)
            given = decay * residuals[rank] + (anchor - place) * share[rank]
            sparse.encode(given, wire)
            said = np.zeros(SIZE, "f4")
            sparse.add_decoded(wire, said)
            residuals[rank] = given - said
            mean += said
        anchor -= np.float32(0.5) * mean
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        walk = Walk(tiers, strategy, compressor=sparse)
        walk.go_on(10)
        state = {name: array.copy() for name, array in walk.member.state().items()}
        place = walk.place.copy()
        np.testing.assert_allclose(walk.go_on(STEPS), anchor, rtol=0, atol=1e-6)
        again = Walk(tiers, strategy, compressor=sparse)
        again.member.load(state)
        again.place[:], again.step = place, 10
        assert again.go_on(STEPS).tobytes() == walk.place.tobytes()
        plain = replace(strategy, outer=outer.Average())
        assert Walk(tiers, plain, compressor=sparse).go_on(STEPS).tobytes() != walk.place.tobytes()
        with pytest.raises(ValueError, match="SparseLoCo goes by what wires leave out"):
            Walk(tiers, strategy, compressor=sparse, error_feedback=False)


@pytest.mark.slow
@pytest.mark.ranks(2)
@pytest.mark.parametrize("strategy", STRATEGIES[:1] + STRATEGIES[-1:])
def test_a_change_that_is_not_finite_takes_all_sites_back_to_the_anchor(comm, strategy):
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        walk, told = Walk(tiers, strategy, compressor=isthmus.Int8(block=4)), []
        for step in range(1, STEPS + 1):
            if step == 11 and comm.rank == 1:
                walk.place[3] = np.inf
            walk.go_on(step)
            told.append(walk.member.finite)
    assert told.count(False) == 1
    assert np.isfinite(walk.place).all()
    assert gather_json(comm, told) == [told, told]
    assert gather_json(comm, walk.place.tolist())[1] == walk.place.tolist()


def quiet(line, passing=False):
    pass


@pytest.mark.slow
@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    ("strategy", "exchanges"),
    [
        (
            {
                "kind": "local_steps",
                "every": 8,
                "late": 5,  # the checkpoint of step 35 finds that of step 32 under way
                "outer": {"kind": "nesterov", "learning_rate": 0.7, "momentum": 0.9},
            },
            7,
        ),
        ({"kind": "streaming", "fragments": 2, "every": 14, "late": 3, "mixing": 0.5}, 8 / 2 + 1),
    ],
)
def test_a_job_of_rounds_resumes_while_an_exchange_is_under_way_and_is_told_right(
    comm, shared_folder, strategy, exchanges
):
    path = lab(comm, shared_folder, plan={"replan": False})
    if comm.rank == 0:
        import tomli_w

        path.write_text(tomli_w.dumps({"strategy": strategy}) + path.read_text())
    comm.Barrier()
    summary = train(comm, path, quiet)
    again = train(comm, path, quiet, resume=summary["folder"])
    for key in ("parameter_hash", "loss", "accuracy", "links"):
        assert again[key] == summary[key], key
    size, block = 16 * 8 + 8 + 8 * 3 + 3, isthmus.Int8(16)
    halves = block.wire_nbytes(size // 2) + block.wire_nbytes(size - size // 2)
    nbytes = exchanges * (halves if strategy["kind"] == "streaming" else block.wire_nbytes(size))
    for link in summary["links"]:
        assert link["sent_nbytes"] == link["predicted_nbytes"] == nbytes
    if comm.rank == 0:
        compared = [line["step"] for line in lines_of(summary, "replicas")]
        assert compared == [60]  # replicas are equal where a run ends, and not before
        page = write_report(Path(summary["folder"])).read_text()
        assert strategy["kind"] in json.dumps(page)


@pytest.mark.slow
@pytest.mark.ranks(4)
def test_the_loop_of_the_page_runs_as_it_is(comm, monkeypatch, capsys):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    (program,) = [
        block.text for block in blocks(root / "docs/strategies.md") if block.word == "rounds.py"
    ]
    exec(compile(program, "rounds.py", "exec"), {"__name__": "rounds"})
    site, agreed, *_ = capsys.readouterr().out.split()
    assert (site, agreed) == ("edge" if comm.rank > 1 else "cloud", "True")
