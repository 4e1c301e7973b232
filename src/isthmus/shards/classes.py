"""How unlike the samples of sites are: which classes the shards hold that each of them has."""

from collections.abc import Sequence

import numpy as np

from isthmus.shards.manifest import Manifest

UNLIKE = 0.1
"""`class_distance` from which on sites count as unlike. Samples that are dealt out at random stay below
it from 200 a site on, of ten classes (their distance is about 1.2 / sqrt(samples)); where two sites have
half of the classes each, alone, it is 0.5."""


def class_distance(manifest: Manifest, site_of_shard: Sequence[int]) -> float | None:
    """Return the share of all samples that had to change their class for all sites to have the same mix.

    It is the mean over sites, by their samples, of the total variation distance between a site's
    distribution of classes and the whole's: 0 where all are alike, less than 1. None where the shards'
    classes were not counted. site_of_shard: the number of the site that holds each shard.
    """
    whole = manifest.samples_of_class
    if whole is None:
        return None
    column = {kind: number for number, kind in enumerate(whole)}
    held = np.zeros((1 + max(site_of_shard, default=0), len(column)))
    for shard, site in zip(manifest.shards, site_of_shard):
        for kind, samples in (shard.samples_of_class or {}).items():
            held[site, column[kind]] += samples
    samples = held.sum()
    alike = np.outer(held.sum(axis=1), held.sum(axis=0)) / max(1.0, samples)
    return float(np.abs(held - alike).sum() / 2 / max(1.0, samples))
