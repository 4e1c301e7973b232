"""What an allreduce holds beside the vector that it is given and the mean that it gives."""

import tracemalloc

import numpy as np
import pytest
from clusters import cluster_of

import isthmus

SIZE = 1 << 20
MOST = {
    None: 1.2,  # a wire that comes
    isthmus.Int8(): 2.35,  # what is kept, before a call and after it, and the wire that is sent
    isthmus.Int4(): 2.25,
    isthmus.Dense("bfloat16"): 2.6,
    isthmus.TopK(0.02, bits=2): 2.2,
}


@pytest.mark.slow
@pytest.mark.ranks(2)
def test_an_allreduce_holds_at_most_three_vectors_and_writes_beside_what_it_remembers(comm):
    draw = np.random.default_rng(comm.rank)
    vectors = draw.standard_normal((2, SIZE), dtype="f4")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 1))) as tiers:
        for compressor, most in MOST.items():
            isthmus.Allreduce(tiers, SIZE, compressor=compressor)(vectors[0])  # compiled
            tracemalloc.start()
            allreduce = isthmus.Allreduce(tiers, SIZE, compressor=compressor)
            for vector in vectors:
                mean = allreduce(vector)
                del mean
            held, peak = (each / vectors[0].nbytes for each in tracemalloc.get_traced_memory())
            tracemalloc.stop()
            assert held < most
            assert peak - 1 < most  # beside the mean

        read, before = allreduce.memory, allreduce.memory.copy()
        allreduce(vectors[0])
        assert (read == before).all()  # what a call remembers it writes elsewhere
        assert (allreduce.memory != before).any()
        before, bad = allreduce.memory.copy(), vectors[1].copy()
        bad[SIZE // 2] = np.nan if comm.rank else 0
        allreduce(bad)
        assert not allreduce.finite
        assert (allreduce.memory == before).all()
