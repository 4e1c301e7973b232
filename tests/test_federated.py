"""Federated strategies: exact where they should be, without bias, and the same in ranks and jobs."""

import itertools
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from test_rebalancing import RATE, lab, lines_of
from test_rounds import ROOT, settings_of

import isthmus
from isthmus import client, outer
from isthmus.errors import NonFiniteError, SettingsError, ShardError
from isthmus.jobs.clients import client_shards
from isthmus.jobs.plan import make_plan
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.train import train
from isthmus.links.agreement import gather_json
from isthmus.pages.report import write_report
from isthmus.shards.clients import shard_bounds
from isthmus.shards.shard_file import ShardSet
from isthmus.training.clients import Clients
from isthmus.training.loop import Training
from isthmus.training.playing import ClientTraining
from isthmus.training.strategies.sums import Sums

STEEPNESS = np.array([2.0, 1.0, 0.5, 0.25])
OPTIMA = np.array([[0.0, 1.0], [4.0, -2.0], [1.0, 7.0], [-6.0, 5.0]])
WEIGHTS = [1.0, 2.0, 1.0, 4.0]


def quadratic(worker, x, step):
    return STEEPNESS[worker] * (x - OPTIMA[worker])


def optimum():
    steepness = np.array(WEIGHTS) * STEEPNESS
    return steepness @ OPTIMA / steepness.sum()


def play(strategy, rounds, gradient=quadratic, weights=WEIGHTS, start=(9.0, 9.0), **options):
    options = {"local_steps": 8, "learning_rate": 0.1} | options
    return isthmus.serial_rounds(strategy, gradient, start, weights, rounds, **options)


@pytest.mark.parametrize("participants", [1.0, 2])
def test_scaffold_ends_at_the_optimum_and_averages_beside_it(participants):
    """With the sign of its control variate turned, or weights forgotten, it ends elsewhere."""
    scaffold = isthmus.Federated(local=client.Scaffold(), participants=participants)
    for groups in (None, [0, 0, 0, 1]):
        assert abs(play(scaffold, 600, groups=groups)[-1] - optimum()).max() < 1e-12
    plain = play(isthmus.Federated(participants=1.0), 200)[-1]
    near = play(isthmus.Federated(local=client.Proximal(1.0), participants=1.0), 200)[-1]
    assert abs(plain - optimum()).max() > 0.25
    assert 0.01 < abs(near - optimum()).max() < abs(plain - optimum()).max()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_one_step_of_all_clients_is_a_synchronous_step_to_the_bit_on_dyadic_numbers(dtype):
    start, options = np.array([8.0, -2.0], dtype), {"local_steps": 1, "learning_rate": 0.5}
    ours, truth = (
        play(strategy, 4, lambda worker, x, step: x + OPTIMA[worker], start=start, **options)
        for strategy in (isthmus.Federated(participants=1.0), isthmus.Synchronous())
    )
    np.testing.assert_array_equal(ours, truth)
    assert ours[-1].dtype == dtype


@pytest.mark.parametrize("by", ["chance", "speed"])
def test_clients_are_drawn_without_bias(by):
    """Each with its probability, and what it learns counts so much more as it is drawn less."""
    speeds = np.array([1.0, 2.0, 5.0, 0.5, 1.5, 60.0])
    weights = np.arange(1.0, 7.0)
    clients = Clients(weights, np.arange(6), np.arange(6), seed=3, speeds=speeds)
    chances = np.full(6, 0.5) if by == "chance" else np.r_[speeds[:5] / speeds[:5].sum() * 2, 1.0]
    counted, estimate, rounds = np.zeros(6), 0.0, 2000
    for number in range(rounds):
        drawn, found = clients.drawn(number, 3, by)
        assert len(set(drawn.tolist())) == 3
        np.testing.assert_allclose(found, chances[drawn])
        counted[drawn] += 1 / rounds
        estimate += (weights[drawn] / found).sum() / rounds
    np.testing.assert_allclose(counted, chances, atol=0.03)
    assert estimate == pytest.approx(weights.sum(), rel=0.03)
    again = Clients(weights, np.array([5]), np.array([5]), seed=3, speeds=speeds)
    assert again.drawn(7, 3, by)[0].tolist() == clients.drawn(7, 3, by)[0].tolist()


