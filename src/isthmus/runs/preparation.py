"""What all ranks do before the first step: settings, communicators, the plan, the data."""

from contextlib import contextmanager
from pathlib import Path

from isthmus.devices import array_library
from isthmus.errors import ShardError
from isthmus.planning.allocation import Plan, plan_shards
from isthmus.runs.settings import RunSettings
from isthmus.shards.scattering import scatter_shards
from isthmus.shards.shard_file import ShardSet
from isthmus.topology.agreement import from_root, gather_json, require, together
from isthmus.topology.cluster import Cluster
from isthmus.topology.tiers import split_tiers


def shared_settings(comm, path, cluster=None):
    """Return the settings in `path`, as rank 0 reads them, on every rank.

    cluster: a cluster file that takes the place of the settings'.
    """
    def read():
        settings = RunSettings.from_toml(path)
        return (settings.with_cluster(cluster) if cluster else settings).to_json()

    return RunSettings.from_json(from_root(comm, read), path)


@contextmanager
def shared_tiers(comm, settings):
    """Give the tiers of the settings' cluster, as rank 0 reads it, paced where that is asked for."""
    table = from_root(comm, lambda: settings.read_cluster().to_table())
    cluster = Cluster(table, source=settings.cluster.file)
    with split_tiers(comm, cluster) as tiers:
        site = cluster.sites[tiers.site_index]
        together(tiers.world, lambda: array_library(site.device))
        yield tiers.paced() if settings.cluster.links == "paced" else tiers


def place_data(tiers, settings, tell):
    """Plan and scatter; return the plan and this rank's training and test samples."""
    workload = settings.workload()
    train, seen = open_where_seen(tiers.world, settings.data.train)
    plan = Plan.from_dict(from_root(tiers.world, lambda: plan_shards(
        tiers.cluster, train, workload, settings.plan.objective, settings.plan.pinned).to_dict(), seen))
    if tiers.world.rank == tiers.home:
        tell(f"plan: samples a rank {', '.join(map(str, plan.samples_of_rank))}; "
             f"{plan.steps} steps an epoch, {1e3 * plan.step_seconds:.1f} ms each, predicted")
    test, seen = open_where_seen(tiers.world, settings.data.test)
    test_plan = Plan.from_dict(from_root(tiers.world, lambda: plan_shards(
        tiers.cluster, test.samples, workload).to_dict(), seen))
    return plan, scatter_shards(tiers, train, plan), scatter_shards(tiers, test, test_plan)


def open_where_seen(world, folder):
    """Return the ShardSet in `folder`, None on a rank that does not see it, and the first that does."""
    shards = together(world, lambda: ShardSet.open(folder) if Path(folder).is_dir() else None)
    seen = gather_json(world, shards is not None)
    require(world, any(seen), ShardError, f"{folder}: no rank sees this folder; pack the data with "
            "`isthmus pack`, or mend the path under [data] in the settings")
    return shards, seen.index(True)


def hold_seconds(tiers, settings):
    """Return how long a batch of n samples shall take on this rank, or None where it is not paced."""
    if settings.cluster.compute != "paced":
        return None
    site = tiers.cluster.sites[tiers.site_index]
    rate = tiers.cluster.rates[tiers.world.rank]
    return lambda samples: site.fixed_seconds + samples / rate
