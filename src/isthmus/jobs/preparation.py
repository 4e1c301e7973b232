"""What all ranks do before the first step: settings, communicators, the plan, the data."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.cluster.cluster import Cluster
from isthmus.collectives.alike import sums_alike
from isthmus.errors import ShardError
from isthmus.jobs.choosing import arrange, choose
from isthmus.jobs.clients import client_shards
from isthmus.jobs.combining import check_samples_of_sites
from isthmus.jobs.plan import held_as, plan_run, settled_plan
from isthmus.jobs.scaling import given_as, scale_of
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.sites import with_own_paths
from isthmus.links.agreement import from_root, gather_json, require, together
from isthmus.links.checksummed import checksummed
from isthmus.links.frames import checksum
from isthmus.links.tiers import tiers_of_rank_0
from isthmus.planning.plan import Plan
from isthmus.shards.access import admitted
from isthmus.shards.adopting import adopt_shards
from isthmus.shards.batches import LocalSamples
from isthmus.shards.cache import ShardCache
from isthmus.shards.copies import copy_shards
from isthmus.shards.manifest import Manifest
from isthmus.shards.scattering import scatter_shards
from isthmus.shards.shard_file import ShardSet
from isthmus.testbed import on_testbed


class Placed(NamedTuple):
    """The data of a run on its ranks, and what was decided on the way.

    settings: with nothing left open. why: that of the strategy's rounds; None where they were given.
    sets: "test", and "validation" where the settings name one. shards_of_rank: as planned for the whole
    cluster; `plan` has those of sites that are not there elsewhere.
    """

    settings: RunSettings
    why: str | None
    plan: Plan
    local: LocalSamples  # this rank's samples to learn from
    sets: dict[str, LocalSamples]
    shards_of_rank: Sequence[Sequence[int]]


@contextmanager
def opened_job(comm, path, cluster=None, part=None, tell=None, replays=False):
    """Give (the settings in `path`, the tiers of their cluster), as rank 0 reads them. Collective.

    cluster: a cluster file that takes the place of the settings'. part: the SiteJob that this job is;
    None: it is all sites. tell, replays: as that takes them. On a testbed links are real to a
    run: pacing them as well would slow every message twice. Where links are sealed, the cluster's sites
    and where keys lie are all that other ranks are told before; the settings follow sealed.
    """
    own = None

    def read():
        nonlocal own
        own = RunSettings.from_toml(path)
        if on_testbed():
            own = own.with_real_links()
        if cluster:
            own = own.with_cluster(cluster)
        file, keys = own.cluster.file, own.security.keys_of_links
        return {
            "sites": own.read_cluster().to_table(),
            "source": str(file) if keys is None else file.name,
            "paced": own.cluster.links == "paced",
            "keys": keys and str(keys),
        }

    told = from_root(comm, read)
    sites = Cluster(told["sites"], source=told["source"])
    how = told["paced"], told["keys"]
    with (
        tiers_of_rank_0(comm, sites, *how)
        if part is None
        else part.tiers(comm, own, sites, *how, tell, replays)
    ) as tiers:
        table = from_root(tiers.world, lambda: own.to_json(), tiers.home)
        if part is not None:
            table = with_own_paths(table, from_root(comm, lambda: own.to_json()))
        yield RunSettings.from_json(table, path), tiers


def checked(tiers, settings):
    """Return the tiers with checksums of what crosses between sites, where asked for. Collective.

    Sockets between sites have them already.
    """
    if not settings.recovery.checksums or tiers.joined:
        return tiers
    together(tiers.world, checksum)
    return checksummed(tiers)


def chosen_allreduce(tiers, settings, tell):
    """Return the settings with an allreduce in the place of "auto", and why, which is told. Collective.

    MPI's own is taken only if it gives all ranks the same bits, time after time: it is asked, for
    vectors as long as the run's.
    """
    world, home = tiers.world, tiers.home

    def chosen(mpi):
        told, why = from_root(
            world, lambda: _as_json(choose(settings, tiers.whole, tiers.joined, mpi)), home
        )
        return settings.with_allreduce(told), why

    found, why = chosen(mpi=True)
    if why and found.allreduce.algorithm == "mpi" and not sums_alike(tiers, settings.make_model().size):
        found, why = chosen(mpi=False)
        why["reason"] += "; MPI's own does not give all ranks the same bits"
    if why:
        tell(f"allreduce: {why['reason']}")
    return found, why


def _as_json(found):
    settings, why = found
    return [settings.allreduce.model_dump(mode="json"), why]


def arranged(tiers, settings):
    """Return the tiers with the tree, or the ring, of sites that is planned, and why. Collective.

    None: they are those of the file and of its routes. What is planned is for all sites, and used once
    all are there.
    """
    whole = tiers.whole

    def plan():
        cluster, why = arrange(settings, whole)
        return [cluster.tree.hub, cluster.tree.parents, cluster.ring, why]

    hub, parents, ring, why = from_root(tiers.world, plan, tiers.home)
    if why is None:
        return tiers, None
    if ring != list(whole.ring):
        cluster = whole.with_ring(ring)
    else:
        cluster = whole.with_tree(AggregationTree(tuple(parents), hub))
    if not tiers.is_whole:
        tiers.circle.cluster = cluster
        return tiers, f"{why}, once all sites are there"
    return replace(tiers, cluster=cluster), why


def place_data(tiers, settings, tell):
    """Decide what was left open, plan and scatter; return what all that is `Placed`. Collective."""
    model = settings.make_model()
    train, seen = open_train(tiers, settings)
    together(tiers.world, lambda: check_shapes(model, train, settings.data.scale))

    def decide():
        settled, why, plan = settled_plan(settings, tiers.whole, train)
        return [settled.strategy.arguments, why, plan.to_dict()]

    arguments, why, table = from_root(tiers.world, decide, seen)
    plan = Plan.from_dict(table)
    check_samples_of_sites(settings, tiers.whole, plan.samples_of_rank)
    if why:
        settings = settings.with_strategy(arguments)
        tell(f"strategy: {why}")
    tell(
        f"plan: samples a rank {', '.join(map(str, plan.samples_of_rank))}; "
        f"{plan.steps} steps an epoch, {1e3 * plan.step_seconds:.1f} ms each, predicted"
    )
    folders = {"train": settings.data.train, "test": settings.data.test}
    if settings.data.validation is not None:
        folders["validation"] = settings.data.validation
    placed, keys = {"train": (train, plan)}, settings.security.keys
    for name in [name for name in folders if name != "train"]:
        shards, seen = open_where_seen(tiers, folders[name], keys)
        together(tiers.world, lambda shards=shards: check_shapes(model, shards, settings.data.scale))
        placed[name] = shards, _plan_of_evaluation(tiers, settings, shards, seen)
    number = tiers.numbers[tiers.world.rank]
    cache = together(tiers.world, lambda: cache_of(settings.data, number))
    names = [tiers.cluster.names[site] for site in tiers.cluster.site_of_rank]

    def may(shard, rank):
        return may_hold(settings.plan, shard, names[rank])

    limits, sets, plans = {"train": may}, {}, {}
    for name, each in placed.items():
        limit = limits.get(name, lambda shard, rank: True)
        sets[name], plans[name] = _scattered(tiers, *each, folders[name], limit, cache, keys)
    if settings.data.copies > 1:
        sets["train"].copies, told = copy_shards(tiers, train, sets["train"], may)
        tell(told)
    sealed = [name for name, local in sets.items() if local.manifest.sealed]
    if cache is not None and sealed:
        tell(f"cache: nothing is kept of what is sealed: {', '.join(sealed)}")
    scale = scale_of(tiers, settings, sets["train"], tell)
    for name, folder in folders.items():
        sets[name].scale = scale
        together(
            tiers.world, lambda local=sets[name], folder=folder: check_targets(model, local, folder)
        )
    return Placed(settings, why, plans["train"], sets.pop("train"), sets, plan.shards_of_rank)


def _scattered(tiers, shards, plan, folder, may, cache, keys):
    """Return this rank's samples of a set, and the plan with its shards where they are. Collective.

    plan: for the whole cluster. Shards of sites that are not there go to others, as those of sites that
    are gone do. may(shard, rank): whether it may have that.
    """
    if tiers.is_whole:
        return scatter_shards(tiers, shards, plan, cache=cache, keys=keys), plan
    here = SimpleNamespace(shards_of_rank=[plan.shards_of_rank[each] for each in tiers.numbers])
    local = scatter_shards(tiers, shards, here, cache=cache, keys=keys)
    rates = tiers.cluster.rates
    found = adopt_shards(tiers, local, folder, rates, may)
    samples = [shard.samples for shard in local.manifest.shards]
    return found.local, held_as(plan, found.shards_of_rank, samples, rates)


def cache_of(data, rank):
    """Return the ShardCache of a rank, None where the settings name none."""
    if data.cache is None:
        return None
    return ShardCache(data.cache / f"rank{rank:04d}", data.cache_nbytes)


def open_train(tiers, settings):
    """Return the samples to learn from, split into clients where asked for, as `open_where_seen` does.

    The first rank that sees the set splits it. Collective.
    """
    keys = settings.security.keys
    train, seen = open_where_seen(tiers, settings.data.train, keys)
    if not settings.clients.splits_anew:
        return train, seen
    folder = from_root(
        tiers.world, lambda: str(client_shards(settings, train, tiers.cluster.size).folder), seen
    )
    return open_where_seen(tiers, folder, keys)


class Judging(NamedTuple):
    """Shards that nothing is learnt from, as a plan asks of them: no limits but their set's policy."""

    samples: tuple[int, ...]
    nbytes: tuple[int, ...]
    readers: tuple[frozenset[str], ...] | None
    names: tuple[str, ...]

    @classmethod
    def of(cls, shards):
        return cls(shards.samples, (0,) * len(shards.samples), shards.readers, shards.names)