def test_the_mean_move_of_few_is_that_of_all():
    def constant(worker, x, step):
        return OPTIMA[worker]

    few = play(isthmus.Federated(participants=1), 60, constant, local_steps=1)
    moves = {tuple(np.round(after - before, 9)) for before, after in itertools.pairwise(few)}
    assert len(moves) == 4  # of one client each: as often as any other
    step = play(isthmus.Federated(participants=1.0), 1, constant, local_steps=1)[0] - 9.0
    np.testing.assert_allclose(np.mean(list(moves), axis=0), step, rtol=1e-6)


def test_a_client_that_is_not_finite_is_dropped_and_the_others_take_its_share():
    def broken(worker, x, step):
        return np.full(2, np.inf) if worker == 1 else quadratic(worker, x, step)

    for strategy in (
        isthmus.Federated(participants=1.0),
        isthmus.Federated(outer.Adam(0.1), "scaffold", 1.0),
    ):
        without = play(
            strategy, 20, lambda worker, x, step: quadratic([0, 2, 3][worker], x, step), [1.0, 1.0, 4.0]
        )
        if strategy.local == client.Plain():
            np.testing.assert_allclose(play(strategy, 20, broken), without, rtol=1e-12)
        assert np.isfinite(play(strategy, 20, broken)).all()
    with pytest.raises(NonFiniteError, match="step 2: what workers exchange"):
        play(isthmus.Federated(participants=1.0), 3, lambda worker, x, step: np.nan if step >= 16 else x)


def test_sites_average_their_clients_so_often_before_they_exchange():
    def by_hand(x):
        places = [x.copy(), x.copy()]
        for _ in range(3):
            for site, members in enumerate(([0, 1], [2, 3])):
                shares = np.array(WEIGHTS)[members] / np.array(WEIGHTS)[members].sum()
                ends = []
                for worker in members:
                    y = places[site].copy()
                    for _ in range(8):
                        y -= 0.1 * quadratic(worker, y, 0)
                    ends.append(y)
                places[site] = shares @ ends
        return (3 * places[0] + 5 * places[1]) / 8

    history = play(isthmus.Federated(participants=1.0, edge_rounds=3), 5, groups=[0, 0, 1, 1])
    x = np.array([9.0, 9.0])
    for found in history:
        x = by_hand(x)
        np.testing.assert_allclose(found, x, rtol=1e-12)
    steps = [each.step for each in isthmus.Federated(edge_rounds=3).exchanges(8)]
    assert steps == [3, 6, 8]  # the last step of a run ends with one


class Walk:
    """Rounds of clients as a user writes them, of one rank."""

    def __init__(self, tiers, strategy, clients, steps, **arguments):
        weight = float(clients.weights[clients.mine].sum())
        sums = Sums(tiers, SIZE, weight, clients=clients, **arguments)
        self.member, self.step = strategy.join(sums, steps), 0
        self.place = np.linspace(-1, 1, SIZE, dtype="f4")
        self.member.begin(self.place)

    def go_on(self, until):
        while self.step < until:
            for number in self.member.draw():
                self.member.visit(number, self.place)
                for k in range(2):
                    gradient = slope(number, self.place, 2 * self.step + k)
                    self.member.correct(gradient, self.place)
                    self.place += gradient * np.float32(-0.1)
                self.member.leave(number, self.place, 2 * 0.1)
            self.member.after_step(self.place)
            self.step += 1
        return self.place


SIZE, ROUNDS = 33, 7
COUNTS = np.array([3.0, 5.0, 2.0, 7.0, 1.0, 4.0, 6.0, 2.0])
TRIED = [
    isthmus.Federated(outer.Yogi(0.1), client.Proximal(0.1), participants=0.5),
    isthmus.Federated(local="scaffold", participants=3),
    isthmus.Federated(outer.Momentum(0.9, 0.5), edge_rounds=2, participants=5),
]


