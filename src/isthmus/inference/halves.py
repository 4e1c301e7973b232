"""One model in two halves: what an edge rank computes of it, what crosses the link, and the rest."""

import math

import numpy as np

from isthmus.compression.compressor import Compressor
from isthmus.errors import PlanError
from isthmus.inference.forward import Part, Run, joined
from isthmus.planning.splits import Split


def halves_of(plan: Split, parts: list[Part], activations: Compressor | None = None) -> tuple[Run, Run]:
    """Return what the edge and the cloud compute of a model whose layers are `parts`.

    activations: the compressor of what crosses, None for float32; the request itself crosses as it is.
    The first half then gives wires, uint8[n, bytes], each request's its own, so that answers do not
    depend on the batch; the second takes them. Raises PlanError where the split is of another model or
    of other activations, ValueError for a compressor that carries something from one call to the next.
    """
    names = [part.name for part in parts]
    planned = [*plan.source_layers, *plan.target_layers]
    here = [name for name in plan.source_layers if name in names]
    if {*planned} - {*names, "input"} or names[: len(here)] != here:
        raise PlanError(
            f"the split is of layers {', '.join(planned)}, the model has {', '.join(names)}; plan "
            "it for this model, whose layers are a chain"
        )
    first, second = parts[: len(here)], parts[len(here) :]
    if not first or not second:
        return joined(first), joined(second)
    nbytes = 4 * first[-1].entries
    if activations is not None:
        if activations.state_entries(first[-1].entries):
            raise ValueError(
                f"activations {activations} carry something from one request to the next; take Int8 "
                "or Int4"
            )
        nbytes = activations.wire_nbytes(first[-1].entries)
    if plan.nbytes != nbytes:
        raise PlanError(
            f"the split sends {plan.nbytes:,} bytes a request, {activations or 'float32'} makes "
            f"{nbytes:,}; give plan_split and Inference the same activations"
        )
    if activations is None:
        return joined(first), joined(second)
    encode, decode = _coded(activations, first[-1].shape)
    return joined([*first, encode]), joined([decode, *second])


def _coded(compressor, shape):
    """Return the Parts that make wires of activations [n, *shape], and activations of wires."""
    entries = math.prod(shape)
    nbytes = compressor.wire_nbytes(entries)

    def encode(values):
        wires, wire = np.empty((len(values), nbytes), np.uint8), np.empty(nbytes, np.uint8)
        rows = np.ascontiguousarray(values, np.float32).reshape(len(values), entries)
        for row, place in zip(rows, wires):
            compressor.encode(row, wire)  # into a wire of its own: one in a row would not be aligned
            place[:] = wire
        return wires

    def decode(wires):
        rows, wire = np.empty((len(wires), entries), np.float32), np.empty(nbytes, np.uint8)
        for row, place in zip(rows, wires):
            wire[:] = place
            compressor.decode(wire, row)
        return rows.reshape(len(wires), *shape)

    return Part("encode", encode, (nbytes,)), Part("decode", decode, shape)
