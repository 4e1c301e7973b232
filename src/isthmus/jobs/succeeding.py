"""The job that goes on where ranks have gone or come: its shards, its arrays, and what it takes up."""

import re
from dataclasses import replace
from pathlib import Path

from isthmus.devices import to_host
from isthmus.folders.record import RunFolder, let_in
from isthmus.jobs.making import make_training
from isthmus.jobs.plan import held_as
from isthmus.jobs.preparation import may_hold
from isthmus.jobs.resuming import Recalled, recall
from isthmus.links.agreement import from_root, gather_json, together
from isthmus.links.world import broadcast
from isthmus.recovery.handover import arrays_of, hand_over, taken_by_new
from isthmus.shards.adopting import adopt_shards
from isthmus.shards.copies import copy_shards


def next_job(kind, tiers, past, ranks, here, journal, lock):
    """Return a job of `ranks` that were the ranks `here` of the one before. Collective.

    kind: what makes a Job. lock: of the run's folder, which who leads now takes.
    """
    settings, cluster = past.settings, tiers.cluster
    if settings.training.on_replica == "repair":
        past = past.of_equal_ranks(tiers.world)
    site_of_rank = [cluster.names[site] for site in cluster.site_of_rank]

    def may(shard, rank):
        return may_hold(settings.plan, shard, site_of_rank[rank])

    found = adopt_shards(
        tiers,
        past.local,
        settings.data.train,
        cluster.rates,
        may,
        {
            shard: number
            for number, before in enumerate(here)
            if before is None
            for shard in past.placed[ranks[number]]
        },
    )
    if settings.data.copies > 1 and None in here:
        found.local.copies, told = copy_shards(tiers, found.shards, found.local, may)
        journal.tell(told)
    folders = settings.data.model_dump()
    sets = {
        name: adopt_shards(tiers, local, folders[name], cluster.rates).local
        for name, local in past.sets.items()
    }
    samples = [shard.samples for shard in past.local.manifest.shards]
    plan = held_as(past.plan, found.shards_of_rank, samples, cluster.rates)
    training = make_training(tiers, settings, past.model, plan, found.local, journal)
    own = {name: to_host(array) for name, array in training.arrays().items()}
    new = taken_by_new(tiers.world, here, past.arrays, own) if None in here else None
    hand_over(training, past.step, arrays_of([past.arrays], 0, own) if new is None else new, past.untold)
    path = _folder(tiers, past, lock)
    job = kind(tiers, settings, plan, training, sets, journal, path)
    job.replicas.untold = past.back
    job.within_duties, job.done_step = past.redo, past.step - past.redo
    journal.open(path)
    journal.checkpoint = past.checkpoint if path == past.path else None
    steps = gather_json(tiers.world, job.buddies.take_up(past.copies, here, past.arrays))
    known = any(step is not None for step in steps)
    _take_up(job, past, found.shards_of_rank, here, steps if known else None)
    return job


def _folder(tiers, past, lock):
    """Return the run's folder: as before, or one of its own where the hub is new. Collective."""
    leads = tiers.world.rank == tiers.home
    if not tiers.joined:
        if leads and not past.leads:
            lock.take(past.path)
        return past.path

    def make():
        if past.leads:
            return str(past.path)
        if lock.path is None:  # else it was made for another job, which a loss has cut short
            run = past.settings.run
            sites = "|".join(map(re.escape, tiers.circle.cluster.names))
            name = re.sub(rf"-({sites})-\d{{8}}-\d{{6}}(-\d+)?$", "", past.path.name)
            folder = RunFolder.create(run.folder, f"{name}-{tiers.site_name}")
            lock.take(folder.path)
            let_in(folder.path, run.mode)
        return str(lock.path.parent)

    return Path(from_root(tiers.world, make, tiers.home))


def _take_up(job, past, shards_of_rank, here, residual_steps):
    """Go on with what the old job has told, but for what is now done again."""
    step, told = job.training.state.step, job.training.told_step
    parts = len(past.parts)

    def keeps(line):
        nonlocal parts
        if line["kind"] == "members":
            parts -= 1
            return parts >= 0
        if line["kind"] == "step":
            return line["step"] <= told
        return line["step"] < step + (not past.redo)

    if job.leads and job.path != past.path:
        job.write_down({"succeeds": str(past.path)})
        job.account.folder.metrics.touch()
    found = together(
        job.tiers.world,
        lambda: recall(job.account.folder, step, False, keeps) if job.leads else Recalled(),
    )
    job.account.take_up(found)
    job.account.count_from(found.sent_nbytes)
    job.members.ledger = replace(job.members.ledger, parts=[*past.parts])
    job.members.note_again(len(found.members))
    if not found.members:  # the folder is a new one
        job.members.note_samples_until(step - past.redo)
    job.members.begin(shards_of_rank, came_from=here, resumed=False, residual_steps=residual_steps)
    job.members.take_rest()
    if job.validation is not None:
        job.validation.load(past.judged)
        for name, array in job.validation.arrays().items():
            if past.best is not None:
                array[...] = past.best[name]
            if None in here:
                broadcast(job.tiers.world, array, job.tiers.home)
    if job.leads:
        job.tiers.cluster.to_toml(job.path / "cluster.toml")
        job.account.folder.write_json("plan.json", job.plan.to_dict())