def slope(number, place, step):
    draw = np.random.default_rng([number, step]).normal(size=place.size).astype("f4")
    if number == 4 and step == 6:
        draw[3] = np.nan
    return place * np.float32(0.3 + 0.1 * number) + draw


@pytest.mark.slow
@pytest.mark.ranks(4)
def test_ranks_end_with_the_bits_of_the_serial_engine_and_of_a_resume_after_any_round(comm):
    rank_of_client = np.array([0, 0, 1, 2, 2, 2, 3, 3])
    for ranks in (1, 2, 3, 4):
        part = comm.Split(comm.rank < ranks, comm.rank)
        if comm.rank < ranks:
            check_rounds(part, np.minimum(rank_of_client, ranks - 1))
        part.Free()


def check_rounds(comm, rank_of_client):
    mine = np.flatnonzero(rank_of_client == comm.rank)
    clients = Clients(COUNTS, mine, mine, seed=5)
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*[1] * comm.size))) as tiers:
        for strategy in TRIED:
            serial = isthmus.serial_rounds(
                strategy,
                slope,
                np.linspace(-1, 1, SIZE, dtype="f4"),
                COUNTS,
                ROUNDS // strategy.edge_rounds,
                local_steps=2,
                learning_rate=0.1,
                groups=rank_of_client.tolist(),
                seed=5,
            )
            straight = Walk(tiers, strategy, clients, ROUNDS, chunk_nbytes=16)
            for number, truth in enumerate(serial, 1):
                straight.go_on(number * strategy.edge_rounds)
                np.testing.assert_array_equal(straight.member.anchor(straight.place), truth)
            straight.go_on(ROUNDS)
            assert straight.member.agreed
            assert (straight.member.predicted_to_sites() == straight.member.sent_to_sites).all()
            assert {*straight.member.dropped} <= {(4, 4)}

            coarse = {"compressor": isthmus.Int8(block=4), "chunk_nbytes": 16}
            unasked = Walk(tiers, strategy, clients, ROUNDS, **coarse).go_on(ROUNDS)
            asked, kept = Walk(tiers, strategy, clients, ROUNDS, **coarse), {}
            for step in range(1, ROUNDS + 1):
                asked.go_on(step)
                state = asked.member.state()
                kept[step] = {name: each.copy() for name, each in state.items()}, asked.place.copy()
            again = Walk(tiers, strategy, clients, ROUNDS, **coarse)
            for step in range(1, ROUNDS):
                again.member.load(kept[step][0])
                again.place[:], again.step = kept[step][1], step
                assert again.go_on(ROUNDS).tobytes() == unasked.tobytes(), (strategy, step)
            assert gather_json(comm, again.place.tolist()) == [unasked.tolist()] * comm.size


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_who_cannot_be_had_is_not_drawn_and_the_others_count_as_all(comm):
    available = np.array([[1, 0, 0, 1], [0, 0, 0, 0]], bool)
    mine = np.array([[0, 1], [2, 3]][comm.rank])
    clients = Clients(np.array([1.0, 2.0, 3.0, 2.0]), mine, mine, available=available)
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        sums = Sums(tiers, 2, float(clients.weights[mine].sum()), clients=clients)
        member = isthmus.Federated(outer.Momentum(1.0, 0.5), participants=1.0).join(sums, 4)
        place = np.zeros(2, "f4")
        member.begin(place)
        places = []
        for _ in range(2):
            for number in member.draw():
                assert number in (0, 3)
                member.visit(number, place)
                place += [3, 6][number == 3]
                member.leave(number, place, 1.0)
            member.after_step(place)
            places.append(place.tolist())
    np.testing.assert_allclose(
        places, 5.0, rtol=1e-6
    )  # (1 * 3 + 2 * 6) / 3, and without anyone nothing moves


def federated(comm, folder, strategy, clients, **changes):
    """Write the lab with clients; return the path of its settings."""
    path = lab(comm, folder, plan={"replan": False}, cluster={"compute": "real"}, **changes)
    if comm.rank == 0:
        table = tomli_w.dumps({"strategy": {"kind": "federated", **strategy}, "clients": clients})
        path.write_text(table + path.read_text())
    comm.Barrier()
    return path


