"""The clients of a run: [clients] of its settings, the shards that hold them, and who plays whom."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator, model_validator

from isthmus.cures import explained
from isthmus.errors import SettingsError
from isthmus.jobs.kinds import KindSettings
from isthmus.json_text import dumps
from isthmus.links.agreement import from_root, together
from isthmus.shards.clients import SPLITS, split_of
from isthmus.shards.repacking import split_into_clients
from isthmus.shards.shard_file import ShardSet
from isthmus.toml_files import FrozenModel
from isthmus.training.clients import Clients
from isthmus.training.playing import Turn

AS_THEY_ARE = ("packed", "by_shard")
FEW_SHARDS, SHARDS_OF_RANK = 64, 4
"""Shards that clients are packed into: as many for a rank, and the first number at least."""
Count = Annotated[int, Field(ge=1)]


class ClientsSettings(FrozenModel):
    """Who the clients are, and how long each learns in a round.

    count, split: "packed" takes the clients that the set was packed with, or, where it has none, each
    shard; "by_shard" each shard; "iid", { dirichlet = ALPHA } and { classes_each = CLASSES } split all
    samples anew, into `count`. epochs: passes over its own samples that a client makes in a round; or
    steps: how many batches it takes, in as many passes as they need.
    speeds: a file with a number a client, samples a second. available: a file with a line a round, of
    0 or 1 for each client. state_nbytes: most bytes of control variates that a rank holds.
    """

    count: Count | None = None
    split: KindSettings = KindSettings(kind="packed", arguments={})
    epochs: Count = 1
    steps: Count | None = None
    speeds: Path | None = None
    available: Path | None = None
    state_nbytes: Count = 1 << 31

    @field_validator("split", mode="before")
    @classmethod
    def _by_name(cls, value):
        if isinstance(value, KindSettings):
            return value
        name = value.get("kind") if isinstance(value, dict) else value
        if name in AS_THEY_ARE and (name == value or len(value) == 1):
            return KindSettings(kind=name, arguments={})
        try:
            split = split_of(value)
        except ValueError as problem:
            rest = str(problem).replace("must be one of ", f"must be one of {', '.join(AS_THEY_ARE)}, ")
            raise ValueError(rest) from None
        kind = next(name for name, known in SPLITS.items() if type(split) is known)
        return KindSettings(kind=kind, arguments=asdict(split))

    @model_validator(mode="after")
    def _count_goes_with_a_split(self):
        anew = self.split.kind not in AS_THEY_ARE
        if anew and self.count is None:
            raise ValueError(f'split = "{self.split.kind}" needs count, the number of clients')
        if not anew and self.count is not None:
            raise ValueError(
                f'count goes with a split of all samples, such as split = "iid"; "{self.split.kind}" '
                "takes those that there are"
            )
        if self.steps is not None and self.epochs > 1:
            raise ValueError("give either steps or epochs")
        return self

    @property
    def splits_anew(self):
        return self.split.kind not in AS_THEY_ARE

    def samples_of(self, manifest) -> list[list[int]]:
        """Return how many samples each client has, by shard of the set with this manifest."""
        packed = manifest.clients if self.split.kind == "packed" or self.splits_anew else None
        return packed or [[shard.samples] if shard.samples else [] for shard in manifest.shards]


def check_clients(settings) -> None:
    """Raise ValueError where a run's settings and their clients do not fit each other."""
    strategy = settings.make_strategy()
    if not settings.plays_clients:
        if settings.clients != ClientsSettings():
            raise ValueError(
                f'[clients] is for strategy = "federated", and this is "{settings.strategy.kind}"; '
                "change one of them"
            )
        return
    if settings.plan.replan:
        raise ValueError(
            "plan.replan moves shards between epochs, and clients stay where they are; set "
            "replan = false"
        )
    if strategy.local.controls and (settings.training.optimizer.kind, settings.training.momentum) != (
        "sgd",
        0,
    ):
        raise ValueError(
            'strategy.local = "scaffold" takes steps of plain gradient descent for mean gradients: '
            'set training.optimizer = "sgd" and training.momentum = 0.0'
        )
    if settings.allreduce.buckets > 1:
        raise ValueError("allreduce.buckets are of gradients, and clients send none; leave it out")
    if strategy.by == "speed" and settings.clients.speeds is None:
        raise ValueError('strategy.by = "speed" needs clients.speeds, a file with a number a client')
    if settings.clients.count is not None:
        try:
            strategy.number_of(settings.clients.count)
        except ValueError as problem:
            raise ValueError(f"strategy.{problem}") from None


def client_shards(settings, shards: ShardSet, ranks: int) -> ShardSet:
    """Return the shards that hold the clients of a run's settings, packed anew where they ask for that.

    shards: those that [data] names. Raises SettingsError for settings that do not fit the clients.
    """
    wanted = settings.clients
    if not settings.plays_clients:
        return shards
    if wanted.splits_anew:
        pieces = min(wanted.count, max(FEW_SHARDS, SHARDS_OF_RANK * ranks))
        key = dumps([shards.digest, wanted.count, wanted.split.model_dump(mode="json"), pieces])
        name = f"{shards.folder.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        split = {"kind": wanted.split.kind, **wanted.split.arguments}
        folder = settings.run.folder / "clients" / name
        shards = split_into_clients(shards, folder, wanted.count, split, pieces)
    clients_in_a_round(settings, shards)
    return shards


