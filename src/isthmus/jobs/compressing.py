"""A run's model made smaller: chosen on its validation set, told once on its test set, and kept."""

from pathlib import Path

from isthmus.errors import OutputError, SettingsError
from isthmus.files import check_folder
from isthmus.folders.model_file import NAME, was_sealed
from isthmus.folders.trained_model import load_model
from isthmus.inference.compressing import compress, judge
from isthmus.shards.shard_file import ShardSet
from isthmus.terminal import table_of

COLUMNS = ("model", "bytes", "smaller", "{}", "change [bounds], points", "us a sample", "verdict")


def compress_run(
    run,
    output=None,
    *,
    validation=None,
    best=False,
    keys=None,
    teacher=None,
    overwrite=False,
    tell=lambda line: None,
    **chosen,
):
    """Write the smallest model that passes to `output`, a folder; return the table that tells of all.

    run, teacher: folders of runs. output: None for the folder "compressed" in that of the run.
    validation: the folder of a set; None for the run's own. keys: of a site that may read sets with a
    policy, its folder. chosen: further arguments of `compress`.
    Raises SettingsError where the run has no validation set, OutputError where there is a model already.
    """
    (trained, parameters), sealed = load_model(run, best), was_sealed(run)
    output = Path(output or Path(run, "compressed"))
    if (output / "run.json").exists():
        raise OutputError(f"{output}: is the folder of a run; name another")
    if (output / NAME).exists() and not overwrite:
        raise OutputError(f"{output / NAME}: exists; name another folder, or give --overwrite")
    folders = trained.table["folders"]
    validation = validation or folders.get("validation")
    if validation is None:
        raise SettingsError(
            f"{run}: had no validation set; name samples that it has not learnt from with --validation"
        )
    validation, sets = ShardSet.open(validation, keys), trained.table["data"]
    if validation.digest == sets.get("train", {}).get("sha256"):
        raise SettingsError(f"{validation.folder}: the run has learnt from these samples; name others")
    training = None
    if Path(folders.get("train", "")).is_dir():
        training = ShardSet.open(folders["train"], keys)
    if training is None:
        tell("the training set is not there: no model is tuned, and there is no teacher")
    check_folder(output, "name another folder")
    ladder = compress(
        trained,
        parameters,
        validation=validation,
        training=training,
        teacher=None if teacher is None or training is None else load_model(teacher),
        tell=tell,
        **chosen,
    )
    said = {"validation": judge(ladder, trained, validation)}
    test = Path(folders.get("test", "nowhere"))
    test = ShardSet.open(test, keys) if test.is_dir() else None
    if test is not None and test.digest == sets.get("test", {}).get("sha256"):
        said["test"] = judge(ladder, trained, test)
    metrics = {name: each["metrics"] for name, each in said.items()}
    path = ladder.write(output, metrics, sealed)
    return {
        "run": str(run),
        "parameters": trained.which,
        "rungs": [rung.to_json() for rung in ladder.rungs],
        "notes": list(ladder.notes),
        "best": ladder.best.name,
        **said,
        "folder": str(output),
        "file_nbytes": path.stat().st_size,
        "run_file_nbytes": Path(run, NAME).stat().st_size,
        **ladder.told,
    }


def compression_words(made):
    """Return what people read of the table: the ladder, what was left out, and what was kept."""
    whole = made["rungs"][0]["nbytes"]
    metric = "accuracy" if "accuracy" in made["rungs"][0] else "r2"
    rows = [
        (
            (
                rung["name"],
                f"{rung['nbytes']:,}",
                f"{whole / rung['nbytes']:.1f} x",
                f"{100 * rung[metric]:.2f} %",
                _points(rung),
                f"{1e6 * rung['seconds_per_sample']:.1f}",
                rung["verdict"],
            ),
            "bold" if rung["name"] == made["best"] else "",
        )
        for rung in made["rungs"]
    ]
    columns = [
        (title.format(metric), "right" if 0 < place < 6 else "left")
        for place, title in enumerate(COLUMNS)
    ]
    kept = (
        f"{made['folder']}: {made['best']}; a file of {made['file_nbytes']:,} bytes, the run's has "
        f"{made['run_file_nbytes']:,}"
    )
    test = made.get("test")
    said = [
        f"on the test set, which chose nothing: {metric} {100 * test['metrics'][metric]:.2f} %, "
        f"changed by {_points(test)} points"
        for _ in [test] * bool(test)
    ]
    return [table_of(columns, rows), *made["notes"], *said, kept]


def _points(told):
    return f"{100 * told['change']:+.2f} [{100 * told['low']:+.2f}, {100 * told['high']:+.2f}]"
