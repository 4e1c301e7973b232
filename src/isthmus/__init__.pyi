"""The public names and where they live: read by type checkers, by editors, and by `__init__.py`."""

from . import client as client
from . import outer as outer
from . import staleness as staleness
from . import torch as torch
from .cluster.cluster import Cluster as Cluster
from .collectives.allreduce import Allreduce as Allreduce
from .collectives.masked import SecureSum as SecureSum
from .compression.dense import Dense as Dense
from .compression.low_rank import LowRank as LowRank
from .compression.one_bit import OneBit as OneBit
from .compression.quantized import Int4 as Int4
from .compression.quantized import Int8 as Int8
from .compression.top_k import TopK as TopK
from .errors import IsthmusError as IsthmusError
from .folders.trained_model import load_model as load_model
from .inference.compressing import compress as compress
from .inference.inference import Inference as Inference
from .inference.measuring import measure_layers as measure_layers
from .links.tiers import split_tiers as split_tiers
from .planning.cascades import plan_cascade as plan_cascade
from .planning.plan import plan_shards as plan_shards
from .planning.programme.allocation import allocate_shards as allocate_shards
from .planning.single_pass.star import plan_single_pass as plan_single_pass
from .planning.single_pass.tree import TreeNode as TreeNode
from .planning.single_pass.tree import plan_single_pass_tree as plan_single_pass_tree
from .planning.splits import Layer as Layer
from .planning.splits import plan_split as plan_split
from .planning.splits import plan_splits as plan_splits
from .planning.tasks.schedule import schedule_tasks as schedule_tasks
from .privacy.accounting import epsilon as epsilon
from .privacy.ledger import privacy_spent as privacy_spent
from .robust import RobustMean as RobustMean
from .shards.packing import pack_shards as pack_shards
from .shards.scattering import scatter_shards as scatter_shards
from .shards.shard_file import ShardSet as ShardSet
from .timing.time_model import Workload as Workload
from .timing.time_model import predict_allreduce as predict_allreduce
from .training.strategies.buffered import Buffered as Buffered
from .training.strategies.federated import Federated as Federated
from .training.strategies.local_steps import LocalSteps as LocalSteps
from .training.strategies.serial import serial_rounds as serial_rounds
from .training.strategies.serial_arrivals import serial_arrivals as serial_arrivals
from .training.strategies.streaming import Streaming as Streaming
from .training.strategies.synchronous import Synchronous as Synchronous

__version__: str
