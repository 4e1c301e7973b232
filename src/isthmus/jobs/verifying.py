"""A run played again, serially and on one machine: whether it ended with the bits that it tells."""

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from threadpoolctl import threadpool_limits

from isthmus.cluster.cluster import Cluster
from isthmus.devices import to_host
from isthmus.errors import RecordError, SettingsError
from isthmus.folders.reading import Run, read_run
from isthmus.jobs.making import make_training
from isthmus.jobs.members import counts_samples
from isthmus.jobs.preparation import open_train
from isthmus.jobs.scaling import scale_of
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.shared_model import shared_model
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.recovery.handover import arrays_of, mates
from isthmus.recovery.ledger import Ledger, Part
from isthmus.shards.scattering import scatter_shards
from isthmus.training.checkpoint_file import CHECKPOINT
from isthmus.training.residuals import is_residual

QUIET = SimpleNamespace(tell=lambda line, passing=False: None, enter=lambda phase, step: None)


def verify_steps(folder, steps=None):
    """Play a run's steps again; return what was compared. RecordError where bits or counts differ.

    steps: (first, last): those after step `first`, of which the run must have a checkpoint unless it is
    0, until step `last`, at most the run's last one; None for all.
    Returns a table: `first`, `last`, `compared` (the steps after which hashes were held against those
    that the run tells), `parameter_hash` after the last of these, the `epochs` whose samples were
    counted, each taken once, and how many were `lost` there, as the run tells.
    """
    folder = Path(folder)
    run = read_run(folder)
    told = _told_hashes(run, folder)
    end = max((line["step"] for line in run.metrics if line["kind"] == "step"), default=0)
    first, last = (0, end) if steps is None else (steps[0], min(steps[1] or end, end))
    compared = sorted(step for step in told if first < step <= last)
    if not compared:
        known = ", ".join(map(str, sorted(told))) or "none"
        raise RecordError(
            f"{folder}: tells no hash of parameters after the steps {first + 1} to {last}; it tells "
            f"those of steps {known}: choose --steps that hold one"
        )
    played = _Replay(run, folder, first, compared[-1], set(compared))
    with threadpool_limits(_as_it_was(run, folder).run.threads):
        played.play()
    epochs = played.counted_epochs()
    for step in compared:
        if played.hashes[step] != told[step]:
            raise RecordError(
                f"{folder}: played again, the parameters after step {step} are "
                f"{played.hashes[step]:.12}, and the run tells {told[step]:.12}; another processor or "
                "other versions than run.json tells may add up otherwise, else the record is not of "
                "this run"
            )
    return {
        "first": first,
        "last": compared[-1],
        "compared": compared,
        "parameter_hash": played.hashes[compared[-1]],
        "epochs": epochs,
        "lost": played.lost,
    }


def replay_words(folder, played):
    """Return the sentence that says what `verify_steps` found."""
    counted = f"; samples of {len(played['epochs'])} epochs counted" if played["epochs"] else ""
    never = f", {played['lost']} never, as it tells" if played["lost"] else ""
    return (
        f"{folder}: steps {played['first'] + 1} to {played['last']} played again, serially: "
        f"{len(played['compared'])} hashes of parameters are as the run tells them, the last "
        f"{played['parameter_hash']:.12}{counted}{', each taken once' if counted else ''}{never}"
    )


def _as_it_was(run, folder):
    """Return the settings of a run, for ranks that wait for nobody. RecordError where they cannot be."""
    try:
        settings = RunSettings.from_json(run.provenance["settings"], folder / "run.json")
    except KeyError as key:
        raise RecordError(
            f"{folder / 'run.json'}: tells no [{key.args[0]}] of the settings, which this version has; "
            f"play it again with isthmus {run.provenance.get('version', 'as it was then')}"
        ) from None
    if settings.allreduce.algorithm == "mpi":
        raise RecordError(
            f'{folder}: cannot be played again: allreduce.algorithm = "mpi" adds in an order that MPI '
            "does not tell; --record holds the record alone against its hashes"
        )
    if settings.privacy.secure_sum != "off" or settings.privacy.unit is not None:
        raise RecordError(
            f"{folder}: cannot be played again: what sites send is masked, or has noise, by secrets "
            "that each site keeps; --record holds the record alone against its hashes"
        )
    if any(site.device != "cpu" for site in run.cluster.sites):
        raise RecordError(
            f"{folder}: cannot be played again: a site has computed on GPUs, whose gradients have other "
            "bits; --record holds the record alone against its hashes"
        )
    cluster = settings.cluster.model_copy(update={"links": "real", "compute": "real"})
    return settings.model_copy(update={"cluster": cluster})