def quiet(line, passing=False):
    pass


def check_predicted_rounds(summary, settings, drawn, edge_rounds):
    """What computing takes is the mean over exchanges of who was slowest among those drawn."""
    plan = json.loads(Path(summary["folder"], "plan.json").read_text())
    shards = client_shards(settings, ShardSet.open(settings.data.train), 4)
    lengths = settings.clients.samples_of(shards.manifest)
    rank_of_shard = {shard: rank for rank, own in enumerate(plan["shards_of_rank"]) for shard in own}
    of_client = [(rank_of_shard[shard], samples) for shard, own in enumerate(lengths) for samples in own]
    seconds = np.zeros((len(drawn), 4))
    for number, clients in enumerate(drawn):
        for rank, samples in (of_client[number_of_client] for number_of_client in clients):
            seconds[number, rank] += samples * settings.clients.epochs / RATE
    of_site = seconds.reshape(-1, edge_rounds, 2, 2).max(axis=3).mean(axis=1)
    assert plan["terms"]["compute"] == pytest.approx(of_site.max(axis=1).mean())
    assert plan["step_seconds"] == pytest.approx(sum(plan["terms"].values()))
    assert plan["epoch_seconds"] == pytest.approx(4 * plan["step_seconds"])
    assert "as clients will be drawn" in plan["sentences"][-1]


def test_a_round_is_predicted_for_the_slowest_of_those_that_may_be_drawn(tmp_path):
    """E[max of k of n] over all sets, up to chance; two passes of three batches, each with its cost."""
    cluster = cluster_of(1, 1, 2, bytes_per_second=1e12)
    for site, rate, fixed in zip(cluster["site"], (60.0, 30.0, 30.0), (0.0, 0.05, 0.02)):
        site |= {"samples_per_second": rate, "fixed_seconds": fixed}
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        arrays = {"features": draw.normal(size=(96, 16)).astype("f4"), "targets": np.zeros(96, "u1")}
        isthmus.pack_shards(arrays, tmp_path / part, 8)
    run = {
        "strategy": {"kind": "federated", "participants": 3},
        "clients": {"split": "by_shard", "epochs": 2},
        "cluster": {"file": "cluster.toml"},
        "data": {"train": "train", "test": "test"},
        "model": {"kind": "perceptron", "inputs": 16, "hidden": [8], "classes": 3},
        "training": {"epochs": 100, "batch_size": 5, "momentum": 0.0},
    }
    for name, table in (("cluster", cluster), ("run", run)):
        (tmp_path / f"{name}.toml").write_text(tomli_w.dumps(table))
    plan, sites, _ = make_plan(tmp_path / "run.toml")
    each = [
        6 * sites.sites[sites.site_of_rank[rank]].fixed_seconds + 24 / sites.rates[rank]
        for rank in plan.rank_of_shard
    ]
    slowest = [
        np.bincount(plan.rank_of_shard[list(drawn)], [each[shard] for shard in drawn]).max()
        for drawn in itertools.combinations(range(8), 3)
    ]
    assert plan.terms["compute"] == pytest.approx(np.mean(slowest), rel=0.05)
    assert plan.epoch_seconds == pytest.approx(plan.steps * plan.step_seconds)
    text = (tmp_path / "run.toml").read_text().replace("participants = 3", "participants = 1.0")
    (tmp_path / "run.toml").write_text(text)
    everyone = np.bincount(plan.rank_of_shard, each).max()
    assert make_plan(tmp_path / "run.toml")[0].terms["compute"] == pytest.approx(everyone)


