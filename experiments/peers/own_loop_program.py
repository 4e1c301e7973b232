"""A PyTorch loop under isthmus.torch.Shared and under DDP over Gloo, in turns in the same processes.

Started by own_loop_against_ddp.py with a task in a file; rank 0 prints a line of JSON for each way.
"""

import json
import os
import time

from measuring import INTERFACE, read_task

if __name__ == "__main__":
    import numpy as np
    import torch
    import torch.distributed as dist
    from mpi4py import MPI
    from torch.nn.parallel import DistributedDataParallel

    import isthmus

    def convolutional():
        """About 150,000 parameters for pictures of 28 x 28."""
        return torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 28)),
            torch.nn.Conv2d(1, 16, 3),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(16, 32, 3),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(800, 180),
            torch.nn.ReLU(),
            torch.nn.Linear(180, 10),
        )

    def perceptron():
        """784-1024-1024-10: 1,863,690 parameters."""
        return torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(784, 1024),
            torch.nn.ReLU(),
            torch.nn.Linear(1024, 1024),
            torch.nn.ReLU(),
            torch.nn.Linear(1024, 10),
        )

    MODELS = {"cnn": convolutional, "mlp": perceptron}
    COMPRESSORS = {"float32": None, "int8": isthmus.Int8()}

    def loop_of(way, name, tiers):
        """Return a function that makes one step of a user's loop, and what was made for it."""
        torch.manual_seed(0)
        model = MODELS[name]()
        shared = None
        if way["kind"] == "shared":
            shared = isthmus.torch.Shared(
                model, tiers, compressor=COMPRESSORS[way["compressor"]], buckets=way["buckets"]
            )
        elif way["kind"] == "ddp":
            model = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

        def step(features, targets):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(features), targets).backward()
            optimizer.step()

        return step, shared

    task = read_task()
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    if os.path.exists(f"/proc/sys/net/ipv4/conf/{INTERFACE}"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", INTERFACE)
    dist.init_process_group(
        "gloo", init_method=f"file://{task['rendezvous']}", rank=comm.rank, world_size=comm.size
    )
    draw = torch.Generator().manual_seed(comm.rank)
    with isthmus.split_tiers(comm, isthmus.Cluster.from_toml(task["cluster"])) as tiers:
        features = torch.randn(task["batch_size"], 28, 28, generator=draw)
        targets = torch.randint(10, (task["batch_size"],), generator=draw)
        loops = [loop_of(way, task["model"], tiers) for way in task["ways"]]
        seconds = np.empty((len(loops), task["rounds"], task["steps"]))
        for turn in range(-1, task["rounds"]):  # the first is not counted
            for number, (step, _) in enumerate(loops):
                comm.Barrier()
                for count in range(task["steps"]):
                    start = time.perf_counter()
                    step(features, targets)
                    seconds[number, turn, count] = time.perf_counter() - start
        for way, (_, shared), mine in zip(task["ways"], loops, seconds):
            rounds = mine.mean(axis=1)
            comm.Allreduce(MPI.IN_PLACE, rounds, MPI.MAX)
            if comm.rank == 0:
                result = {**way, "round_step_seconds": rounds.round(7).tolist()}
                if shared is not None:
                    result["predicted_nbytes"] = shared.predicted_nbytes()
                    result["parameters"] = shared.allreduce.size
                print(json.dumps(result), flush=True)
    dist.destroy_process_group()
