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
from isthmus.runs.launch import rank_command, rank_environment

SHARDS, SAMPLES, SIDE, REPETITIONS = 16, 20_000, 28, 5
MEGABYTES = SAMPLES * SIDE**2 / 1e6
TWO_SITES = Path(__file__).resolve().parent.parent / "two_sites.toml"
UNIT = "ms a MB (1000 over it is MB/s)"


def images():
    """Return MEGABYTES that compress about as images do."""
    draw = np.random.default_rng(0)
    grey = (40 * draw.normal(size=(SAMPLES, SIDE, SIDE)) ** 2).clip(0, 255)
    return {"features": grey.astype("u1")}


class Shards:
    params = ("lz4", "zstd", "none")
    param_names = ("compression",)
    unit = UNIT
    timeout = 120

    def setup(self, compression):
        self.arrays = images()
        self.folder = tempfile.TemporaryDirectory()
        self.shards = isthmus.pack_shards(self.arrays, f"{self.folder.name}/set", SHARDS, compression)

    def teardown(self, compression):
        self.folder.cleanup()

    def track_pack(self, compression):
        return self.samples(lambda: isthmus.pack_shards(
            self.arrays, f"{self.folder.name}/new", SHARDS, compression, overwrite=True))

    def track_verify(self, compression):
        return self.samples(self.shards.verify)

    def track_read(self, compression):
        return self.samples(lambda: [self.shards.read(number) for number in range(SHARDS)])

    def track_stored_bytes(self, compression):
        stored = sum((self.shards.folder / name).stat().st_size for name in self.shards.names)
        return stored / sum(self.shards.nbytes)

    track_stored_bytes.unit = "stored bytes a byte"

    def samples(self, call):
        """Return the milliseconds a MB of each repetition."""
        samples = []
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            call()
            samples.append(1e3 * (time.perf_counter() - start) / MEGABYTES)
        return {"samples": samples, "number": 1}


class Scatter:
    """Until the last of four ranks has its four shards, verified."""

    params = ("every rank reads", "rank 0 reads and sends")
    param_names = ("way",)
    unit = UNIT
    timeout = 120

    def track_scatter(self, way):
        with tempfile.TemporaryDirectory() as folder:
            isthmus.pack_shards(images(), f"{folder}/set", SHARDS, "lz4")
            done = subprocess.run(rank_command(4, __file__, f"{folder}/set", way), check=True, text=True,
                                  env=rank_environment(), stdout=subprocess.PIPE)
        return {"samples": json.loads(done.stdout), "number": 1}


def main(folder, way):
    """In each of four ranks: scatter again and again; rank 0 prints the milliseconds a MB."""
    from mpi4py import MPI
    world, slowest = MPI.COMM_WORLD, np.empty(1)
    shards = isthmus.ShardSet.open(folder) if way == "every rank reads" or world.rank == 0 else None
    each = SHARDS // world.size
    plan = SimpleNamespace(shards_of_rank=[
        range(each * rank, each * (rank + 1)) for rank in range(world.size)])
    samples = []
    with isthmus.split_tiers(world, isthmus.Cluster.from_toml(TWO_SITES)) as tiers:
        for _ in range(REPETITIONS):
            world.Barrier()
            start = time.perf_counter()
            isthmus.scatter_shards(tiers, shards, plan)
            world.Allreduce(np.array([time.perf_counter() - start]), slowest, MPI.MAX)
            samples.append(1e3 * slowest[0] / MEGABYTES)
    if world.rank == 0:
        print(json.dumps(samples))


if __name__ == "__main__":
    main(*sys.argv[1:])