@pytest.mark.slow
@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    ("strategy", "clients", "exchanges"),
    [
        (
            {
                "participants": 0.25,
                "server": {"kind": "adam", "learning_rate": 0.05},
                "edge_rounds": 3,
                "by": "speed",
            },
            {"split": "by_shard", "steps": 3, "speeds": "speeds.txt", "available": "available.csv"},
            8,
        ),
        (
            {"participants": 9, "local": "scaffold"},
            {"count": 36, "split": {"dirichlet": 0.3, "seed": 2}, "epochs": 2},
            24,
        ),
    ],
)
def test_a_job_of_clients_resumes_to_the_same_bits_and_is_told_right(
    comm, shared_folder, monkeypatch, strategy, clients, exchanges
):
    """Four rounds an epoch; the checkpoint of round 13 lies between two exchanges where sites go on.

    What client 5 learns is never finite: it is dropped, and not the round.
    """
    learn = ClientTraining._play

    def lose(self, client, phase):
        told = learn(self, client, phase)
        if client == 5:
            self.state.parameters[3] = np.nan
        return told

    monkeypatch.setattr(ClientTraining, "_play", lose)
    if comm.rank == 0:  # the even ones can be had in every other round
        odd = np.arange(60) % 2
        np.savetxt(shared_folder / "speeds.txt", 1.0 + np.arange(60) % 7)
        np.savetxt(shared_folder / "available.csv", [odd, odd | 1], fmt="%d", delimiter=",")
    path = federated(
        comm,
        shared_folder,
        strategy,
        clients,
        training={"batch_size": 4, "momentum": 0.0, "learning_rate": 0.1},
        run={"checkpoint_every": 13},
    )
    summary = train(comm, path, quiet)
    again = train(comm, path, quiet, resume=summary["folder"])
    for key in ("parameter_hash", "loss", "accuracy", "links", "dropped_clients"):
        assert again[key] == summary[key], key
    assert summary["steps"] == 24
    size, block = 16 * 8 + 8 + 8 * 3 + 3, isthmus.Int8(16)
    shares, vectors = (0, 1) if "edge_rounds" in strategy else (8, 2)
    for link in summary["links"]:
        nbytes = exchanges * (vectors * block.wire_nbytes(size) + shares)
        assert link["sent_nbytes"] == link["predicted_nbytes"] == nbytes
    if comm.rank == 0:
        drawn = [line["clients"] for line in lines_of(summary, "step")]
        assert [len(each) for each in drawn] == [15 if shares == 0 else 9] * 24
        assert len(set(map(tuple, drawn))) > 20
        if shares == 0:
            assert {number % 2 for each in drawn[::2] for number in each} == {1}
            assert {number % 2 for each in drawn[1::2] for number in each} == {0, 1}
        edge_rounds = strategy.get("edge_rounds", 1)
        check_predicted_rounds(summary, RunSettings.from_toml(path), drawn, edge_rounds)
        times = sum(5 in each for each in drawn)
        assert summary["dropped_clients"] == times > 0
        assert [line["clients"] for line in lines_of(summary, "dropped")] == [[5]] * times
        page = write_report(summary["folder"]).read_text()
        assert f"; {times} times what one had learnt was not finite" in page
        assert summary["accuracy"] > 0.4


