"""A program that uses every public name, in which mypy finds their types; `make lint` checks it.

It is never run: what it says is what an editor knows.
"""

from collections.abc import Iterator
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

import isthmus
from isthmus.cluster.cluster import Link
from isthmus.cluster.cluster_file import Site
from isthmus.compression.compressor import Compressor
from isthmus.folders.trained_model import TrainedModel
from isthmus.inference.answers import Answers
from isthmus.links.comm import Comm, Request, Wrapped
from isthmus.links.tiers import Tiers
from isthmus.models import Convolutional, Perceptron
from isthmus.models.model import Model
from isthmus.planning.cascades import Cascade
from isthmus.planning.plan import Plan
from isthmus.planning.programme.allocation import Allocation
from isthmus.planning.programme.problem import Pipes, Prices, Problem
from isthmus.planning.programme.terms import Objective, Term
from isthmus.planning.single_pass.star import Number, SinglePass
from isthmus.planning.single_pass.tree import TreePass
from isthmus.planning.splits import ChainSplits, Split
from isthmus.planning.tasks.schedule import Schedule
from isthmus.shards.batches import LocalSamples
from isthmus.timing.time_model import AllreduceTime
from isthmus.training.strategies.strategy import Exchange, Member, Strategy
from isthmus.training.strategies.sums import Sums


def clusters(path: str) -> isthmus.Cluster:
    cluster = isthmus.Cluster.from_toml(path)
    assert_type(cluster, isthmus.Cluster)
    assert_type(isthmus.Cluster.from_slurm(), isthmus.Cluster)
    assert_type(cluster.sites, tuple[Site, ...])
    assert_type(cluster.links, tuple[Link, ...])
    assert_type(cluster.route("a", "b")[0].line(1e6, "messages"), tuple[float, float])
    assert_type(cluster.sites[0].network.latency_seconds, float)
    assert_type(cluster.names, tuple[str, ...])
    assert_type(cluster.site_of_rank, tuple[int, ...])
    assert_type(cluster.rates, tuple[float, ...])
    assert_type(cluster.size + cluster.hub + cluster.overhead_nbytes, int)
    assert_type(cluster.ranks_of_site("a"), range)
    return isthmus.Cluster(cluster.to_table())


def compressors() -> list[Compressor]:
    every: list[Compressor] = [
        isthmus.Dense("float16"),
        isthmus.Int8(block=256),
        isthmus.Int4(rounding="stochastic"),
        isthmus.OneBit(1024),
        isthmus.LowRank(2, ((3, 4),)),
        isthmus.TopK(0.01, "threshold"),
        isthmus.TopK(ratio=0.02, bits=2),
    ]
    vector, wire = np.zeros(8, np.float32), np.zeros(100, np.uint8)
    isthmus.Int8().encode(vector, wire, vector, key=1, first=0, state=None)
    isthmus.Int8().decode(wire, vector)
    isthmus.TopK().add_decoded(wire, vector)
    assert_type(isthmus.Dense().largest, float)
    assert_type(isthmus.Int8().grain, int)
    assert_type(isthmus.Int4().wire_nbytes(8), int)
    assert_type(isthmus.TopK().entries(8), int)
    assert_type(isthmus.LowRank().piece(slice(0, 4)), isthmus.LowRank)
    return every


def shards_on_disk(folder: str) -> isthmus.ShardSet:
    packed = isthmus.pack_shards({"features": np.zeros((4, 2))}, folder, shards=2, overwrite=True)
    assert_type(packed, isthmus.ShardSet)
    shards = isthmus.ShardSet.open(folder)
    assert_type(shards, isthmus.ShardSet)
    assert_type(shards.samples, tuple[int, ...])
    assert_type(shards.nbytes, tuple[int, ...])
    assert_type(shards.digest, str)
    assert_type(shards.read(0), dict[str, np.ndarray])
    with shards.opened(0) as opened:
        for piece in opened.pieces("features"):
            assert_type(piece, np.ndarray)
    return shards


