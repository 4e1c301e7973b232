"""Train one model over machines on both sides of a narrow link: plan, run, check."""

import importlib

_HOME = {
    "Cluster": "isthmus.cluster.cluster",
    "split_tiers": "isthmus.links.tiers",
    "Dense": "isthmus.compression.dense",
    "Int8": "isthmus.compression.quantized",
    "Int4": "isthmus.compression.quantized",
    "OneBit": "isthmus.compression.one_bit",
    "LowRank": "isthmus.compression.low_rank",
    "TopK": "isthmus.compression.top_k",
    "Allreduce": "isthmus.collectives.allreduce",
    "Synchronous": "isthmus.training.strategies.synchronous",
    "pack_shards": "isthmus.shards.packing",
    "ShardSet": "isthmus.shards.shard_file",
    "scatter_shards": "isthmus.shards.scattering",
    "Workload": "isthmus.timing.time_model",
    "predict_allreduce": "isthmus.timing.time_model",
    "allocate_shards": "isthmus.planning.programme.allocation",
    "plan_shards": "isthmus.planning.plan",
    "plan_single_pass": "isthmus.planning.single_pass.star",
    "plan_single_pass_tree": "isthmus.planning.single_pass.tree",
    "TreeNode": "isthmus.planning.single_pass.tree",
    "IsthmusError": "isthmus.errors",
}
"""Public name -> module. Loaded on first use, so that `import isthmus` stays light."""

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'isthmus' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *_HOME])