@pytest.mark.slow
@pytest.mark.ranks(1)
def test_a_thousand_clients_take_the_time_of_one_and_the_memory_of_one_model(
    comm, shared_folder, monkeypatch
):
    """Of 12 images each: about the processor time of a pass in batches of 12."""
    seconds, peaks = {}, {}

    def measured(kind, steps):
        def run(self):
            tracemalloc.start() if "memory" in kind else None
            begun = time.process_time()
            yield from steps(self)
            seconds[kind] = time.process_time() - begun
            peaks[kind] = tracemalloc.get_traced_memory()[1] if "memory" in kind else None
            tracemalloc.stop()

        return run

    cluster = shared_folder / "cluster.toml"
    cluster.write_text(tomli_w.dumps(cluster_of(1)))
    for kind in ("central", "clients", "memory of clients"):
        of_clients = {
            "strategy": {"kind": "federated", "participants": 1.0},
            "clients": {"count": 1000, "split": "iid"},
        }
        table = ({} if kind == "central" else of_clients) | {
            "cluster": {"file": "cluster.toml"},
            "data": {name: str(ROOT / "data/fashion_mnist" / name) for name in ("train", "test")},
            "model": {"kind": "perceptron", "hidden": [128]},
            "training": {"batch_size": 12, "momentum": 0.0},
        }
        path = shared_folder / "run.toml"
        path.write_text(tomli_w.dumps(table))
        with monkeypatch.context() as patch:
            loop = Training if kind == "central" else ClientTraining
            patch.setattr(loop, "steps", measured(kind, loop.steps))
            train(comm, path, quiet)
    assert seconds["clients"] < 4 * seconds["central"]
    assert peaks["memory of clients"] < 12 * 4 * 101_770  # vectors of one model's size, not of thousands


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('strategy = { kind = "federated", participants = 0 }', "participants must be at least 1"),
        ('strategy = { kind = "federated", participants = 1.5 }', "participants must be at most 1"),
        ('strategy = { kind = "federated", edge_rounds = 0 }', "edge_rounds must be at least 1"),
        ('strategy = { kind = "federated", local = "scafold" }', "kind of local must be one of plain"),
        ('strategy = { kind = "federated", local = "scaffold", edge_rounds = 2 }', "edge_rounds = 1"),
        ('strategy = { kind = "federated", local = "scaffold" }', "training.momentum = 0.0"),
        ('strategy = { kind = "federated", by = "speed" }', "needs clients.speeds"),
        (
            'strategy = { kind = "federated", participants = 21 }\n'
            'clients = { count = 20, split = "iid" }',
            "participants must be at most 20, the number of clients, not 21",
        ),
        ('clients = { count = 20, split = "iid" }', 'is for strategy = "federated"'),
        ('strategy = "federated"\nclients = { split = "iid" }', "needs count, the number of clients"),
        ('strategy = "federated"\nclients = { count = 3 }', "count goes with a split of all samples"),
        (
            'strategy = "federated"\nclients = { count = 3, split = "even" }',
            "kind of split must be one of packed, by_shard, iid, dirichlet, classes_each, not 'even'",
        ),
        (
            'strategy = "federated"\nclients = { count = 3, split = { dirichlet = 0.0 } }',
            "alpha must be greater than 0",
        ),
        (
            'strategy = { kind = "federated", local = "scaffold" }\ntraining.optimizer = "adamw"',
            'set training.optimizer = "sgd"',
        ),
        ('strategy = "federated"\nplan.replan = true', "set replan = false"),
        ('strategy = "federated"\nallreduce.buckets = 2', "clients send none"),
    ],
)
def test_settings_of_clients_that_make_no_sense_are_told_in_a_line(tmp_path, text, words):
    lines = text.splitlines()
    if len(lines) > 1 and lines[1].startswith(("plan", "allreduce", "training")):
        section, _, rest = lines.pop().partition(".")
        with pytest.raises(SettingsError, match=words):
            settings_with(tmp_path, lines[0], {section: rest})
        return
    with pytest.raises(SettingsError, match=words) as told:
        settings_with(tmp_path, text, {})
    assert "\n" not in str(told.value)


def settings_with(folder, text, sections):
    """Return the demo's settings with lines at the top, and one more in some sections."""
    settings_of(folder, '"synchronous"')
    path = folder / "run.toml"
    whole = path.read_text().replace('strategy = "synchronous"\n', text + "\n")
    if "optimizer" in str(sections):
        whole = whole.replace("momentum = 0.9\n", "")
    for section, line in sections.items():
        head = f"[{section}]\n"
        whole = whole.replace(head, head + line + "\n") if head in whole else f"{whole}{head}{line}\n"
    path.write_text(whole)
    return RunSettings.from_toml(path)


def sample_classes(shards):
    """Return the classes of each client's samples in a packed set."""
    found = []
    for number, sizes in enumerate(shards.manifest.clients):
        arrays = shards.read(number)
        assert len(arrays["targets"]) == sum(sizes)
        found += np.split(arrays["targets"], np.cumsum(sizes)[:-1])
    return found


