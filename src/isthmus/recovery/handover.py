"""What ranks go on from where other ranks were before: who has whose arrays.

Parameters are the same on all ranks; what the optimiser remembers is so on those of a site, which has
its own where sites exchange now and then. A rank that was there before keeps all of it, its buffers and,
where it speaks for its site as it did, its residual; the residuals of others are lost. One that is new
begins as the first rank of its site, or of all where the site is new, but with the buffers of the first
of all, and with no residual.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import CheckpointError
from isthmus.links.agreement import gather_json
from isthmus.links.comm import receive, send
from isthmus.training.residuals import is_residual

if TYPE_CHECKING:
    from isthmus.training.loop import Training

SENT = "/sent_to_sites"


def came_from(before: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> list[int | None]:
    """Return which rank each was before, by its site and its number there; None for one that is new.

    before, now: [name, tier, ranks] of each site, as a checkpoint's identity tells them.
    """
    places = [
        [(name, number) for name, _, ranks in sites for number in range(ranks)]
        for sites in (before, now)
    ]
    rank_of = {place: rank for rank, place in enumerate(places[0])}
    return [rank_of.get(place) for place in places[1]]


def mates(before: Sequence[str], now: Sequence[str]) -> list[int]:
    """Return the first rank before of each one's site, or of all where the site is new.

    before, now: the name of each rank's site.
    """
    return [before.index(site) if site in before else 0 for site in now]


def source(
    name: str, before: int | None, entries: int, sizes: Sequence[int], mate: int = 0
) -> int | None:
    """Return of which rank the array `name` is taken; None for zeros.

    before: which rank this one was. entries: that it wants. sizes: entries that each rank had. mate: as
    `mates` has it.
    """
    if name.startswith("strategy/") and name.endswith(SENT):
        return None
    if is_residual(name):
        return before if before is not None and sizes[before] == entries else None
    if name.startswith("buffers/"):
        return 0 if before is None else before
    of = mate if before is None else before
    if sizes[of] == entries:
        return of
    return next((rank for rank, size in enumerate(sizes) if size == entries), None)


def arrays_of(
    held: Sequence[Mapping[str, np.ndarray]],
    before: int | None,
    wanted: Mapping[str, np.ndarray],
    mate: int = 0,
) -> dict[str, np.ndarray]:
    """Return what a rank goes on from, in memory.

    held: name -> array of each rank before. wanted: of this one now, as it began. mate: as `mates` has
    it.
    """
    found = {}
    for name, own in wanted.items():
        of = source(name, before, own.size, [arrays[name].size for arrays in held], mate)
        found[name] = np.zeros_like(own) if of is None else held[of][name]
    return found


def adapted(
    arrays: dict[str, np.ndarray],
    table: dict[str, Any],
    wanted: Sequence[Mapping[str, int]],
    now: dict[str, Any],
    redone: str | None = "step",
    path: Any = "checkpoint.h5",
    placed_anew: bool = False,
) -> dict[str, Any]:
    """Return the table of a checkpoint as the ranks of the run `now` (an identity) go on from it.

    As it is where these are the ranks that wrote it, or where they cannot go on from it: other settings
    than before, no site in common, or a strategy with which no others can. Else the notes tell, as
    "came_from", which rank each was, and as "lost" whose residuals are lost. redone: as
    `Strategy.redone` has it. path: of the checkpoint. placed_anew: whether the same ranks may have
    other shards now. CheckpointError where it is of the midst of a round.
    """
    before = table["identity"]
    sites = before["sites"][1], now["sites"][1]
    names = [{name for name, *_ in each} for each in sites]
    same = [
        {key: value for key, value in each.items() if key not in ("ranks", "sites", "plan")}
        for each in (before, now)
    ]
    moved = placed_anew and before["plan"]["hash"] != now["plan"]["hash"]
    others = sites[0] != sites[1] or moved
    if not others or not names[0] & names[1] or same[0] != same[1] or redone is None:
        return table
    if not all(arrays[f"strategy/agreed/{of}"][0] for of in table["holder_of_rank"]["strategy/agreed"]):
        raise CheckpointError(
            f"{path}: step {table['step']} is in the midst of a round, where each site has parameters "
            "of its own: go on with the ranks and sites that wrote it; with recovery.survive = true "
            "checkpoints are of the end of a round, from which others can go on too"
        )
    came, holders = came_from(*sites), {}
    mate = mates(*([name for name, _, ranks in each for _ in range(ranks)] for each in sites))
    for name, of in table["holder_of_rank"].items():
        sizes = [arrays[f"{name}/{holder}"].size for holder in of]
        holders[name] = []
        for rank, each in enumerate(came):
            entries = wanted[rank].get(name, 0)
            rank_before = source(name, each, entries, sizes, mate[rank])
            if rank_before is None:
                arrays[f"{name}/zeros{entries}"] = np.zeros(entries, arrays[f"{name}/{of[0]}"].dtype)
            holders[name].append(f"zeros{entries}" if rank_before is None else of[rank_before])
    notes = table["notes"] | {"came_from": came, "lost": _lost(arrays, table, sites[0], holders)}
    identity = before | {key: now[key] for key in ("ranks", "sites", "plan")}
    return table | {"holder_of_rank": holders, "notes": notes, "identity": identity}


def _lost(arrays, table, sites, holders):
    """Return the sites whose leader's residual nobody goes on with."""
    leaders = np.cumsum([0, *(ranks for *_, ranks in sites)])[:-1].tolist()
    return [
        site
        for (site, *_), leader in zip(sites, leaders)
        if any(
            arrays[f"{name}/{of[leader]}"].any() and of[leader] not in holders[name]
            for name, of in table["holder_of_rank"].items()
            if is_residual(name)
        )
    ]


def taken_by_new(
    world: Any,
    here: Sequence[int | None],
    held: Mapping[str, np.ndarray] | None,
    wanted: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray] | None:
    """Return what a rank that is new goes on from; None on one that was there before. Collective.

    here: which rank each was before, None for one that is new. held: this one's arrays then. wanted: as
    it begins now.
    """
    sizes = gather_json(world, {name: array.size for name, array in (held or wanted).items()})
    rank_of = {before: rank for rank, before in enumerate(here) if before is not None}
    before = range(max(rank_of) + 1)
    found = {name: np.zeros_like(array) for name, array in wanted.items()}
    for new in [rank for rank, before in enumerate(here) if before is None]:
        for name, entries in sizes[new].items():
            of = [sizes[rank_of[each]][name] if each in rank_of else -1 for each in before]
            number = source(name, None, entries, of)
            if number is None or not entries:
                continue
            if world.rank == rank_of[number] and held is not None:
                send(world, np.ascontiguousarray(held[name]), new)
            elif world.rank == new:
                receive(world, found[name], rank_of[number])
    return found if held is None else None


def hand_over(new: "Training", step: int, arrays: dict[str, np.ndarray], untold: Any) -> None:
    """Have `new`, of other ranks than before, go on after `step` from this rank's arrays then.

    untold: (rows that were measured and not told, the last step that was).
    """
    new.load(step, arrays)
    rows, until = untold
    new.rows, new.told_step = [[*row[:-2], 0, 0] for row in rows], until
