"""A run's settings, cluster, data and plan against this machine and this job."""

import hashlib
import os
from pathlib import Path

from isthmus.checks.findings import failed, passed, refused, warned
from isthmus.checks.machine import memory
from isthmus.checks.security import security
from isthmus.cluster.cluster import Cluster
from isthmus.compression.low_rank import LowRank
from isthmus.cures import cure_of, reason_of
from isthmus.devices import array_library
from isthmus.errors import IsthmusError, NoDeviceError, SettingsError, ShardError
from isthmus.jobs.choosing import arrange, choose
from isthmus.jobs.clients import client_shards
from isthmus.jobs.plan import settled_plan
from isthmus.jobs.preparation import check_shapes
from isthmus.jobs.settings import RunSettings
from isthmus.links.tiers import cluster_ranks
from isthmus.shards.shard_file import ShardSet
from isthmus.testbed import on_testbed


def settings_of(job, path, cluster_path=None):
    """Return (settings as rank 0 reads them or None, findings), the same on every rank."""

    def read():
        settings = RunSettings.from_toml(path)
        if cluster_path:
            settings = settings.with_cluster(cluster_path)
        settings.make_compressor()
        return (settings.with_real_links() if on_testbed() else settings).to_json()

    try:
        settings = RunSettings.from_json(job.from_root(read), path)
    except IsthmusError as problem:
        return None, [refused("settings", problem)]
    return settings, [passed("settings", str(path))]


def cluster_of(job, settings):
    """Return (the cluster as rank 0 reads it or None, findings on it and on this rank's device).

    One process that checks for a job to come looks for the devices of all sites.
    """
    path = settings.cluster.file
    try:
        cluster = Cluster(job.from_root(lambda: Cluster.from_toml(path).to_table()), source=path)
        sites = cluster.sites
        if job.started or job.size > 1:
            here = cluster_ranks(cluster, job.hosts)[job.rank]
            sites = [cluster.sites[cluster.site_of_rank[here]]]
    except IsthmusError as problem:
        return None, [refused("cluster", problem)]
    findings = [
        passed(
            "cluster",
            f"{cluster.size} ranks at {len(cluster.sites)} sites"
            + ("" if job.started else f": start it with mpirun -n {cluster.size}"),
        )
    ]
    looked = links(job, settings), security(job, settings, cluster), rates(cluster, settings)
    findings += [finding for finding in looked if finding]
    for device in sorted({site.device for site in sites}):
        try:
            array_library(device)
        except IsthmusError as problem:
            findings.append(refused("device", problem))
    has_gpu = any(site.device == "gpu" for site in cluster.sites)
    if has_gpu and isinstance(settings.make_compressor(), LowRank):
        findings.append(
            failed(
                "device",
                'the compressor low_rank encodes on CPUs alone, and a site has device = "gpu"',
                "choose another compressor",
                NoDeviceError,
            )
        )
    return cluster, findings


def links(job, settings):
    """Return whether paced links can be kept, or None where links are real."""
    if settings.cluster.links != "paced":
        return None
    if len(set(job.hosts)) > 1:
        return failed(
            "links",
            f"paced links need one clock, and ranks are on {len(set(job.hosts))} hosts",
            'set links = "real" under [cluster]',
            SettingsError,
        )
    return passed("links", "paced: an emulation of the cluster file's")


def rates(cluster, settings):
    """Return whether the file was measured, or None where computing is held to its rates."""
    if settings.cluster.compute == "paced" or all(
        site.add_bytes_per_second < float("inf") for site in cluster.sites
    ):
        return None
    return warned(
        "rates",
        f"{cluster.source}: was not measured here; the plan is as good as its numbers",
        f"mpirun -n {cluster.size} isthmus calibrate RUN.toml -o measured.toml",
    )


def model(job, settings):
    """Return (the model or None, the finding on it): None on every rank if it cannot be made on any."""
    made = None
    try:
        made = settings.make_model()
        finding = passed("model", f"{settings.model.kind}, {made.size} parameters")
    except IsthmusError as problem:
        finding = refused("model", problem)
    return made if all(job.from_all(made is not None)) else None, [finding]


