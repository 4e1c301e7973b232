"""A user's own torch loop: gradients are those of one process that has the batches of all ranks."""

import gc
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from clusters import cluster_of

import isthmus

torch = pytest.importorskip("torch")
functional = torch.nn.functional

FEATURES, CLASSES = 12, 5


@pytest.fixture
def tiers(comm):
    """Two sites of all ranks but the last, and the last; torch on one thread."""
    if comm is None:
        yield None
        return
    torch.set_num_threads(1)
    sites = (comm.size - 2, 2) if comm.size > 2 else (1,) * comm.size
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
        yield tiers


def network(seed=0, norm=False):
    torch.manual_seed(seed)
    middle = [torch.nn.BatchNorm1d(9)] if norm else []
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 9), *middle, torch.nn.ReLU(), torch.nn.Linear(9, CLASSES)
    )


def batch(rank, step=0, samples=6):
    draw = torch.Generator().manual_seed(1000 * step + rank)
    return (
        torch.randn(samples, FEATURES, generator=draw),
        torch.randint(CLASSES, (samples,), generator=draw),
    )


def gradients_alone(module, features, targets, loss=functional.cross_entropy):
    """Return float64 gradients of one batch, as torch alone has them; the module stays as it is."""
    leaves = {name: each.detach().clone() for name, each in module.named_parameters()}
    leaves = {name: each.requires_grad_() for name, each in leaves.items()}
    torch.func.functional_call(module, leaves, (features,))  # BatchNorm's statistics are not compared
    loss(torch.func.functional_call(module, leaves, (features,)), targets).backward()
    return {name: each.grad for name, each in leaves.items()}


def mean_of(module, weights, step=0, **others):
    """Return the weighted mean over ranks of what each would have alone."""
    mean = {name: 0.0 for name, _ in module.named_parameters()}
    for rank, weight in enumerate(weights):
        for name, gradient in gradients_alone(module, *batch(rank, step), **others).items():
            mean[name] = mean[name] + gradient.double() * weight / sum(weights)
    return mean


def bits_agree(comm, module):
    """Whether gradients, or that there is none, are of the same bits on all ranks."""
    mine = b"".join(
        b"none" if each.grad is None else each.grad.contiguous().view(torch.uint8).numpy().tobytes()
        for each in module.parameters()
    )
    return len(set(comm.allgather(mine))) == 1


def assert_close(module, expected, atol=2e-7):
    for name, each in module.named_parameters():
        np.testing.assert_allclose(
            each.grad.double(), expected[name], rtol=2e-5, atol=atol, err_msg=name
        )


@pytest.mark.ranks(4)
@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize(
    ("compressor", "atol"),
    [(None, 2e-7), (isthmus.Int8(block=16), 2e-2), (isthmus.LowRank(4), 0.2)],
    ids=str,
)
def test_gradients_are_the_weighted_mean_of_all_ranks(comm, tiers, buckets, compressor, atol):
    model = network(seed=comm.rank)  # rank 0's is everybody's
    shared = isthmus.torch.Shared(model, tiers, compressor, weight=comm.rank + 1, buckets=buckets)
    assert len(set(comm.allgather(model[0].weight.detach().numpy().tobytes()))) == 1
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step, weights in enumerate(([1, 2, 3, 4], [1, 2, 3, 4], [5, 0, 2, 1], [1, 1, 1, 1])):
        features, targets = batch(comm.rank, step)
        shared.weight = weights[comm.rank]
        expected = mean_of(model, weights, step)
        optimizer.zero_grad(set_to_none=step != 2)
        functional.cross_entropy(model(features), targets).backward()
        assert_close(model, expected, atol)
        assert bits_agree(comm, model)
        optimizer.step()
    assert shared.finite
    once = shared.predicted_nbytes()
    assert shared.sent_nbytes == {way: 4 * nbytes for way, nbytes in once.items()}
    if comm.rank in (0, 2) and compressor is None:
        assert once["link"] == 4 * (16 + sum(each.numel() for each in model.parameters()))