def clients_in_a_round(settings, shards: ShardSet) -> tuple[int, int]:
    """Return how many clients there are, and how many a round wants. Raises SettingsError."""
    count = sum(map(len, settings.clients.samples_of(shards.manifest)))
    try:
        return count, settings.make_strategy().number_of(count)
    except ValueError as problem:
        raise SettingsError(f"[strategy]: {problem}; mend it there, or count under [clients]") from None


def turn_of(settings) -> Turn:
    """Return what a client does in a round."""
    return Turn(settings.training.batch_size, settings.clients.epochs, settings.clients.steps)


def make_clients(tiers, settings, plan, local, model) -> tuple[Clients, dict[int, slice]]:
    """Return the Clients, and the rows of `local` that each of this rank's own has. Collective.

    Raises SettingsError on every rank alike.
    """
    wanted = settings.clients
    samples = wanted.samples_of(local.manifest)
    firsts = [0, *np.cumsum([len(each) for each in samples]).tolist()]
    numbers = [list(range(*ends)) for ends in itertools.pairwise(firsts)]
    rows: dict[int, slice] = {}
    end = 0
    for shard in local.shards:
        for number, length in zip(numbers[shard], samples[shard]):
            rows[number] = slice(end, end + length)
            end += length
    ranks = tiers.cluster.ranks_of_site(tiers.site_name)
    of_site = [
        number for rank in ranks for shard in plan.shards_of_rank[rank] for number in numbers[shard]
    ]
    count = firsts[-1]
    read = from_root(tiers.world, lambda: _read_files(wanted, count), tiers.home)
    clients = _clients(settings, samples, sorted(rows), sorted(of_site), read)
    together(tiers.world, lambda: _check_model(settings, len(rows), model))
    return clients, rows


def clients_of_plan(settings, shards: ShardSet, plan) -> tuple[Clients, np.ndarray]:
    """Return the Clients of a plan, none of whom is this rank's, and int64[clients], each one's rank.

    Raises SettingsError for files that do not fit them.
    """
    samples = settings.clients.samples_of(shards.manifest)
    lengths = [len(each) for each in samples]
    clients = _clients(settings, samples, [], [], _read_files(settings.clients, sum(lengths)))
    return clients, np.repeat(plan.rank_of_shard, lengths)


def _clients(settings, samples, mine, of_site, read) -> Clients:
    return Clients(
        np.array([length for each in samples for length in each], float),
        np.array(mine, int),
        np.array(of_site, int),
        settings.training.seed,
        None if read["speeds"] is None else np.array(read["speeds"], float),
        None if read["available"] is None else np.array(read["available"], bool),
    )


def _check_model(settings, clients, model):
    """Raise SettingsError for a model that clients cannot share, and where a rank's keep too much."""
    if buffers := list(model.buffers()):
        raise SettingsError(
            f"[model]: holds {buffers[0]}, a statistic of batches, which clients of few samples and "
            "classes make worthless to each other; take another normalisation, such as GroupNorm"
        )
    nbytes = clients * model.size * 4 if settings.make_strategy().local.controls else 0
    if nbytes > settings.clients.state_nbytes:
        raise SettingsError(
            f"[clients]: strategy.local keeps {nbytes} bytes for {clients} clients of a rank, and "
            f"state_nbytes = {settings.clients.state_nbytes}; raise it where memory allows, plan for "
            "more ranks, or take another strategy.local"
        )


def _read_files(wanted, count):
    """Return what speeds and available hold, as lists; None where there is no such file."""
    speeds = available = None
    if wanted.speeds is not None:
        speeds = _numbers(wanted.speeds, 1)
        if speeds.shape != (count,) or not (np.isfinite(speeds) & (speeds > 0)).all():
            raise SettingsError(
                f"{wanted.speeds}: must hold a number above 0 for each of {count} clients, a line each"
            )
    if wanted.available is not None:
        available = _numbers(wanted.available, 2)
        if available.shape[1:] != (count,) or not np.isin(available, (0, 1)).all():
            raise SettingsError(
                f"{wanted.available}: must hold a line a round, of 0 or 1 for each of {count} clients"
            )
    return {
        "speeds": None if speeds is None else speeds.tolist(),
        "available": None if available is None else available.astype(int).tolist(),
    }


def _numbers(path, dimensions):
    """Return the numbers in a text file, apart by commas or spaces."""
    try:
        lines = path.read_text().replace(",", " ").splitlines()
        return np.loadtxt(lines, float, ndmin=dimensions)
    except OSError as problem:
        raise SettingsError(f"{path}: {explained(problem, 'name a file that can be read')}") from None
    except ValueError as problem:
        raise SettingsError(f"{path}: holds no table of numbers: {problem}; mend the line") from None


def identity_of_clients(settings, clients: Clients) -> dict:
    """Return what a run that goes on must share of its clients with the one that wrote a checkpoint."""
    files: Sequence[np.ndarray | None] = (clients.speeds, clients.available)
    return {
        **settings.clients.model_dump(mode="json", exclude={"speeds", "available", "state_nbytes"}),
        "speeds": None if files[0] is None else hashlib.sha256(files[0].tobytes()).hexdigest(),
        "available": None if files[1] is None else hashlib.sha256(files[1].tobytes()).hexdigest(),
    }


def told_of_clients(member) -> dict:
    """Return what run.json tells of the clients whom `member`, a rank's part in the strategy, plays."""
    samples = member.clients.weights
    least, most = int(samples.min()), int(samples.max())
    told = {"count": member.clients.count, "wanted": member.wanted, "samples": [least, most]}
    return {"clients": told}