def data(job, name, folder, model, scale="auto", keys=None):
    """Return the findings on a folder of shards as this rank sees it, those of all ranks in mind.

    keys: of the settings' [security]. Collective. Ranks that do not see the folder get their shards from
    those that do.
    """
    digest, mine = _folder(name, folder, model, scale, keys)
    seen = job.from_all(Path(folder).is_dir())
    digests = job.from_all(digest)
    if not any(seen):
        return [
            failed(
                name,
                f"{folder}: no rank sees this folder",
                "pack the data with `isthmus pack`, or mend the path under [data] in the settings",
                ShardError,
            )
        ]
    if mine is None:
        return [
            warned(
                name,
                f"{folder} is not seen here: shards come over MPI from rank {seen.index(True)}",
                "copy the folder to this host to save its link",
            )
        ]
    if mine.status == "PASS" and len(set(digests) - {None}) > 1:
        return [
            failed(
                name,
                f"{folder}: hosts have different sets; the one here is {digest[:8]}",
                "copy one set to every host",
                ShardError,
            )
        ]
    return [mine]


def _folder(name, folder, model, scale, keys):
    """Return (digest of the manifest, finding) of a folder of shards; None twice if it is not there."""
    if not Path(folder).is_dir():
        return None, None
    digest = None
    try:
        here = keys is not None and keys.expanduser().is_dir()
        shards = ShardSet.open(folder, keys if here else None)
        digest = hashlib.sha256(shards.manifest.model_dump_json().encode()).hexdigest()
        check_shapes(model, shards, scale)
        if shards.manifest.signatures is not None and keys is not None and not here:
            return digest, warned(
                name,
                f"{folder}: has a policy, and {keys} with the keys to verify it is not on this host",
                "nothing, where each site's leader has it",
            )
        _ = shards.readers  # raises where a policy is there, and no keys
        _check_files(shards)
    except IsthmusError as problem:
        return digest, refused(name, problem)
    except (OSError, ImportError) as problem:
        return digest, failed(
            name,
            f"{folder}: cannot be read: {reason_of(problem)}",
            cure_of(problem, "mend what fails above"),
            ShardError,
        )
    return digest, passed(
        name,
        f"{sum(shards.samples)} samples in {len(shards.samples)} shards, "
        f"{sum(shards.nbytes) / 1e6:.1f} MB",
    )


def _check_files(shards):
    """Raise ShardError for a file that is not there, or where the first that may be read is damaged.

    The other files are listed, not read: `ShardSet.verify` compares all checksums.
    """
    here = {entry.name for entry in os.scandir(shards.folder)}
    missing = [name for name in shards.names if name not in here]
    if missing:
        raise ShardError(
            f"{shards.folder}: {len(missing)} of {len(shards.names)} shards are missing, "
            f"{missing[0]} first; copy them here, or pack the data again"
        )
    for number in list(shards.readable)[:1]:
        for name in shards.arrays:
            for _ in shards.pieces(number, name):
                pass


def plan(job, settings, cluster, free_nbytes):
    """Return the finding on the plan, on a rank that sees the data.

    free_nbytes: of memory, seen by each rank of the job; None where it is not told.
    """
    try:
        shards = client_shards(
            settings, ShardSet.open(settings.data.train, settings.security.keys), cluster.size
        )
        settings, _ = choose(settings, cluster)
        cluster, _ = arrange(settings, cluster)
        _, _, chosen = settled_plan(settings, cluster, shards)
    except IsthmusError as problem:
        return refused("plan", problem)
    nbytes = [sum(shards.nbytes[shard] for shard in mine) for mine in chosen.shards_of_rank]
    hosts = [job.hosts[0]] * cluster.size
    if job.started:
        for rank, here in enumerate(cluster_ranks(cluster, job.hosts)):
            hosts[here] = job.hosts[rank]
    crowded = memory(nbytes, hosts, dict(zip(job.hosts, free_nbytes)))
    if crowded is None and chosen.warnings:
        return warned("plan", "; ".join(chosen.warnings), "mend the link in the cluster file")
    return crowded or passed(
        "plan",
        f"{chosen.steps} steps an epoch, {1e3 * chosen.step_seconds:.1f} ms each, predicted; "
        f"{chosen.bound_by}",
    )