def _plan_of_evaluation(tiers, settings, shards, seen):
    """Return the plan of a set that nothing is learnt from: it has no limits but the set's policy."""
    return Plan.from_dict(
        from_root(
            tiers.world,
            lambda: plan_run(settings, tiers.whole, Judging.of(shards), limits={}).to_dict(),
            seen,
        )
    )


def check_shapes(model, shards, scale="auto"):
    """Raise ShardError unless the set (None where it is not seen) is what `model` learns from.

    scale: of the settings' [data].
    """
    if shards is None:
        return
    if len(shards.arrays) != 2:
        raise ShardError(
            f"{shards.folder}: holds the arrays {', '.join(shards.arrays)}; training takes "
            "two, features and then targets: pack those"
        )
    (features, (shape, dtype)), (targets, (labels, kind)) = shards.arrays.items()
    if dtype.kind not in "iuf":
        raise ShardError(
            f"{shards.folder}: features {features!r} are of dtype {dtype}; pack integers or floats"
        )
    if wrong := model.complaint(shape):
        raise ShardError(f"{shards.folder}: features {features!r} {wrong}")
    model.try_out(np.empty((0, *shape), given_as(scale, dtype)), np.empty((0, *labels), kind))
    if wrong := model.loss.complaint(np.empty((0, *labels), kind), model.outputs):
        raise ShardError(f"{shards.folder}: targets {targets!r} {wrong}")