def plans(cluster: isthmus.Cluster, shards: isthmus.ShardSet) -> Plan:
    workload = isthmus.Workload(size=8, batch_size=4, compressor=isthmus.Int8(), buckets=(slice(0, 8),))
    assert_type(workload.compressor, Compressor | None)
    plan = isthmus.plan_shards(
        cluster,
        shards,
        workload,
        "period",
        {0: "edge"},
        forbidden={1: ["edge"]},
        least_samples={"edge": 1},
        budget=2.0,
    )
    assert_type(plan, Plan)
    assert_type(isthmus.plan_shards(cluster, [10, 10], workload, Objective((Term(),))), Plan)
    assert_type(plan.rank_of_shard, npt.NDArray[np.int64])
    assert_type(plan.shards_of_rank, tuple[tuple[int, ...], ...])
    assert_type(plan.terms, dict[str, float])
    assert_type((plan.epoch_seconds, plan.steps, plan.hash), tuple[float, int, str])
    assert_type(Plan.from_dict(plan.to_dict()), Plan)
    found = isthmus.allocate_shards(
        [1, 2], [0.1, 0.2], allowed={0: [1]}, objective="weighted", alpha=0.5, nodes=10
    )
    assert_type(found, Allocation)
    assert_type(found.seconds_of_rank, tuple[float, ...])
    assert_type(found.lower_bound_seconds + found.gap, float)
    predicted = isthmus.predict_allreduce(cluster, 8, algorithm="ring", compressor=None)
    assert_type(predicted, AllreduceTime)
    assert_type(predicted.seconds, float)
    assert_type(predicted.terms, dict[str, float])
    return plan


def single_passes() -> None:
    star = isthmus.plan_single_pass(1.0, [1.0, 2.0], [0.1, 0.2], mode="cut-through", order=[1, 0])
    assert_type(star, SinglePass)
    assert_type(star.worker_shares, tuple[Number, ...])
    assert_type(star.order, tuple[int, ...])
    tree = isthmus.plan_single_pass_tree(isthmus.TreeNode(1.0, children=(isthmus.TreeNode(2.0, 0.1),)))
    assert_type(tree, TreePass)
    assert_type(tree.seconds, Number)


def splits(cluster: isthmus.Cluster) -> None:
    layers = [isthmus.Layer("photo", 0, 0, 100), isthmus.Layer("last", 1.0, 0.1, 10)]
    made = isthmus.plan_split(cluster, layers, source="edge", target="cloud", rates=[1e6])
    assert_type(made, Split)
    assert_type(made.terms, dict[str, float])
    every = isthmus.plan_splits(cluster, layers, source="edge", target="cloud")
    assert_type(every, ChainSplits)
    assert_type(every.best(1e-6), int)


def cascades(cluster: isthmus.Cluster) -> None:
    scores = [[0.1, 0.9]]
    made = isthmus.plan_cascade(
        cluster, scores, scores, [1], requests_per_second={"edge": 9.0}, nbytes=784, accuracy_loss=0.003
    )
    assert_type(made, Cascade)
    assert_type(made.threshold, float)


def answers(tiers: Tiers, plan: Cascade, model: TrainedModel, features: np.ndarray) -> None:
    assert_type(isthmus.measure_layers(model, features), list[dict[str, Any]])
    with isthmus.Inference(tiers, edge=model, cloud=model, plan=plan, deadline_seconds=0.1) as inference:
        made = inference.answer(features)
        assert_type(made, Answers)
        assert_type(made.seconds, npt.NDArray[np.float64])
        assert_type(inference.serve(), int)


def tasks(cluster: isthmus.Cluster) -> None:
    made = isthmus.schedule_tasks(cluster, [3.0, 4.0], {(0, 1): 1e6}, {0: "edge", 1: [0, 1]}, "heft")
    assert_type(made, Schedule)
    assert_type(made.rank_of, tuple[int, ...])
    assert_type(made.seconds, float)


