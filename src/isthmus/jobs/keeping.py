"""The model that a run leaves behind: model.h5, written once the work is done."""

import hashlib

import isthmus
from isthmus.devices import to_host
from isthmus.folders.model_file import NAME, Kept, write_model
from isthmus.json_text import dumps


def keep_model(job):
    """Write the model of a Job to its folder: as it is now, and the best if there is one.

    For the job's rank 0 alone. Raises OutputError where it cannot be written.
    """
    training, settings = job.training, job.settings
    model, state, steps = training.model, training.state, training.recipe.steps
    kept = {
        "last": Kept(
            state.step, state.step // steps, job.account.evaluated, model.views(to_host(training.anchor))
        )
    }
    if job.validation is not None and job.validation.best:
        best = job.validation.best
        kept["best"] = Kept(**best, parameters=model.views(job.validation.parameters))
    features = next(iter(training.local.manifest.arrays.values()))
    table = {
        "version": isthmus.__version__,
        "model": settings.to_json()["model"],
        "features": {"shape": list(features.shape), "dtype": features.dtype},
        "settings_sha256": hashlib.sha256(dumps(settings.to_json()).encode()).hexdigest(),
        "data": {name: manifest.told() for name, manifest in job.data.items()},
        "folders": {name: str(getattr(settings.data, name)) for name in job.data},
        "threads": settings.run.threads,
    }
    write_model(job.path / NAME, table, kept)