def check_targets(model, local, folder):
    """Raise ShardError unless this rank's samples, of the set in `folder`, have targets for `model`."""
    features, targets = local.arrays.values()
    dtype = features.dtype if local.scale is None else np.float32
    model.try_out(np.empty((0, *features.shape[1:]), dtype), targets)  # where the folder is not seen
    name, targets = list(local.arrays.items())[1]
    if wrong := model.loss.complaint(targets, model.outputs):
        raise ShardError(f"{folder}: targets {name!r} {wrong}")


def open_where_seen(tiers, folder, keys=None):
    """Return the ShardSet in `folder`, None on a rank that does not see it, and the first that does.

    keys: where each site's leader has the keys with which the policy of a set is verified. Collective.
    """
    world = tiers.world
    shards = together(world, lambda: ShardSet.open(folder) if Path(folder).is_dir() else None)
    seen = gather_json(world, shards is not None)
    require(
        world,
        any(seen),
        ShardError,
        f"{folder}: no rank sees this folder; pack the data with "
        "`isthmus pack`, or mend the path under [data] in the settings",
    )
    first = seen.index(True)
    table = from_root(world, lambda: _with_policy(shards.manifest), first)
    if table is not None:
        access = admitted(tiers, Manifest.of(table, folder), folder, keys)
        shards = shards and ShardSet(folder, shards.manifest, access)
    return shards, first


def _with_policy(manifest):
    """Return the manifest as JSON; None where it has no policy."""
    return None if manifest.signatures is None else manifest.model_dump(mode="json")


def may_hold(limits, shard, site):
    """Whether a plan's limits let a shard be at a site."""
    barred = limits.forbidden.get(shard, ())
    return limits.pinned.get(shard, site) == site and site not in (
        (barred,) if isinstance(barred, str) else barred
    )


def hold_seconds(tiers, settings):
    """Return how long a batch of n samples shall take on this rank, or None where it is not paced."""
    if settings.cluster.compute != "paced":
        return None
    site = tiers.cluster.sites[tiers.site_index]
    rate = tiers.cluster.rates[tiers.world.rank]
    return lambda samples: site.fixed_seconds + samples / rate
