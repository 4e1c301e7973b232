"""How a run scales its features, and what it says where they or what came of them look wrong."""

import numpy as np

from isthmus.errors import SettingsError, ShardError
from isthmus.links.world import all_gather
from isthmus.models import MODELS
from isthmus.shards.scale import Scale
from isthmus.shards.scaling import WIDE, gather_moments


def given_as(asked, dtype):
    """Return the dtype in which batches have features of `dtype`, where [data] scale is `asked`."""
    scaled = not isinstance(asked, str) or (asked == "auto" and dtype.kind == "f")
    return np.dtype(np.float32) if scaled else dtype


def scale_of(tiers, settings, local, tell):
    """Return the Scale that the settings ask for, of the training samples `local`; None for none.

    Collective. Tells where features that stay as they are lie far from 0.
    """
    asked, (name, features) = settings.data.scale, next(iter(local.arrays.items()))
    if not isinstance(asked, str):
        try:
            return Scale.of(asked.mean, asked.std, features.shape[1:])
        except ValueError as problem:
            raise _everywhere(SettingsError(f"data.scale: {problem}; mend it under [data]")) from None
    if features.dtype == np.uint8 or (features.dtype.kind != "f" and settings.model.kind not in MODELS):
        return None  # bytes are for the model to scale, and integers may be tokens
    if settings.privacy.unit is not None:
        if asked == "auto" and features.dtype.kind == "f":
            raise _everywhere(
                SettingsError(
                    'data.scale = "auto" learns from the samples, and that is not counted under '
                    'privacy.unit: set scale = { mean = NUMBER, std = NUMBER } or "none"'
                )
            )
        return None
    moments = gather_moments(tiers.world, local)
    if asked == "auto" and features.dtype.kind == "f":
        try:
            return moments.scale()
        except ValueError:
            raise _everywhere(
                ShardError(
                    f"{settings.data.train}: features {name!r} are too large for float32; pack smaller "
                    "numbers, or set scale = { mean = 0.0, std = 1.0 } under [data]"
                )
            ) from None
    if moments.spread > WIDE:
        mean, std = (float(f"{value:.4g}") for value in moments.whole())
        off = "off" if asked == "none" else "for floats alone, and these are integers"
        auto = 'scale = "auto", or ' if asked == "none" and features.dtype.kind == "f" else ""
        tell(
            f"features {name!r} lie {moments.spread:.4g} from 0 (root mean square), which most learning "
            f"rates do not bear, and scaling is {off}: set {auto}scale = {{ mean = {mean}, std = "
            f"{std} }} under [data]"
        )
    return None


def commonest_share(world, local):
    """Return the share of all ranks' samples `local` that are of the commonest class, on every rank.

    None where targets are no class numbers. Collective.
    """
    targets = list(local.arrays.values())[-1]
    if targets.dtype.kind not in "iu" or targets.ndim != 1:
        return None
    largest = int(targets.max(initial=0))
    classes = 1 + int(np.max(all_gather(world, np.array([largest]))))
    counts = np.sum(all_gather(world, np.bincount(targets.astype(np.int64), minlength=classes)), axis=0)
    return float(counts.max() / max(counts.sum(), 1))


def no_better_than_one_answer(metrics, share):
    """Return what to say of a model that judges no better than the best single answer; None if it does.

    metrics: of the test set, by name. share: what `commonest_share` gives of it.
    """
    accuracy, explained = metrics.get("accuracy"), metrics.get("r2")
    if accuracy is not None and share is not None and accuracy <= share:
        found = f"accuracy {accuracy:.4f} is no better than the commonest class for all ({share:.4f})"
    elif explained is not None and explained <= 0:
        found = f"r2 {explained:.4f} is no better than the targets' mean for all (0)"
    else:
        return None
    return f"{found}: nothing was learnt; look at features' scale, learning rate and targets"


def _everywhere(error):
    error.everywhere = True
    return error