def _told_hashes(run, folder):
    """Return step -> the hash of the parameters that a run tells."""
    told = {line["step"]: line["hash"] for line in run.metrics if line["kind"] == "replicas"}
    path = folder / "checkpoint.h5"
    if path.exists():
        arrays, table = CHECKPOINT.read(path)
        if arrays["strategy/agreed/0"][0]:
            parameters = arrays[f"parameters/{table['holder_of_rank']['parameters'][0]}"]
            told.setdefault(table["step"], sha256(parameters).hexdigest())
    told.pop(0, None)
    return told


def _site_of(part, rank):
    """Return the name of a rank's site."""
    cluster = Cluster(part.cluster, "metrics.jsonl")
    return cluster.names[cluster.site_of_rank[rank]]


def _residuals_wanted(parts):
    """Return the (site, step) of all residuals that leaders begin with in the place of their own."""
    return {
        (_site_of(part, rank), step)
        for part in parts
        for rank, step in enumerate(part.residual_steps or ())
        if step is not None
    }


def _mate_before(part, before, rank):
    """Return the rank of the part before as which a new one begins, as `mates` has it."""
    if not before:
        return 0
    clusters = [Cluster(each.cluster, "metrics.jsonl") for each in (before[-1], part)]
    return mates(*([each.names[site] for site in each.site_of_rank] for each in clusters))[rank]