@pytest.mark.parametrize("split", ["iid", {"dirichlet": 0.1, "seed": 1}, {"classes_each": 2}])
def test_a_set_is_split_into_clients_that_shards_hold_whole(tmp_path, split):
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 5, 400, dtype="u1")
    arrays = {"features": np.arange(400.0), "targets": targets}
    packed = isthmus.pack_shards(
        arrays, tmp_path / "set", 7, clients=20, split=split, shuffle=1, validation=0.25
    )
    again = ShardSet.open(tmp_path / "set")
    assert sum(packed.samples) == 300
    assert again.manifest.clients == packed.manifest.clients
    classes = sample_classes(packed)
    assert len(classes) == 20
    assert min(map(len, classes)) >= 1
    rows = np.concatenate([packed.read(number)["features"] for number in range(7)])
    np.testing.assert_array_equal(np.concatenate(classes), targets[rows.astype(int)])
    assert len({*rows.tolist()}) == 300
    kinds = [len({*each.tolist()}) for each in classes]
    if split == "iid":
        assert {len(each) for each in classes} == {15}
        assert min(kinds) > 2
    elif "classes_each" in split:
        assert set(kinds) == {2}
    else:
        commonest = [np.bincount(each).max() / len(each) for each in classes if len(each) > 5]
        assert np.mean(commonest) > 0.7
    plain = isthmus.pack_shards(arrays, tmp_path / "plain", 7)
    assert plain.manifest.clients is None
    assert plain.digest != packed.digest


def test_samples_know_their_clients_and_a_wrong_array_is_told(tmp_path):
    owners = np.array([70, 5, 5, 9, 70, 5, 9, 5])
    arrays = {"features": np.arange(8.0), "targets": np.zeros(8, int)}
    packed = isthmus.pack_shards(arrays, tmp_path / "set", 2, clients=owners)
    assert packed.manifest.clients == [[4], [2, 2]]
    rows = [packed.read(number)["features"].tolist() for number in (0, 1)]
    assert rows == [[1, 2, 5, 7], [3, 6, 0, 4]]
    with pytest.raises(ShardError, match="a whole number for each of the 8 samples, not float64"):
        isthmus.pack_shards(arrays, tmp_path / "other", 2, clients=owners / 2)
    assert not (tmp_path / "other").exists()


def test_shards_of_clients_are_of_like_size_and_none_is_empty():
    assert shard_bounds([5, 5, 5, 5], 2) == [0, 2, 4]
    for sizes in ([100, 1, 1, 1], [1, 1, 1, 100], [1] * 9):
        for shards in range(1, len(sizes) + 1):
            bounds = shard_bounds(sizes, shards)
            assert (bounds[0], bounds[-1], len(bounds)) == (0, len(sizes), shards + 1)
            assert all(first < last for first, last in itertools.pairwise(bounds))


@pytest.mark.parametrize(
    ("clients", "split", "words"),
    [
        (500, "iid", "400 samples cannot make 500 clients"),
        (20, {"classes_each": 6}, "classes_each must be at most 5"),
    ],
)
def test_what_cannot_be_split_is_told_and_nothing_is_packed(tmp_path, clients, split, words):
    arrays = {"features": np.arange(400.0), "targets": np.arange(400) % 5}
    with pytest.raises(ShardError, match=words):
        isthmus.pack_shards(arrays, tmp_path / "set", 7, clients=clients, split=split)
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_what_does_not_fit_the_clients_is_told_on_every_rank(comm, shared_folder):
    speeds = shared_folder / "speeds.txt"
    if comm.rank == 0:
        speeds.write_text("1.0\n2.0\n")
    cases = [
        ({"participants": 61}, {}, "participants must be at most 60, the number of clients, not 61"),
        (
            {"local": "scaffold"},
            {"state_nbytes": 1000},
            "keeps [0-9]+ bytes for [0-9]+ clients of a rank, and state_nbytes = 1000",
        ),
        ({"by": "speed"}, {"speeds": str(speeds)}, "must hold a number above 0 for each of 60 clients"),
        ({}, {"available": "nowhere.csv"}, "nowhere.csv: "),
    ]
    for number, (strategy, clients, words) in enumerate(cases):
        path = federated(
            comm,
            shared_folder / str(number),
            strategy,
            clients,
            sites=(1, 1),
            training={"momentum": 0.0},
        )
        with pytest.raises(SettingsError, match=words):
            train(comm, path, quiet)
