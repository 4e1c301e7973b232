"""The model that all ranks of a job have: the same on each, from the same start."""

import hashlib

import numpy as np

from isthmus.devices import set_from_host, to_host
from isthmus.errors import ModelError
from isthmus.json_text import dumps
from isthmus.links.agreement import broadcast_json, gather_json, together
from isthmus.links.world import all_gather, broadcast
from isthmus.training.loop import State


def shared_model(world, settings):
    """Return the settings' model, made on every rank. Collective.

    ModelError on every rank where a user's own is not there, raises, or differs between ranks.
    """
    model = together(world, settings.make_model)
    told = [
        f"{name} is {kind} {list(shape)}"
        for name, (shape, kind) in {
            **{
                name: (shape, getattr(model, "dtypes", {}).get(name, "float32"))
                for name, shape in model.shapes.items()
            },
            **{name: (array.shape, array.dtype) for name, array in model.buffers().items()},
        }.items()
    ]
    digests = gather_json(world, hashlib.sha256(dumps(told).encode()).hexdigest())
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        first, theirs = (broadcast_json(world, told, root) for root in (0, others[0]))
        number = next(
            number
            for number in range(max(len(first), len(theirs)))
            if first[number : number + 1] != theirs[number : number + 1]
        )
        words = [(each[number : number + 1] or ["it has no more"])[0] for each in (first, theirs)]
        error = ModelError(
            f"{settings.model.kind}: the model differs between ranks: {words[0]} on rank 0, {words[1]} "
            f"on rank {others[0]}; have it depend on its arguments alone, and install the same "
            "versions everywhere"
        )
        error.everywhere, error.ranks = True, others
        raise error
    return model


def shared_start(tiers, model, recipe, library, tell):
    """Return the State that training begins with, the same on every rank. Collective.

    Each rank makes the first parameters from the recipe's seed; where they are not the same bits
    everywhere (another processor or version, a file that one host alone has), all take those of the
    job's rank 0.
    """
    world, home = tiers.world, tiers.home
    state = together(world, lambda: State.initial(model, recipe, library))
    buffers = {name: np.ascontiguousarray(array) for name, array in model.buffers().items()}
    digest = hashlib.sha256(to_host(state.parameters))
    for array in buffers.values():
        digest.update(array.tobytes())
    everyone = all_gather(world, np.frombuffer(digest.digest(), np.uint8))
    if all(np.array_equal(each, everyone[home]) for each in everyone):
        return state
    parameters = np.ascontiguousarray(to_host(state.parameters))
    for array in (parameters, *buffers.values()):
        broadcast(world, array.reshape(-1), home)
    set_from_host(state.parameters, parameters)
    model.set_buffers(buffers)
    tell("the first parameters are not the same bits on all ranks: all take those of rank 0")
    return state
