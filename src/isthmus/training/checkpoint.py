"""A checkpoint: all that decides the steps to come, in one file, whole or not at all."""

import hashlib
from pathlib import Path

import numpy as np

from isthmus.devices import to_host
from isthmus.errors import CheckpointError
from isthmus.links.agreement import from_root, gather_json, require, together
from isthmus.links.comm import receive, send
from isthmus.links.world import broadcast
from isthmus.training.checkpoint_file import CHECKPOINT
from isthmus.training.identity import difference_in_words
from isthmus.training.residuals import SealedResidual, described, is_residual, sealed_nbytes


def write_checkpoint(path, training, identity, notes=None, more=None, seal=None):
    """Write the arrays of `training` on every rank to `path`, from the job's rank 0. Collective.

    An array that several ranks hold alike is sent and stored once. All random numbers follow from the
    seed (in `identity`), the step and the counts of calls: they are the random state and the data
    position.
    identity: JSON table of what a run that resumes from this must share with the one that wrote it.
    notes: JSON table of what else it is given back. more: name -> array of this rank beside those of
    `training`, of the same names on every rank. seal: the ResidualSeal of this rank's site, for which
    residuals are then sealed before they are sent; None: they are stored as they are.
    """
    world, home = training.tiers.world, training.tiers.home
    arrays = {
        name: np.ascontiguousarray(to_host(array))
        for name, array in {**training.arrays(), **(more or {})}.items()
    }
    plain = dict.fromkeys(arrays)
    for name in [] if seal is None else [name for name in arrays if is_residual(name)]:
        if arrays[name].size:
            plain[name] = described(arrays[name])
            arrays[name] = seal.seal(name, training.state.step, arrays[name])
    told = gather_json(
        world,
        {
            name: [hashlib.sha256(array).hexdigest(), len(array), array.dtype.str, plain[name]]
            for name, array in arrays.items()
        },
    )
    stored, holder_of_rank, sealed = {}, {}, {}
    for name in arrays:
        holders = {}  # what an array holds -> the first rank that has it
        holder_of_rank[name] = [
            holders.setdefault(tuple(each[name]), rank) for rank, each in enumerate(told)
        ]
        for (_, entries, dtype, residual), rank in holders.items():
            if residual is not None:
                sealed[f"{name}/{rank}"] = residual
            if world.rank == rank != home:
                send(world, arrays[name], home)
            elif world.rank == home:
                stored[f"{name}/{rank}"] = arrays[name]
                if rank != home:
                    stored[f"{name}/{rank}"] = np.empty(entries, dtype)
                    receive(world, stored[f"{name}/{rank}"], rank)
    table = {
        "step": training.state.step,
        "holder_of_rank": holder_of_rank,
        "identity": identity,
        "notes": notes or {},
        **({"sealed": sealed} if sealed else {}),
    }
    together(world, lambda: CHECKPOINT.write(path, stored, table) if world.rank == home else None)


def read_checkpoint(
    path, training, identity, more=None, adapt=lambda arrays, table, wanted: table, seal=None
):
    """Set `training` to what the job's rank 0 finds in `path`. Collective.

    Returns the notes that were written, and fills the arrays of `more` as they were. CheckpointError on
    every rank if the file is missing, damaged or of a run unlike `identity`.
    adapt(arrays, table, wanted): gives the table as other ranks go on from it, and adds to the arrays
    what they want of them; wanted: name -> entries of each rank's array. seal: the ResidualSeal of this
    rank's site, which opens what was sealed for it.
    """
    world, home, stored, more = training.tiers.world, training.tiers.home, {}, more or {}
    arrays = {
        name: np.empty_like(to_host(array)) for name, array in {**training.arrays(), **more}.items()
    }
    wanted = gather_json(world, {name: array.size for name, array in arrays.items()})
    step, holder_of_rank, notes, sealed = from_root(
        world, lambda: _read(path, stored, identity, wanted, adapt), home
    )
    require(
        world,
        seal is not None or not sealed,
        CheckpointError,
        f'{path}: residuals are sealed for their sites; go on with link = "sealed" under [security]',
    )
    for name, array in arrays.items():
        holders = holder_of_rank[name]
        if name in sealed:
            _open(training.tiers, stored, name, step, holders, sealed[name], array, seal)
        elif len(set(holders)) == 1:
            if world.rank == home:
                array[:] = stored[f"{name}/{holders[0]}"]
            broadcast(world, array, home)
        elif world.rank == home:
            array[:] = stored[f"{name}/{holders[home]}"]
            for rank, holder in enumerate(holders):
                if rank != home:
                    send(world, stored[f"{name}/{holder}"], rank)
        else:
            receive(world, array, home)
    for name, array in more.items():
        array[...] = arrays.pop(name)
    training.load(step, arrays)
    return notes


def _open(tiers, stored, name, step, holders, nbytes_of_rank, array, seal):
    """Give each rank its own of an array of which some are sealed; it opens it itself. Collective."""
    world, home = tiers.world, tiers.home

    def kept(rank):
        found = stored[f"{name}/{holders[rank]}"]
        return found.content if isinstance(found, SealedResidual) else found

    nbytes = nbytes_of_rank[world.rank]
    came = array if nbytes is None else np.empty(nbytes, np.uint8)
    if world.rank == home:
        for rank in range(world.size):
            if rank != home:
                send(world, np.ascontiguousarray(kept(rank)), rank)
        came[:] = kept(home)
    else:
        receive(world, came, home)
    together(world, lambda: None if nbytes is None else seal.open(name, step, came, array))


def _read(path, stored, identity, wanted, adapt):
    """Read the arrays into `stored`; return what the other ranks are told.

    wanted: name -> entries of each rank's array.
    """
    arrays, table = CHECKPOINT.read(path)
    for key, told in table.get("sealed", {}).items():
        arrays[key] = SealedResidual(arrays[key], told)
    table = adapt(arrays, table, wanted)
    different = difference_in_words(table["identity"], identity, Path(path).parent)
    if different:
        raise CheckpointError(f"{path}: is of another run: {different}")
    for rank, entries_of in enumerate(wanted):
        for name, entries in entries_of.items():
            holders = table["holder_of_rank"].get(name, ())
            shape = arrays[f"{name}/{holders[rank]}"].shape if rank < len(holders) else ()
            if shape != (entries,):
                raise CheckpointError(
                    f"{path}: {name} of rank {rank} has shape {shape}, this run has "
                    f"({entries},); resume with the same model, sites, strategy and "
                    "compressor"
                )
    stored.update(arrays)
    holders = table["holder_of_rank"]
    return [table["step"], holders, table["notes"], sealed_nbytes(stored, holders)]
