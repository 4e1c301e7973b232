"""Compiles what every rank needs, once: ranks that start together would each compile it."""

import numpy as np
from clusters import cluster_of
from mpi4py import MPI

import isthmus

with isthmus.split_tiers(MPI.COMM_WORLD, isthmus.Cluster(cluster_of(1))) as tiers:
    for compressor in (None, isthmus.Int8()):
        isthmus.Allreduce(tiers, 300, compressor=compressor)(np.ones(300, "f4"))
