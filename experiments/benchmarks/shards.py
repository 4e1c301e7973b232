"""Shards: how fast they are packed, verified, read, and brought to four ranks."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import isthmus
from isthmus.jobs.launch import rank_command, rank_environment

SHARDS, REPETITIONS = 16, 5
REPOSITORY = Path(__file__).resolve().parent.parent.parent
UNIT = "ms a MB (1000 over it is MB/s)"


def images():
    """Return the images of the main job's training set, 7.8 MB."""
    shards = isthmus.ShardSet.open(REPOSITORY / "data/fashion_mnist/train")
    features = [shards.read(number)["features"] for number in range(len(shards.names))]
    return {"features": np.concatenate(features)}


def milliseconds_a_megabyte(seconds, shards):
    """Return the samples of a figure."""
    return {"samples": [1e3 * each / (sum(shards.nbytes) / 1e6) for each in seconds], "number": 1}


class Shards:
    params = ("lz4", "zstd", "none")
    param_names = ("compression",)
    unit = UNIT

    def setup(self, compression):
        self.arrays = images()
        self.folder = tempfile.TemporaryDirectory()
        self.shards = isthmus.pack_shards(self.arrays, f"{self.folder.name}/set", SHARDS, compression)

    def teardown(self, compression):
        self.folder.cleanup()

    def track_pack(self, compression):
        return self.samples(
            lambda: isthmus.pack_shards(
                self.arrays, f"{self.folder.name}/new", SHARDS, compression, overwrite=True
            )
        )

    def track_verify(self, compression):
        return self.samples(self.shards.verify)

    def track_read(self, compression):
        return self.samples(lambda: [self.shards.read(number) for number in range(SHARDS)])

    def track_stored_bytes(self, compression):
        stored = sum((self.shards.folder / name).stat().st_size for name in self.shards.names)
        return stored / sum(self.shards.nbytes)

    track_stored_bytes.unit = "stored bytes a byte"

    def samples(self, call):
        seconds = []
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return milliseconds_a_megabyte(seconds, self.shards)


class Scatter:
    """Until the last of four ranks has its four shards, verified."""

    params = ("every rank reads", "rank 0 reads and sends")
    param_names = ("way",)
    unit = UNIT

    def track_scatter(self, way):
        with tempfile.TemporaryDirectory() as folder:
            shards = isthmus.pack_shards(images(), f"{folder}/set", SHARDS, "lz4")
            done = subprocess.run(
                rank_command(4, __file__, f"{folder}/set", way),
                check=True,
                text=True,
                env=rank_environment(),
                stdout=subprocess.PIPE,
            )
        return milliseconds_a_megabyte(json.loads(done.stdout), shards)


def main(folder, way):
    """In each of four ranks: scatter again and again; rank 0 prints the slowest rank's seconds."""
    from mpi4py import MPI

    world, slowest = MPI.COMM_WORLD, np.empty(1)
    shards = isthmus.ShardSet.open(folder) if way == "every rank reads" or world.rank == 0 else None
    each = SHARDS // world.size
    plan = SimpleNamespace(
        shards_of_rank=[range(each * rank, each * (rank + 1)) for rank in range(world.size)]
    )
    cluster, seconds = isthmus.Cluster.from_toml(REPOSITORY / "experiments/two_sites.toml"), []
    with isthmus.split_tiers(world, cluster) as tiers:
        for _ in range(1 + REPETITIONS):
            world.Barrier()
            start = time.perf_counter()
            isthmus.scatter_shards(tiers, shards, plan)
            world.Allreduce(np.array([time.perf_counter() - start]), slowest, MPI.MAX)
            seconds.append(slowest[0])
    if world.rank == 0:
        print(json.dumps(seconds[1:]))  # the first has loaded HDF5


if __name__ == "__main__":
    main(*sys.argv[1:])
