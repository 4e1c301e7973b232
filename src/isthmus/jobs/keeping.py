"""The model that a run leaves behind: model.h5, written once the work is done."""

import hashlib

import isthmus
from isthmus.devices import to_host
from isthmus.folders.model_file import NAME, Kept, write_model
from isthmus.json_text import dumps


def keep_model(job, buffers):
    """Write the model of a Job to its folder: as it is now, and the best if there is one.

    buffers: what goes with the parameters of now. For the job's rank 0 alone. Raises OutputError where
    it cannot be written.
    """
    training, settings, validation = job.training, job.settings, job.validation
    state, model = training.state, training.model
    kept = {
        "last": Kept(
            state.step,
            state.step // training.recipe.steps,
            job.account.evaluated,
            model.views(to_host(training.anchor)),
            buffers,
        )
    }
    if validation is not None and validation.best:
        kept["best"] = Kept(
            **validation.best, parameters=model.views(validation.parameters), buffers=validation.buffers
        )
    features, targets = training.local.manifest.arrays.values()
    table = {
        "version": isthmus.__version__,
        "model": settings.to_json()["model"],
        "features": {"shape": list(features.shape), "dtype": features.dtype},
        "targets": {"shape": list(targets.shape), "dtype": targets.dtype},
        "settings_sha256": hashlib.sha256(dumps(settings.to_json()).encode()).hexdigest(),
        "data": {name: manifest.told() for name, manifest in job.data.items()},
        "folders": {name: str(getattr(settings.data, name)) for name in job.data},
        "threads": settings.run.threads,
    }
    scale = training.local.scale
    write_model(job.path / NAME, table, kept, None if scale is None else (scale.mean, scale.std))
