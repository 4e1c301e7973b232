"""Compare allreduces and training on a GPU with the host's: all ranks on it, and some.

`make gpu-test` runs it from the source tree in four ranks, which share the GPU where there is one. It
needs a GPU, CuPy, NumPy, Numba, mpi4py and an MPI. Every mean, what is carried from step to step and
the bytes sent are the host's to the bit; wrong vectors are one error on all ranks; training ends with
one hash on all ranks. Ends with 0 if all is so, 1 if not, 10 where there is no GPU. About a minute.
"""

import hashlib
import sys
import time

import source_tree  # noqa: F401  (first: it makes isthmus importable)

SITES = ((4,), (2, 2), (1, 2, 1), (1, 1, 1, 1))
ON_GPU = ((0, 1, 2, 3), (0, 3), (1, 2))
STEPS = 3


def exchanges():
    """Yield (algorithm, compressor)."""
    from isthmus.compression.dense import Dense
    from isthmus.compression.one_bit import OneBit
    from isthmus.compression.quantized import Int4, Int8
    from isthmus.compression.top_k import TopK

    yield from (
        (name, None) for name in ("hierarchical", "ring", "tree", "doubling", "recursive", "mpi")
    )
    for compressor in (
        Dense("bfloat16"),
        Int8(),
        Int8(rounding="stochastic"),
        Int4(),
        OneBit(),
        TopK(),
        TopK(0.01, "threshold"),
        TopK(0.01, "random"),
        TopK(0.02, bits=2),
    ):
        yield "hierarchical", compressor


def check_bits(world, cupy, size, tell):
    """Return what differs between vectors on the host and the same ones on the GPU of some ranks."""
    import numpy as np
    from site_ranks import tiers_of

    from isthmus.links.agreement import gather_json

    differences, calls = [], 0
    for sites in SITES:
        tiers = tiers_of(world, sites)
        for algorithm, compressor in exchanges():
            wanted = bits(tiers, size, algorithm, compressor, np)
            for on_gpu in ON_GPU:
                library = cupy if world.rank in on_gpu else np
                got = bits(tiers, size, algorithm, compressor, library)
                calls += STEPS
                wrong = gather_json(world, [name for name in wanted if got[name] != wanted[name]])
                if any(wrong):
                    differences.append(
                        f"{algorithm} {compressor}, sites {sites}, GPU on ranks {on_gpu}: {wrong}"
                    )
                    tell(differences[-1])
    tell(f"{calls} allreduces of {size:,} entries, {len(differences)} differences")
    return differences


def bits(tiers, size, algorithm, compressor, library):
    """Return digests of the means of some steps and of the memory after them, and the bytes sent."""
    import numpy as np

    from isthmus.collectives.allreduce import Allreduce
    from isthmus.devices import to_host

    cut = size // 2 // 4096 * 4096
    allreduce = Allreduce(tiers, size, algorithm, compressor, buckets=[slice(cut, size), slice(0, cut)])
    means = hashlib.sha256()
    for step in range(STEPS):
        draw = np.random.default_rng([step, tiers.world.rank])
        vector = library.asarray(draw.standard_normal(size, dtype=np.float32))
        means.update(to_host(allreduce(vector)))
    return {
        "means": means.hexdigest(),
        "sent": allreduce.sent_nbytes,
        "memory": hashlib.sha256(to_host(allreduce.memory)).hexdigest(),
    }


