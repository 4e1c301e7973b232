"""PyTorch: raw Gloo, and DistributedDataParallel over Gloo with its communication hooks.

Started by the same mpirun as the others, which it asks for rank and size alone. Imports no MPI.
"""

import os

import numpy as np
from measuring import INTERFACE, read_task, run_task

START = 2
"""The first call that PowerSGD may compress, as PyTorch has it; those before are not timed."""

if __name__ == "__main__":
    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
    from torch.nn.parallel import DistributedDataParallel

    import isthmus
    from isthmus.models import Perceptron
    from isthmus.shards.batches import LocalSamples
    from isthmus.training.recipe import Recipe

    class Gloo:
        """The peer that `measuring` describes."""

        def __init__(self, program):
            self.program = program
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self.scale = self.size if program["kind"] == "ddp" else 1

        def gather(self, numbers):
            mine = torch.tensor(numbers or [0.0], dtype=torch.float64)
            everyone = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(everyone, mine)
            return [row.tolist() for row in everyone]

        def reducer(self, entries):
            if self.program["kind"] == "ddp":
                return self._reducer_of_ddp(entries)

            def reduce(vector):
                tensor = torch.from_numpy(vector)
                if self.program["dtype"] == "float16":
                    half = tensor.half()
                    dist.all_reduce(half)
                    return half.float().numpy()
                dist.all_reduce(tensor)
                return vector

            return reduce

        def _reducer_of_ddp(self, entries):
            """Backward of a model whose gradient is the vector: what DDP does to it, copies included."""
            model = self.distributed(Product(entries), START)

            def reduce(vector):
                model.zero_grad()
                model(torch.from_numpy(vector)).backward()
                return model.module.gradient()

            if self.program["hook"] == "powersgd":  # until it has left plain float32 behind
                for _ in range(START):
                    reduce(np.zeros(entries, np.float32))
            return reduce

        def distributed(self, model, start):
            """Return `model` under DDP with the hook that is asked for.

            PowerSGD, from step `start` on, gets one bucket: with more, callbacks of one bucket race
            those of the next, ranks call Gloo in different orders, and the job hangs.
            """
            hook = self.program["hook"]
            if hook == "powersgd":
                size = sum(weights.numel() for weights in model.parameters())
                model = DistributedDataParallel(model, bucket_cap_mb=1 + 4 * size / 2**20)
                model.register_comm_hook(
                    powerSGD_hook.PowerSGDState(
                        None,
                        matrix_approximation_rank=self.program["matrix_rank"],
                        start_powerSGD_iter=start,
                    ),
                    powerSGD_hook.powerSGD_hook,
                )
                return model
            model = DistributedDataParallel(model)
            if hook == "fp16":
                model.register_comm_hook(None, default_hooks.fp16_compress_hook)
            return model

        def learner(self, task):
            return Learner(self, task)

    class Product(torch.nn.Module):
        """A matrix, as square as may be, and a rest: the gradient of `sum(weights x given)` is given."""

        def __init__(self, entries):
            super().__init__()
            rows = max(1, int(entries**0.5))
            columns, rest = divmod(entries, rows)
            self.weights = torch.nn.ParameterList([torch.zeros(rows, columns)])
            if rest:
                self.weights.append(torch.zeros(rest))

        def forward(self, vector):
            parts = vector.split([weights.numel() for weights in self.weights])
            return sum(
                (weights * part.view_as(weights)).sum() for weights, part in zip(self.weights, parts)
            )

        def gradient(self):
            return np.concatenate([weights.grad.numpy().reshape(-1) for weights in self.weights])

    class Network(torch.nn.Module):
        """isthmus' perceptron with the same parameters, on the same inputs."""

        def __init__(self, model, parameters):
            super().__init__()
            self.layers = torch.nn.ModuleList()
            views = model.views(parameters)
            for number in range(len(model.hidden) + 1):
                weight = torch.from_numpy(views[f"layer{number}.weight"].T.copy())
                layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
                layer.weight.data = weight
                layer.bias.data = torch.from_numpy(views[f"layer{number}.bias"].copy())
                self.layers.append(layer)

        def forward(self, features):
            values = features.reshape(len(features), -1).float() / 255 - 0.5
            for layer in self.layers[:-1]:
                values = torch.relu(layer(values))
            return self.layers[-1](values)

    class Learner:
        """The steps of isthmus' Training, made by PyTorch."""

        def __init__(self, peer, task):
            self.peer, self.recipe = peer, Recipe(**task["recipe"])
            self.train, self.test = (samples_of(task[part], peer.rank) for part in ("train", "test"))
            model = Perceptron(hidden=tuple(task["hidden"]))
            network = Network(model, model.initial(self.recipe.seed))
            self.network = peer.distributed(network, peer.program.get("start_powersgd_iter"))
            self.optimizer = torch.optim.SGD(
                self.network.parameters(), self.recipe.learning_rate, momentum=task["momentum"]
            )
            # DDP averages over ranks, isthmus weighs by samples: with this, both make the same step.
            everyone = sum(row[0] for row in peer.gather([self.train.samples]))
            self.loss_scale = peer.size * self.recipe.steps / everyone
            self.batches = self._batches()
            self.step = 0

        def _batches(self):
            recipe = self.recipe
            for epoch in range(recipe.epochs):
                yield from self.train.batches(steps=recipe.steps, seed=recipe.seed, epoch=epoch)

        def make_step(self):
            features, targets = map(torch.from_numpy, next(self.batches))
            self.optimizer.param_groups[0]["lr"] = self.recipe.learning_rate_of(self.step)
            self.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                self.network(features), targets.long(), reduction="sum"
            )
            (loss * self.loss_scale).backward()
            self.optimizer.step()
            self.step += 1

        @torch.no_grad()
        def accuracy(self):
            right = sum(
                (self.network.module(torch.from_numpy(features)).argmax(1) == torch.from_numpy(targets))
                .sum()
                .item()
                for features, targets in self.test.batches(size=500)
            )
            rows = self.peer.gather([right, self.test.samples])
            return sum(row[0] for row in rows) / sum(row[1] for row in rows)

    def samples_of(part, rank):
        """Return the samples that isthmus' plan gives to `rank`, in the same order."""
        shards = isthmus.ShardSet.open(part["folder"])
        read = [shards.read(shard) for shard in part["shards_of_rank"][rank]]
        return LocalSamples(
            {name: np.concatenate([arrays[name] for arrays in read]) for name in shards.arrays}
        )

    task = read_task()
    torch.set_num_threads(1)
    if os.path.exists(f"/proc/sys/net/ipv4/conf/{INTERFACE}"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", INTERFACE)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{task['rendezvous']}",
        rank=int(os.environ["OMPI_COMM_WORLD_RANK"]),
        world_size=int(os.environ["OMPI_COMM_WORLD_SIZE"]),
    )
    run_task(Gloo(task["program"]), task)
    dist.destroy_process_group()