@dataclass
class _Replay:
    """Some steps of a run, part by part; hashes: of the parameters after the steps `wanted`."""

    run: Run
    folder: Path
    first: int
    last: int
    wanted: set
    hashes: dict = field(default_factory=dict)

    def play(self):
        lines = [line for line in self.run.metrics if line["kind"] == "members"]
        parts = [Part.of_line(line) for line in lines] or [
            Part(0, self.run.cluster.to_table(), self.run.plan["shards_of_rank"])
        ]
        self.arrivals = any(line["kind"] == "arrivals" for line in self.run.metrics)
        self.taken, self.ledger, self.lost, self.scale = {}, None, 0, None
        self.residuals = dict.fromkeys(_residuals_wanted(parts))
        held, begin = None, 0
        if self.first:
            held = self._checkpoint()
            begin = max(
                number
                for number, part in enumerate(parts)
                if part.first <= self.first and (len(part.shards_of_rank) == len(held) or not number)
            )
        for number in range(begin, len(parts)):
            part, end = parts[number], min([self.last, *(each.first for each in parts[number + 1 :])])
            if self.ledger is not None:
                self.ledger.add(part)
            if part.first < self.last:
                held = self._play_part(part, end, held, parts[:number], number == begin)

    def _checkpoint(self):
        """Return the arrays of each rank as the checkpoint has them."""
        arrays, table = CHECKPOINT.read(self.folder / "checkpoint.h5")
        if table["step"] != self.first:
            raise SettingsError(
                f"--steps {self.first}:{self.last}: {self.folder / 'checkpoint.h5'} is of step "
                f"{table['step']}; begin there, or at 0"
            )
        if "sealed" in table:
            raise SettingsError(
                f"--steps {self.first}:{self.last}: {self.folder / 'checkpoint.h5'} has residuals, "
                "which are sealed for their sites; begin at 0"
            )
        holders = table["holder_of_rank"]
        return [
            {name: arrays[f"{name}/{of[rank]}"] for name, of in holders.items()}
            for rank in range(table["identity"]["ranks"])
        ]

    def _play_part(self, part, end, held, before, as_it_is):
        """Play steps of one set of ranks until step `end`; return the arrays of each then."""
        cluster = Cluster(part.cluster, self.folder / "metrics.jsonl")
        start = max(part.first, self.first)
        anew = as_it_is or part.resumed
        plan = SimpleNamespace(
            steps=self.run.plan["steps"],
            shards_of_rank=part.shards_of_rank,
            hash=self.run.plan.get("hash"),
        )

        def play(table, rank):
            tiers = tiers_in_process(table, cluster, rank)
            settings = _as_it_was(self.run, self.folder)  # with a model that no other rank has
            model = shared_model(tiers.world, settings)
            keys = settings.security.keys
            local = scatter_shards(tiers, open_train(tiers, settings)[0], plan, keys=keys)
            if anew:
                self.scale = scale_of(tiers, settings, local, QUIET.tell)
            local.scale = self.scale
            training = make_training(
                tiers, settings, model, plan, local, QUIET, self.folder if self.arrivals else None
            )
            if self.ledger is None:
                recipe = training.recipe
                samples = [shard.samples for shard in local.manifest.shards]
                self.ledger = Ledger(samples, recipe.steps, recipe.seed, [*before, part])
            if held is not None:
                self._take_up(training, part, start, held[rank] if as_it_is else held, rank, before)
            self._count(training, part, rank)
            return self._steps(training, end, rank)

        return in_threads(cluster.size, play)

    def _take_up(self, training, part, start, held, rank, before):
        """Go on from the arrays `held` of this rank, or a list of those of each rank before.

        before: the parts before this one.
        """
        if isinstance(held, dict):
            training.load(start, held)
        elif part.came_from is None:
            training.load(start, held[rank])
        else:
            own = {name: to_host(array) for name, array in training.arrays().items()}
            arrays = arrays_of(held, part.came_from[rank], own, _mate_before(part, before, rank))
            if part.residual_steps is not None and part.residual_steps[rank] is not None:
                residuals = self._residuals_of(_site_of(part, rank), part.residual_steps[rank])
                arrays |= {name: each for name, each in residuals.items() if each.size == own[name].size}
            training.load(start, arrays)
            for each in training.member.sums:
                each.begin_anew()
        if (rest := self.ledger.rest_of(rank)) is not None:
            training.take(training.local, rest)

    def _residuals_of(self, site, step):
        """Return the residuals that a site's leader had after `step`."""
        found = self.residuals[site, step]
        if found is None:
            raise SettingsError(
                f"--steps {self.first}:{self.last}: a leader's residual of step {step} is wanted, which "
                f"is not in the checkpoint of step {self.first}; begin at 0"
            )
        return found

    def _note_residuals(self, training):
        """Keep what is wanted of this rank's residuals, as they are now."""
        key = training.tiers.site_name, training.state.step
        if training.tiers.site.rank == 0 and key in self.residuals:
            self.residuals[key] = {
                name: np.array(to_host(array))
                for name, array in training.arrays().items()
                if is_residual(name)
            }

    def _steps(self, training, end, rank):
        """Make steps until `end`; return the arrays then."""
        self._note_residuals(training)
        for _ in training.steps() if training.state.step < end else ():
            step = training.state.step
            if rank == 0 and step in self.wanted:
                agreed = training.member.agreed
                held = training.state.parameters if agreed else training.anchor
                self.hashes[step] = sha256(to_host(held)).hexdigest()
            self._note_residuals(training)
            if step >= end:
                break
        return {name: np.array(to_host(array)) for name, array in training.arrays().items()}

    def _count(self, training, part, rank):
        """Have every sample that this rank takes be counted, by epoch."""
        if not counts_samples(training):
            return
        local, numbers = training.local, self.ledger.samples_of(part, rank)
        at, steps = local.at, training.recipe.steps

        def counted(rows):
            epoch = training.state.step // steps
            taken = self.taken.setdefault(epoch, np.zeros(sum(self.ledger.samples), np.int64))
            np.add.at(taken, numbers[rows], 1)
            return at(rows)

        local.at = counted

    def counted_epochs(self):
        """Return the epochs that were played whole; RecordError where samples were taken otherwise than
        the run tells."""
        steps = self.run.plan["steps"]
        told = {line["step"]: line for line in self.run.metrics if line["kind"] == "samples"}
        whole = [
            epoch
            for epoch in sorted(self.taken)
            if self.first <= epoch * steps and (epoch + 1) * steps <= self.last
        ]
        for epoch in whole:
            line = told.get((epoch + 1) * steps)
            often = Counter(self.taken[epoch].tolist())
            lost = 0 if line is None else sum(line["lost"].values())
            if often.keys() - {0, 1} or often[0] != lost:
                raise RecordError(
                    f"{self.folder}: played again, epoch {epoch + 1} takes {often[1]} samples once, "
                    f"{sum(often[key] for key in often if key > 1)} more often and {often[0]} never; "
                    f"the run tells of {lost} that were lost"
                )
            self.lost += lost
        return [epoch + 1 for epoch in whole]