def check_errors(world, cupy, tell, size=1 << 20):
    """Return the wrong vectors that are not one error on all ranks, or after which nothing works."""
    import numpy as np
    from site_ranks import tiers_of

    from isthmus.collectives.allreduce import Allreduce
    from isthmus.compression.quantized import Int8
    from isthmus.errors import NoDeviceError
    from isthmus.links.agreement import gather_json

    tiers = tiers_of(world, (2, 2))
    faults = {
        "on the host": lambda: np.zeros(size, "f4"),
        "not contiguous": lambda: cupy.zeros(2 * size, "f4")[::2],
        "float64": lambda: cupy.zeros(size, "f8"),
        "misaligned": lambda: cupy.zeros(4 * size + 1, "u1")[1:].view("f4"),
        "no entries": lambda: cupy.zeros(0, "f4"),
        "out of memory": lambda: good,
    }
    good, wrong = cupy.ones(size, "f4"), []
    for fault, make in faults.items():
        allreduce = Allreduce(tiers, size, compressor=Int8())
        allreduce(good)
        vector, pool = (make() if world.rank == 2 else good), cupy.get_default_memory_pool()
        try:
            if fault == "out of memory" and world.rank == 2:
                pool.free_all_blocks()
                pool.set_limit(size=pool.total_bytes())
            allreduce(vector)
            told = "no error"
        except (ValueError, NoDeviceError) as problem:
            told = str(problem)
        pool.set_limit(size=0)
        after = float(allreduce(good).sum()) / size
        if any(
            "on rank 2" not in each[0] or abs(each[1] - 1) > 1e-3
            for each in gather_json(world, [told, after])
        ):
            wrong.append(f"{fault}: {told}, and then a mean of {after}")
            tell(wrong[-1])
    tell(f"{len(faults)} wrong vectors, {len(wrong)} not told on all ranks")
    return wrong


def check_training(world, cupy, tell, hidden=128):
    """Return the mixtures of ranks that do not end with one hash on all of them."""
    import numpy as np
    from site_ranks import tiers_of

    from isthmus.collectives.allreduce import Allreduce
    from isthmus.compression.quantized import Int8
    from isthmus.errors import ReplicaError
    from isthmus.models import Perceptron
    from isthmus.shards.batches import LocalSamples
    from isthmus.training.loop import State, Training
    from isthmus.training.recipe import Recipe
    from isthmus.training.replicas import Replicas
    from isthmus.training.strategies.strategy import Member

    model, recipe = Perceptron(784, (hidden,), 10), Recipe(epochs=2, steps=20, learning_rate=0.1)
    draw, tiers, wrong = np.random.default_rng(world.rank), tiers_of(world, (2, 2)), []
    samples = LocalSamples(
        {
            "features": draw.integers(0, 255, (640, 784)).astype("u1"),
            "targets": draw.integers(0, 10, 640).astype("u1"),
        }
    )
    for on_gpu in ((), *ON_GPU):
        state = State.initial(model, recipe, cupy if world.rank in on_gpu else np)
        allreduce = Allreduce(
            tiers, model.size, compressor=Int8(), weight=samples.samples, like=state.parameters
        )
        training = Training(tiers, model, samples, Member(allreduce), recipe, state)
        try:
            for _ in training.steps():
                pass
            tell(f"training with a GPU on ranks {on_gpu}: {Replicas(training).compare()[:16]} on all")
        except ReplicaError as problem:
            wrong.append(f"training with a GPU on ranks {on_gpu}: {problem}")
            tell(wrong[-1])
    return wrong


def check_all(world, cupy, tell, size=1_000_003):
    """Check bits, errors and training; return what is wrong. Collective over four ranks."""
    return [
        *check_bits(world, cupy, size, tell),
        *check_errors(world, cupy, tell),
        *check_training(world, cupy, tell),
    ]


def main():
    """Check collectives and training on the GPU of this machine."""
    from mpi4py import MPI

    from isthmus.devices import mpi_library_path, mpi_takes_device_arrays, take_device
    from isthmus.errors import NoDeviceError

    world = MPI.COMM_WORLD

    def tell(line):
        if world.rank == 0:
            print(line, flush=True)

    try:
        take_device("gpu", world.rank)
        import cupy
    except NoDeviceError as error:
        if world.rank == 0:
            print(f"gpu-test: {error}", file=sys.stderr)
        return error.exit_code
    if world.size != 4:
        tell(
            "gpu-test: start four ranks: mpirun -n 4 python -m mpi4py "
            "experiments/gpu/check_collectives.py"
        )
        return 1
    start, direct = time.time(), mpi_takes_device_arrays(mpi_library_path())
    tell(f"gpu-test in 4 ranks; MPI {'takes' if direct else 'does not take'} arrays of a device")
    wrong = check_all(world, cupy, tell)
    tell(
        f"gpu-test: {f'{len(wrong)} checks failed' if wrong else 'all is well'}, "
        f"{time.time() - start:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
