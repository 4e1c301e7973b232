"""Structurally smaller models: whole units, or channels, go, and the matrices with them."""

import itertools
from dataclasses import replace

import numpy as np

from isthmus.models import Convolutional, Perceptron

WIDTHS = {Perceptron: "hidden", Convolutional: "channels"}
"""Model -> its argument that says how wide its inner layers are."""


def narrowed(model, parameters, keep):
    """Return a model with the share `keep` of each inner layer's units, its parameters, and its widths.

    The units that stay are those with the largest product of norms of what goes in and what comes out;
    norms of filters as in Li et al. 2017, "Pruning Filters for Efficient ConvNets" (arXiv:1608.08710).
    widths: {argument: numbers}. ValueError, which says why, of a model that has no such layers.
    """
    if type(model) not in WIDTHS:
        raise ValueError("which units of a model of your own may go is not known")
    if not (before := getattr(model, WIDTHS[type(model)])):
        raise ValueError("the model has no inner layer")
    tensors = dict(model.views(parameters))
    layers = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    after = []
    for (layer, reader), units in zip(itertools.pairwise(layers), before):
        weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        read = tensors[f"{reader}.weight"]
        read = read.reshape(-1, units, read.shape[-1])  # [places, units, outputs]
        given = np.sqrt((weight.reshape(-1, units) ** 2).sum(axis=0) + bias**2)
        importance = given * np.sqrt((read**2).sum(axis=(0, 2)))
        kept = np.sort(np.argsort(-importance, kind="stable")[: max(1, round(keep * units))])
        after.append(len(kept))
        tensors |= {f"{layer}.weight": weight[..., kept], f"{layer}.bias": bias[kept]}
        tensors[f"{reader}.weight"] = read[:, kept]
    widths = {WIDTHS[type(model)]: tuple(after)}
    vector = np.concatenate([tensor.reshape(-1) for tensor in tensors.values()])
    return replace(model, **widths), vector, widths
