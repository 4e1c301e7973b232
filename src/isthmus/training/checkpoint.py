"""A checkpoint: all that decides the steps to come, in one HDF5 file, whole or not at all."""

import json

import numpy as np

from isthmus.errors import CheckpointError
from isthmus.files import replacing
from isthmus.topology.agreement import from_root, gather_json, together

VERSION = 1


def write_checkpoint(path, tiers, state, allreduce, identity):
    """Write `state` and every rank's residual to `path`, from the job's rank 0. Collective.

    The residuals of the leaders cross the links for this: float32[size] a site and checkpoint.
    identity: JSON table of what a run that resumes from this must share with the one that wrote it.
    All random numbers follow from the seed (in `identity`), the step and the allreduce's count of
    calls: they are the random state and the data position.
    """
    world, home = tiers.world, tiers.home
    speakers = _ranks_with_residual(world, allreduce)
    sent = gather_json(world, allreduce.sent_to_sites.tolist())
    residuals = {}
    for rank in speakers:
        residual = allreduce.residual
        if world.rank == home != rank:
            residual = np.empty(allreduce.size, np.float32)
            world.Recv(residual, rank)
        elif world.rank == rank != home:
            world.Send(residual, home)
        residuals[rank] = residual
    together(world, lambda: _write(path, state, allreduce.calls, sent, residuals, identity)
             if world.rank == home else None)


def read_checkpoint(path, tiers, state, allreduce, identity):
    """Set `state` and `allreduce` to what the job's rank 0 finds in `path`. Collective.

    CheckpointError on every rank if the file is missing, damaged or of a run unlike `identity`.
    """
    world, home = tiers.world, tiers.home
    found = {}
    step, calls, sent, speakers = from_root(world, lambda: _read(path, found, state, identity), home)
    for name, array in (("parameters", state.parameters), ("momentum", state.momentum)):
        if world.rank == home:
            array[:] = found[name]
        world.Bcast(array, home)
    for rank in speakers:
        residual = found[f"residuals/{rank}"] if world.rank == home else np.empty(
            allreduce.size, np.float32)
        if world.rank == home != rank:
            world.Send(residual, rank)
        elif world.rank == rank != home:
            world.Recv(residual, home)
        if world.rank == rank:
            allreduce.residual = residual
    state.step, allreduce.calls = step, calls
    allreduce.sent_to_sites[:] = sent[world.rank]


def _ranks_with_residual(world, allreduce):
    flags = np.empty(world.size, np.uint8)
    world.Allgather(np.array([allreduce.has_residual], np.uint8), flags)
    return [int(rank) for rank in np.flatnonzero(flags)]


def _write(path, state, calls, sent, residuals, identity):
    import h5py
    with replacing(path) as partial, h5py.File(partial, "w") as file:
        file.attrs.update(version=VERSION, step=state.step, calls=calls, sent=json.dumps(sent),
                          identity=json.dumps(identity))
        arrays = {"parameters": state.parameters, "momentum": state.momentum}
        arrays |= {f"residuals/{rank}": residual for rank, residual in residuals.items()}
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=(max(1, min(array.size, 1 << 18)),),
                                fletcher32=True)


def _read(path, found, state, identity):
    """Read the arrays into `found`; return what the other ranks are told."""
    import h5py
    try:
        with h5py.File(path, "r") as file:
            written = json.loads(file.attrs["identity"])
            _check_identity(path, written, identity)
            if file.attrs["version"] != VERSION:
                raise CheckpointError(f"{path}: is of version {file.attrs['version']}, this program "
                                      f"reads {VERSION}; use the isthmus that wrote it")
            names = ["parameters", "momentum"] + [
                f"residuals/{rank}" for rank in file.get("residuals", ())]
            for name in names:
                found[name] = file[name][:]
                if found[name].shape != state.parameters.shape:
                    raise CheckpointError(f"{path}: {name} has shape {found[name].shape}, this model "
                                          f"{state.parameters.shape}; resume with the same model")
            return [int(file.attrs["step"]), int(file.attrs["calls"]),
                    json.loads(file.attrs["sent"]),
                    sorted(int(name.partition("/")[2]) for name in names[2:])]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint; set run.checkpoint_every, or start "
                              "without --resume") from None
    except (OSError, KeyError, ValueError, RuntimeError) as problem:
        raise CheckpointError(f"{path}: is damaged ({problem}); start without --resume") from None


def _check_identity(path, written, identity):
    for key in sorted(written.keys() | identity.keys()):
        if written.get(key) != identity.get(key):
            raise CheckpointError(f"{path}: was written with {key} = {json.dumps(written.get(key))}, "
                                  f"this run has {json.dumps(identity.get(key))}; "
                                  "resume with the same settings")
