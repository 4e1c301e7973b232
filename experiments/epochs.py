"""Epochs under different plans: who holds which shard, what the model says of it, how long it takes.

Imports no MPI: it starts mpirun.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
from places import objects_in
from pydantic import AfterValidator, Field
from study import HERE

import isthmus
from isthmus.benchmarking.options import named_compressor
from isthmus.errors import PlanError
from isthmus.models import Perceptron
from isthmus.timing.step import predict_step
from isthmus.timing.time_model import staging_seconds
from isthmus.toml_files import FrozenModel

Count = Annotated[int, Field(ge=1)]
POWERS = {"even": 0.0, "proportional": 1.0}
"""Plans that are dealt, not planned: by the ranks' rates to this power. "rates^0.5" is one, too."""


OBJECTIVES = {"planned": "makespan", "period": "period"}
"""Plans that isthmus makes, and what they make small."""


def power_of(name):
    """Return the power of the rates that a plan deals by; ValueError for a plan that is not known."""
    word, _, power = name.partition("^")
    if word == "rates" and power:
        return float(power)
    if name not in POWERS:
        raise ValueError(
            f'a plan is "planned", "period", "even", "proportional" or "rates^NUMBER", not {name!r}'
        )
    return POWERS[name]


def _plan(name):
    if name not in OBJECTIVES:
        power_of(name)
    return name


def _compressor(name):
    named_compressor(name)
    return name


PlanName = Annotated[str, AfterValidator(_plan)]
CompressorName = Annotated[str, AfterValidator(_compressor)]


class JobSettings(FrozenModel):
    """What is trained, and on what; the compressor is named as in `isthmus bench collectives`."""

    train: Path
    test: Path
    hidden: tuple[Count, ...]
    batch_size: Count
    learning_rate: float
    compressor: CompressorName

    @property
    def model(self):
        return Perceptron(hidden=self.hidden)

    @property
    def shards(self):
        return isthmus.ShardSet.open((HERE / self.train).resolve())

    def workload(self, data_site=None):
        return isthmus.Workload(
            self.model.size,
            self.batch_size,
            data_site=data_site,
            compressor=named_compressor(self.compressor),
        )

    def run_table(self, cluster_path, links):
        """Return the settings of a run: what `isthmus calibrate` measures for."""
        compressor = named_compressor(self.compressor)
        return {
            "cluster": {"file": str(cluster_path), "links": links, "compute": "paced"},
            "data": {
                "train": str((HERE / self.train).resolve()),
                "test": str((HERE / self.test).resolve()),
            },
            "model": {"kind": "perceptron", "hidden": list(self.hidden)},
            "training": {"batch_size": self.batch_size},
            "allreduce": {
                "compressor": "none"
                if compressor is None
                else {"kind": self.compressor.partition(":")[0], **asdict(compressor)}
            },
        }


def place_shards(name, cluster, shards, workload, pinned=None, epochs=None):
    """Return the shards of each rank by the plan called `name`.

    Those of OBJECTIVES are isthmus' own, and count bringing the data if `epochs` are given. Else shards
    are dealt, as a person would who knows the limits and not the model.
    """
    if name in OBJECTIVES:
        return isthmus.plan_shards(
            cluster,
            shards,
            workload,
            OBJECTIVES[name],
            pinned,
            staged_epochs=epochs if workload.data_site else None,
        ).shards_of_rank
    return deal(cluster, shards, np.array(cluster.rates) ** power_of(name), pinned or {})


def deal(cluster, shards, weights, pinned):
    """Return the shards of each rank: one after another, pinned ones first, to whom has least so far.

    Least for its weight, among those of the site that a shard is pinned to, with room in their storage.
    """
    sites = [cluster.sites[site] for site in cluster.site_of_rank]
    held, room = np.zeros(cluster.size), np.array([site.storage_nbytes for site in sites])
    shards_of_rank = [[] for _ in sites]
    for shard in [*pinned, *(number for number in range(len(shards.samples)) if number not in pinned)]:
        samples, nbytes = shards.samples[shard], shards.nbytes[shard]
        ranks = [
            rank
            for rank, site in enumerate(sites)
            if pinned.get(shard, site.name) == site.name and nbytes <= room[rank]
        ]
        if not ranks:
            raise PlanError(f"{cluster.source}: no rank has room for shard {shard}")
        rank = min(ranks, key=lambda rank: (held[rank] + samples) / weights[rank])
        held[rank] += samples
        room[rank] -= nbytes
        shards_of_rank[rank].append(shard)
    return tuple(map(tuple, shards_of_rank))


def predict(cluster, shards, shards_of_rank, workload):
    """Return (seconds of bringing the data, seconds of an epoch) by the time model."""
    samples, nbytes = (
        np.array([sum(column[shard] for shard in mine) for mine in shards_of_rank], float)
        for column in (shards.samples, shards.nbytes)
    )
    steps = steps_of(shards, workload)
    step = sum(predict_step(cluster, samples / steps, workload).values())
    return staging_seconds(cluster, nbytes.tolist(), workload.data_site), steps * step


def steps_of(shards, workload):
    """Return the steps of an epoch, the same for every plan."""
    return max(1, round(sum(shards.samples) / workload.batch_size))


def run_epochs(site, plans, *, epochs=1, data_site=None):
    """Train `epochs` epochs under each plan, one launch for all; return a result each, or a failure.

    site: a `calibrated.Site`. plans: name -> shards of each rank. The ranks compute at the rates of the
    cluster file; the data is brought from `data_site`, or is read where it is needed.
    """
    job, path = site.study.job, site.folder / "task.json"
    path.write_text(
        json.dumps(
            {
                "cluster": str(site.path),
                "links": site.study.links,
                "plans": plans,
                "data_site": data_site,
                "data": str((HERE / job.train).resolve()),
                "hidden": job.hidden,
                "epochs": epochs,
                "steps": steps_of(job.shards, job.workload()),
                "learning_rate": job.learning_rate,
                "compressor": job.compressor,
            }
        )
    )
    output, failed = site.launch(
        sys.executable, "-m", "mpi4py", str(HERE / "epochs_program.py"), str(path)
    )
    results = objects_in(output)
    if failed or len(results) < len(plans):
        results.append({"failed": failed or "it ended before the last plan"})
    return results