def training(cluster: isthmus.Cluster, shards: isthmus.ShardSet, plan: Plan, model: Model) -> None:
    with isthmus.split_tiers(MPI.COMM_WORLD, cluster) as tiers:
        assert_type(tiers, Tiers)
        assert_type(tiers.world.rank + tiers.home + tiers.site_index, int)
        assert_type(tiers.site, Comm)
        assert_type(tiers.sealed, bool)
        assert_type(tiers.through(lambda comm, ranks: Sealed(comm)), Tiers)
        local = isthmus.scatter_shards(tiers, shards, plan)
        assert_type(local, LocalSamples)
        allreduce = isthmus.Allreduce(tiers, model.size, compressor=isthmus.Int8(), weight=local.samples)
        assert_type(allreduce, isthmus.Allreduce)
        parameters, gradient = model.initial(seed=0), np.empty(model.size, np.float32)
        for features, targets in local.batches(steps=plan.steps, epoch=0):
            assert_type(model.gradient(parameters, features, targets, gradient), float)
            parameters -= 0.1 * allreduce(gradient / max(1, len(targets)))
        assert_type(allreduce(gradient), npt.NDArray[np.float32])
        secret = isthmus.Allreduce(tiers, model.size, secure=isthmus.SecureSum("reveal", bits=16))
        assert_type(secret.tell_left_out(), list[tuple[int, list[int]]])
        isthmus.Allreduce(tiers, model.size, combine=isthmus.RobustMean("krum", faulty=1))
        assert_type(allreduce.residual, npt.NDArray[np.float32])
        assert_type(allreduce.memory, npt.NDArray[np.float32])
        assert_type(allreduce.sent_nbytes, dict[str, int])
        assert_type(allreduce.sent_to_sites, npt.NDArray[np.int64])
        assert_type(allreduce.stage_seconds, dict[str, float])
        assert_type(allreduce.buckets, list[slice])
        assert_type(allreduce.finite, bool)
        strategies(isthmus.Synchronous(), Sums(tiers, model.size, local.samples))
        strategies(isthmus.LocalSteps(8, isthmus.outer.Nesterov()), Sums(tiers, model.size, 1.0))
        strategies(isthmus.Streaming(2, every=8, late=1), Sums(tiers, model.size, 1.0))
        isthmus.Federated(isthmus.outer.Adam(), isthmus.client.Proximal(0.1), participants=0.25)
        buffered = isthmus.Buffered(2, busy=4, weight=isthmus.staleness.Polynomial(0.5), bound=3)
        strategies(buffered, Sums(tiers, model.size, 1.0))
        history = isthmus.serial_arrivals(buffered, lambda worker, x: x, [1.0], [(0, 0), (1, 0)])
        assert_type(history, list[npt.NDArray[np.floating]])
        history = isthmus.serial_rounds(
            isthmus.LocalSteps(),
            lambda worker, x, step: x,
            [1.0],
            [1, 1],
            2,
            local_steps=16,
            learning_rate=0.1,
        )
        assert_type(history, list[npt.NDArray[np.floating]])


def own_loop(tiers: Tiers, local: LocalSamples, model: Any) -> None:
    shared = isthmus.torch.Shared(model, tiers, isthmus.Int8(), local.samples, buckets=2, accumulate=2)
    assert_type(shared, isthmus.torch.Shared)
    assert_type(shared.allreduce, isthmus.Allreduce)
    assert_type(shared.finite, bool)
    assert_type(shared.weight, float)
    assert_type(shared.predicted_nbytes(), dict[str, int])
    shared.load_state_dict(shared.state_dict())
    for batch in isthmus.torch.batches(local, seed=0, epoch=1, steps=3):
        assert_type(len(batch), int)


def strategies(strategy: Strategy, sums: Sums) -> None:
    assert_type(strategy.exchanges(10), Iterator[Exchange])
    member = strategy.join(sums, 10)
    assert_type(member, Member)
    assert_type(member.gradients, isthmus.Allreduce)
    assert_type(member.sent_nbytes, dict[str, int])


def privacy(folder: str) -> None:
    told = isthmus.epsilon(sampling=0.01, noise=1.1, steps=100, delta=1e-5, accountant="rdp")
    assert_type(told, float)
    assert_type(isthmus.privacy_spent(folder), dict[str, Any])


def trained(run: str, features: np.ndarray, shards: isthmus.ShardSet) -> None:
    model, parameters = isthmus.load_model(run, best=True)
    assert_type(model, TrainedModel)
    assert_type(parameters, npt.NDArray[np.float32])
    assert_type(model.scores(parameters, features), npt.NDArray[np.float32])
    assert_type(model.predict(features), npt.NDArray[Any])
    assert_type(model.evaluate(shards), dict[str, float])
    ladder = isthmus.compress(model, parameters, weights="int8", keep=(1, 0.5), validation=shards)
    assert_type(ladder.best.nbytes, int)
    assert_type(ladder.best.student.parameters, npt.NDArray[np.float32])


def errors() -> None:
    try:
        clusters("cluster.toml")
    except isthmus.IsthmusError as error:
        assert_type(error.exit_code, int)
        assert_type(error.everywhere, bool)


class Sealed(Wrapped):
    """A wrapper that a user writes."""

    def Isend(self, buffer: np.ndarray, dest: int, tag: int = 0) -> Request:  # noqa: N802
        return super().Isend(buffer, dest, tag)


class Energy(Term):
    """A term that a user writes."""

    searches = ("programme",)

    def per_second(self, problem: Problem) -> float:
        assert_type(problem.pipes, Pipes)
        assert_type(problem.prices, Prices | None)
        return 0.5 * problem.budget


def what_fulfils_a_contract(comm: MPI.Intracomm) -> tuple[Comm, Comm, Strategy, Model, Model]:
    return comm, Sealed(comm), isthmus.Synchronous(), Perceptron(), Convolutional()


assert_type(isthmus.__version__, str)
