"""A checkpoint: all that decides the steps to come, in one file, whole or not at all."""

from pathlib import Path

import numpy as np

from isthmus.devices import set_from_host, to_host
from isthmus.errors import CheckpointError
from isthmus.topology.agreement import from_root, gather_json, together
from isthmus.topology.world import broadcast
from isthmus.training.checkpoint_file import read_checkpoint_file, write_checkpoint_file
from isthmus.training.identity import difference_in_words


def write_checkpoint(path, tiers, state, allreduce, identity, notes=None):
    """Write `state` and every rank's memory to `path`, from the job's rank 0. Collective.

    The memories of the leaders cross the links for this: float32[size] and the compressor's state a
    site and checkpoint.
    identity: JSON table of what a run that resumes from this must share with the one that wrote it.
    notes: JSON table of what else it is given back.
    All random numbers follow from the seed (in `identity`), the step and the allreduce's count of
    calls: they are the random state and the data position.
    """
    world, home = tiers.world, tiers.home
    sent = gather_json(world, allreduce.sent_to_sites.tolist())
    memories = {}
    for rank, entries in _entries_of_memories(world, allreduce).items():
        memory = to_host(allreduce.memory)
        if world.rank == home != rank:
            memory = np.empty(entries, np.float32)
            world.Recv(memory, rank)
        elif world.rank == rank != home:
            world.Send(memory, home)
        memories[rank] = memory
    together(world, lambda: _write(path, state, allreduce.calls, sent, memories, identity, notes)
             if world.rank == home else None)


def read_checkpoint(path, tiers, state, allreduce, identity):
    """Set `state` and `allreduce` to what the job's rank 0 finds in `path`. Collective.

    Returns the notes that were written. CheckpointError on every rank if the file is missing, damaged
    or of a run unlike `identity`.
    """
    world, home = tiers.world, tiers.home
    found = {}
    memories = _entries_of_memories(world, allreduce)
    step, calls, sent, notes = from_root(
        world, lambda: _read(path, found, state, memories, identity), home)
    for name, array in (("parameters", state.parameters), ("momentum", state.momentum)):
        values = found[name] if world.rank == home else np.empty(array.size, np.float32)
        broadcast(world, values, home)
        set_from_host(array, values)
    for rank, entries in memories.items():
        if world.rank == home != rank:
            world.Send(found[f"memories/{rank}"], rank)
        elif world.rank == rank:
            values = found[f"memories/{rank}"] if rank == home else np.empty(entries, np.float32)
            if rank != home:
                world.Recv(values, home)
            set_from_host(allreduce.memory, values)
    state.step, allreduce.calls = step, calls
    allreduce.sent_to_sites[:] = sent[world.rank]
    return notes


def _entries_of_memories(world, allreduce):
    """Return rank -> entries for every rank that carries something from call to call."""
    entries = gather_json(world, allreduce.memory.size)
    return {rank: entries[rank] for rank in range(world.size) if entries[rank]}


def _write(path, state, calls, sent, memories, identity, notes):
    arrays = {"parameters": to_host(state.parameters), "momentum": to_host(state.momentum)}
    arrays |= {f"memories/{rank}": memory for rank, memory in memories.items()}
    write_checkpoint_file(path, arrays, {"step": state.step, "calls": calls, "sent": sent,
                                         "identity": identity, "notes": notes or {}})


def _read(path, found, state, memories, identity):
    """Read the arrays into `found`; return what the other ranks are told."""
    arrays, table = read_checkpoint_file(path)
    different = difference_in_words(table["identity"], identity, Path(path).parent)
    if different:
        raise CheckpointError(f"{path}: is of another run: {different}")
    wanted = {"parameters": state.parameters.size, "momentum": state.momentum.size}
    wanted |= {f"memories/{rank}": entries for rank, entries in memories.items()}
    for name, entries in wanted.items():
        shape = arrays[name].shape if name in arrays else ()
        if shape != (entries,):
            raise CheckpointError(f"{path}: {name} has shape {shape}, this run has ({entries},); resume "
                                  "with the same model, sites and compressor")
        found[name] = arrays[name]
    return [table["step"], table["calls"], table["sent"], table["notes"]]