@pytest.mark.ranks(4)
def test_the_same_loop_as_ddps_ends_with_the_same_parameters(comm, tiers, shared_folder):
    """Over Gloo, with AdamW in two groups and clipping; equal weights are all that DDP knows."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{shared_folder}/gloo", rank=comm.rank, world_size=comm.size
    )
    ours, theirs = network(), torch.nn.parallel.DistributedDataParallel(network())
    isthmus.torch.Shared(ours, tiers)
    for model in (ours, theirs):
        first, last = list(model.parameters())[:2], list(model.parameters())[2:]
        optimizer = torch.optim.AdamW(
            [{"params": first}, {"params": last, "lr": 1e-3, "weight_decay": 0.1}], lr=1e-2
        )
        for step in range(4):
            features, targets = batch(comm.rank, step)
            optimizer.zero_grad()
            functional.cross_entropy(model(features), targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    reduced = theirs.module
    del theirs, model, optimizer  # DDP's reducer holds the GIL where it is the last to let go of Gloo
    gc.collect()
    dist.destroy_process_group()
    for own, other in zip(ours.parameters(), reduced.parameters()):
        np.testing.assert_allclose(own.detach(), other.detach(), rtol=1e-4, atol=1e-5)


class Branches(torch.nn.Module):
    """Tied, frozen and empty parameters, one that nobody uses, and one for each rank alone."""

    def __init__(self, ranks):
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Linear(4, 4)
        self.tied = torch.nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)
        self.nobody = torch.nn.Linear(4, 4)
        self.empty = torch.nn.Parameter(torch.empty(0))
        self.own = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in range(ranks))

    def forward(self, features, rank):
        return self.own[rank](self.tied(self.frozen(self.first(features))))


@pytest.mark.ranks(4)
@pytest.mark.parametrize("compressor", [None, isthmus.OneBit()], ids=str)
def test_tied_frozen_unused_and_one_ranks_own_parameters(comm, tiers, compressor):
    """What was used is exact, through whatever compressor the gradients go."""
    model = Branches(comm.size)
    shared = isthmus.torch.Shared(model, tiers, compressor, buckets=4)
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(comm.rank))
    for used in (range(comm.size), (0, 3), (2,)):
        model.zero_grad()
        if comm.rank in used:
            model(features, comm.rank).square().sum().backward()
        else:
            shared.finish()  # it has no batch
        assert bits_agree(comm, model)
        have = {name for name, each in model.named_parameters() if each.grad is not None}
        own = {f"own.{rank}.weight" for rank in used}
        assert have == own | {"first.weight", "first.bias", "tied.bias"}
    if compressor is None:
        alone = Branches(comm.size)  # the last step: rank 2's gradient is a quarter of the mean
        features = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
        alone(features, 2).square().sum().backward()
        expected = dict(alone.named_parameters())
        for name in have:
            ours = dict(model.named_parameters())[name].grad
            np.testing.assert_allclose(ours, expected[name].grad / 4, rtol=1e-5, atol=1e-6)


@pytest.mark.ranks(4)
def test_a_weight_of_zero_leaves_a_rank_out_and_all_zero_leaves_nothing(comm, tiers):
    model = network()
    shared = isthmus.torch.Shared(model, tiers)
    shared.weight = 0 if comm.rank == 3 else 2
    expected = mean_of(model, [2, 2, 2, 0])
    if comm.rank == 3:
        shared.finish()
    else:
        functional.cross_entropy(model(batch(comm.rank)[0]), batch(comm.rank)[1]).backward()
    assert_close(model, expected)
    model.zero_grad()
    shared.weight = 0
    shared.finish()
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.ranks(4)
def test_accumulation_is_the_mean_over_ranks_and_passes(comm, tiers):
    model = network()
    shared = isthmus.torch.Shared(model, tiers, accumulate=3)
    expected = [mean_of(model, [1] * comm.size, step) for step in range(3)]
    for step in range(3):
        sent = shared.sent_nbytes
        if step == 1 and comm.rank == 2:
            features, targets = batch(comm.rank, step)
        else:
            features, targets = batch(comm.rank, step)
        functional.cross_entropy(model(features), targets).backward()
        assert (shared.sent_nbytes == sent) == (step < 2)
        if step == 0:
            with pytest.raises(ValueError, match="1 of 3 backward passes"):
                shared.state_dict()
    assert_close(model, {name: sum(each[name] for each in expected) / 3 for name in expected[0]})
    assert bits_agree(comm, model)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_travel_as_float32_and_are_rounded_back_alike(comm, tiers, dtype):
    model = network().to(dtype)
    isthmus.torch.Shared(model, tiers, weight=comm.rank + 1)

    def loss(scores, targets):
        return functional.cross_entropy(scores.float(), targets)

    def alone(rank):
        twin = network().to(dtype)
        features, targets = batch(rank)
        loss(twin(features.to(dtype)), targets).backward()
        return [each.grad.double() for each in twin.parameters()]

    features, targets = batch(comm.rank)
    loss(model(features.to(dtype)), targets).backward()
    everyone = [alone(rank) for rank in range(comm.size)]
    eps = max(torch.finfo(dtype).eps, 1e-6)
    for each, *theirs in zip(model.parameters(), *everyone):
        assert each.grad.dtype == dtype
        mean = sum(gradient * (rank + 1) / 10 for rank, gradient in enumerate(theirs))
        np.testing.assert_allclose(each.grad.double(), mean, rtol=eps, atol=1e-6)
    assert bits_agree(comm, model)


@pytest.mark.ranks(4)
def test_what_is_not_finite_is_known_to_all_and_a_scaler_skips_the_same_step(comm, tiers):
    model = network()
    shared = isthmus.torch.Shared(model, tiers, isthmus.Int8(), buckets=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    for step, bad in enumerate((None, float("nan"), None, float("inf"), None)):
        before = [each.detach().clone() for each in model.parameters()]
        kept = shared.state_dict()["allreduce"]["memory"]
        features, targets = batch(comm.rank, step)
        if bad is not None and comm.rank == 1:
            features[0, 0] = bad
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(features), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert shared.finite == (bad is None)
        same = all(torch.equal(old, new) for old, new in zip(before, model.parameters()))
        assert same == (bad is not None)
        if bad is not None:
            assert torch.equal(kept, shared.state_dict()["allreduce"]["memory"])
        assert len(set(comm.allgather(scaler.get_scale()))) == 1
        assert len(set(comm.allgather(model[0].weight.detach().numpy().tobytes()))) == 1
    assert scaler.get_scale() == 1.0


@pytest.mark.ranks(4)
@pytest.mark.parametrize("each_step", [False, True])
def test_statistics_become_the_mean_and_counts_the_largest(comm, tiers, each_step):
    model = network(norm=True)
    model.register_buffer("steps", torch.tensor(7 + comm.rank))
    model.register_buffer("seen", torch.tensor([comm.rank == 2, False]))
    weights = [1.0 + rank for rank in range(comm.size)]
    shared = isthmus.torch.Shared(model, tiers, weight=weights[comm.rank], average_each_step=each_step)
    model.steps += comm.rank
    model.seen[0] = comm.rank == 2
    features, targets = batch(comm.rank, samples=6 + comm.rank)
    model(features)
    everyone = [each.double().numpy() for each in comm.allgather(model[1].running_var)]
    expected = sum(weight / sum(weights) * each for weight, each in zip(weights, everyone))
    with torch.no_grad():
        model[1].momentum = 0.0  # the second forward pass leaves the statistics
    functional.cross_entropy(model(features), targets).backward()
    mine = model[1].running_var.numpy().tobytes()
    assert (len(set(comm.allgather(mine))) == 1) == each_step
    if not each_step:
        shared.average_buffers()
    np.testing.assert_array_equal(model[1].running_var, expected.astype("f4"))
    assert model[1].num_batches_tracked == 2
    assert model.steps == 7 + 3
    assert model.seen.tolist() == [True, False]


@pytest.mark.ranks(4)
@pytest.mark.parametrize("compressor", [isthmus.Int4(rounding="stochastic"), isthmus.TopK(0.1)], ids=str)
def test_a_loop_that_goes_on_from_its_state_ends_with_the_same_bits(comm, tiers, tmp_path, compressor):
    def start():
        model = network()
        shared = isthmus.torch.Shared(model, tiers, compressor, weight=comm.rank + 1, buckets=2)
        return model, shared, torch.optim.Adam(model.parameters(), 0.01)

    def train(model, optimizer, steps):
        for step in steps:
            features, targets = batch(comm.rank, step)
            optimizer.zero_grad()
            functional.cross_entropy(model(features), targets).backward()
            optimizer.step()

    model, shared, optimizer = start()
    train(model, optimizer, range(3))
    shared.weight = 2.5
    parts = {"model": model, "optimizer": optimizer, "shared": shared}
    torch.save({name: each.state_dict() for name, each in parts.items()}, tmp_path / "state.pt")
    train(model, optimizer, range(3, 6))
    again, shared_again, optimizer_again = start()
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(stored["model"])
    optimizer_again.load_state_dict(stored["optimizer"])
    shared_again.load_state_dict(stored["shared"])
    train(again, optimizer_again, range(3, 6))
    for own, other in zip(model.parameters(), again.parameters()):
        assert torch.equal(own, other)
    assert shared_again.sent_nbytes == shared.sent_nbytes

    other = torch.nn.Linear(3, 3)
    elsewhere = isthmus.torch.Shared(other, tiers, compressor)
    with pytest.raises(isthmus.IsthmusError, match="of another model"):
        elsewhere.load_state_dict(stored["shared"])
    if comm.rank == 1:
        stored["shared"]["allreduce"]["calls"] = torch.zeros(2)
    with pytest.raises(isthmus.IsthmusError, match=r"damaged: calls is not.*on rank 1"):
        shared_again.load_state_dict(stored["shared"])
    with pytest.raises(isthmus.IsthmusError, match="no state of"):
        shared_again.load_state_dict({"weights": 1})


def wrong_models(rank):
    """Yield what one rank, or all, may get wrong, and what all are told."""
    linear, empty = torch.nn.Linear(3, 2), torch.nn.Module()
    yield torch.nn.Linear(3, 2 + rank // 3), r"rank 3's is not rank 0's, it has the parameter 'weight'"
    yield torch.nn.Linear(3, 2, bias=rank != 2), r"rank 0 alone has the parameter 'bias'.*\(on rank 2\)"
    yield linear.to(torch.bfloat16) if rank == 1 else linear, r"bfloat16 .* where rank 0 has .* float32"
    yield empty, "^model has no parameters: there is nothing to train$"
    yield torch.nn.Linear(3, 2).requires_grad_(False), "all parameters of model are frozen"
    yield torch.nn.Linear(3, 2).to(torch.complex64), "is of torch.complex64: parameters are real numbers"
    whole = torch.nn.Linear(3, 2)
    whole.count = torch.nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False)
    yield whole, "'count' is of torch.int32"
    yield torch.nn.LazyLinear(3), "has no shape yet"
    yield "net" if rank == 1 else torch.nn.Linear(3, 2), r"must be a torch.nn.Module.*\(on rank 1\)"


@pytest.mark.ranks(4)
def test_what_is_wrong_on_any_rank_is_one_line_on_all(comm, tiers):
    for model, told in wrong_models(comm.rank):
        with pytest.raises(ValueError, match=told) as caught:
            isthmus.torch.Shared(model, tiers)
        assert "\n" not in str(caught.value)
    for arguments, told in (
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"accumulate": 1 + comm.rank // 3}, "accumulate and average_each_step differ"),
        ({"buckets": 1.5 if comm.rank == 2 else 1}, "buckets must be a whole number.*on rank 2"),
        ({"weight": -1}, "weight must not be negative"),
        ({"compressor": "int8"}, "compressor must be one of isthmus' compressors"),
        ({"compressor": isthmus.Int8() if comm.rank else None}, "ranks ask for different allreduces"),
        ({"algorithm": "ring", "compressor": isthmus.Int8()}, "sends exact float32"),
    ):
        with pytest.raises(ValueError, match=told):
            isthmus.torch.Shared(network(), tiers, **arguments)


@pytest.mark.ranks(4)
def test_a_gradient_that_cannot_be_sent_is_told_on_all_ranks_and_the_next_is_right(comm, tiers):
    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.other = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 3)
            self.other.bias.requires_grad_(False)

        def forward(self, rows):
            return self.other(self.table(rows))

    model = Table()
    shared = isthmus.torch.Shared(model, tiers, buckets=2)
    rows = torch.tensor([comm.rank, 1])

    def step():
        model.zero_grad()
        model(rows).square().sum().backward()

    model.table.sparse = comm.rank == 1
    with pytest.raises(ValueError, match=r"'table.weight' is sparse.*on rank 1"):
        step()
    model.table.sparse = False
    model.other.bias.requires_grad_(comm.rank != 2)
    with pytest.raises(ValueError, match=r"'other.bias' was frozen when.*on ranks 0-1, 3"):
        step()
    model.other.bias.requires_grad_(False).grad = None
    if comm.rank == 3:
        shared.weight = float("nan")
    with pytest.raises(ValueError, match=r"weight must be finite.*on rank 3"):
        step()
    step()
    assert bits_agree(comm, model)
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        model(rows).backward()

    def refuse(_):
        raise ZeroDivisionError("planted")

    expected = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    hidden = model.table(rows)
    hidden.register_hook(refuse)
    with pytest.raises(ZeroDivisionError, match="planted"):  # one bucket is on its way
        model.other(hidden).square().sum().backward()
    step()
    for own, each in zip([e.grad for e in model.parameters() if e.grad is not None], expected):
        assert torch.equal(own, each)
    assert bits_agree(comm, model)


@pytest.mark.ranks(2)
def test_compiled_modules_other_threads_and_checkpointed_segments(comm, tiers):
    from torch.utils.checkpoint import checkpoint

    model = network()
    expected = mean_of(model, [1] * comm.size)
    isthmus.torch.Shared(model, tiers, buckets=2)
    features, targets = batch(comm.rank)
    compiled = torch.compile(model, backend="aot_eager")
    functional.cross_entropy(compiled(features), targets).backward()
    assert_close(model, expected)

    def segments(reentrant):
        middle = checkpoint(model[0], features.requires_grad_(), use_reentrant=reentrant)
        return model[2](model[1](middle))

    for forward in (lambda: model(features), lambda: segments(False), lambda: segments(True)):
        model.zero_grad()
        loss = functional.cross_entropy(forward(), targets)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(loss.backward).result()
        assert_close(model, expected)
        assert bits_agree(comm, model)


@pytest.mark.ranks(2)
def test_two_backward_passes_add_up_and_a_closed_one_is_left_alone(comm, tiers):
    model = network()
    shared = isthmus.torch.Shared(model, tiers)
    expected = mean_of(model, [1] * comm.size)
    features, targets = batch(comm.rank)
    for _ in range(2):  # two losses of one step, as plain torch adds them
        functional.cross_entropy(model(features), targets).backward()
    assert_close(model, {name: 2 * each for name, each in expected.items()}, 1e-6)
    shared.close()
    model.zero_grad()
    functional.cross_entropy(model(features), targets).backward()
    assert_close(model, gradients_alone(model, features, targets))


@pytest.mark.ranks(2)
def test_own_samples_come_as_tensors_in_the_order_of_the_seed(comm, tiers):
    shards = isthmus.ShardSet.open("data/fashion_mnist/train")
    plan = isthmus.plan_shards(tiers.cluster, shards, isthmus.Workload(1000, 64))
    local = isthmus.scatter_shards(tiers, shards, plan)
    ours = list(isthmus.torch.batches(local, 3, 1, steps=plan.steps))
    assert len(ours) == plan.steps
    for (features, targets), (pixels, labels) in zip(
        ours, local.batches(steps=plan.steps, seed=3, epoch=1)
    ):
        np.testing.assert_array_equal(features, pixels)
        np.testing.assert_array_equal(targets, labels)
        assert (features.dtype, targets.dtype) == (torch.uint8, torch.int64)
    late = list(isthmus.torch.batches(local, 3, 1, steps=plan.steps, start=plan.steps - 1))
    assert torch.equal(late[0][0], ours[-1][0])
    sizes = {len(targets) for _, targets in itertools.islice(isthmus.torch.batches(local, 0, 0), 3)}
    assert sizes == {32}


@pytest.mark.slow
def test_torch_is_loaded_when_it_is_asked_for_and_named_where_it_is_missing():
    program = (
        "import sys, isthmus; print('torch' in sys.modules); isthmus.torch; "
        "print('torch' in sys.modules); print(isthmus.torch.Shared.__name__)"
    )
    missing = (
        "import sys; sys.modules['torch'] = None; import isthmus\n"
        "try: isthmus.torch.Shared\n"
        "except isthmus.IsthmusError as problem: print(problem.exit_code, problem)"
    )
    printed = [
        subprocess.run([sys.executable, "-c", text], text=True, capture_output=True, check=True).stdout
        for text in (program, missing)
    ]
    assert printed[0].split() == ["False", "False", "Shared"]
    assert printed[1].startswith("10 isthmus.torch.Shared needs PyTorch, isthmus[torch]")
    assert "pip install" in printed[1]
