"""`isthmus evaluate | predict | export | compress`: what is done with the model that a run has kept."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson, number
from isthmus.mpirun import speaks

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Best = Annotated[
    bool,
    typer.Option(
        "--best", metavar="", help="The parameters that the validation set liked best, not the last."
    ),
]
Keys = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where the key of a site lies that may read shards with a policy.",
        show_default=False,
    ),
]


def _output(*suffixes, text):
    """Return an option for the file to write, whose ending says how."""

    def check(value):
        if value.suffix.lower() not in suffixes:
            raise typer.BadParameter(f"{str(value)!r}: must end with {', '.join(suffixes)}")
        return value

    return typer.Option("--output", "-o", metavar="FILE", help=text, callback=check)


def evaluate(
    context: typer.Context,
    run: RunFolder,
    shards: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SHARDS]",
            help="A folder of packed shards; else the run's test set.",
            show_default=False,
        ),
    ] = None,
    best: Best = False,
    keys: Keys = None,
    as_json: AsJson = False,
):
    """Judge a run's model on a set of samples (alone or under mpirun)."""
    comm = context.obj.world()
    from isthmus.folders.metrics import metrics_in_words
    from isthmus.jobs.using import evaluate_run

    made = evaluate_run(comm, run, shards, best=best, keys=keys, tell=context.obj.tell)
    context.obj.answer(
        as_json,
        made,
        f"{metrics_in_words(made['metrics'])} of {made['samples']:,} samples in {made['shards']} "
        f"({made['parameters']} parameters, of step {made['step']})",
    )


def predict(
    context: typer.Context,
    run: RunFolder,
    features: Annotated[
        str,
        typer.Argument(
            metavar="FEATURES",
            help="A file of samples, as `pack --array` takes it, or a folder of shards.",
        ),
    ],
    output: Annotated[
        Path,
        _output(
            ".npy",
            ".npz",
            ".csv",
            text="Where predictions go: .npy, with scores .npz, or .csv, a line a sample.",
        ),
    ],
    best: Best = False,
    keys: Keys = None,
    as_json: AsJson = False,
):
    """Say what a run's model takes samples for (alone or under mpirun)."""
    comm = context.obj.world()
    from isthmus.jobs.using import predict_run

    made = predict_run(comm, run, features, output, best=best, keys=keys)
    context.obj.answer(as_json, made, f"{output}: predictions of {made['samples']:,} samples", output)


def export(
    context: typer.Context,
    run: RunFolder,
    output: Annotated[
        Path,
        _output(
            ".npz",
            ".safetensors",
            ".onnx",
            ".pt",
            text="The file to write: .npz, .safetensors, .onnx or .pt; its ending says which.",
        ),
    ],
    best: Best = False,
    as_json: AsJson = False,
):
    """Write a run's model in a form that other programs read."""
    from isthmus.folders.exporting import export_model

    made = export_model(run, output, best)
    context.obj.answer(as_json, made, f"{output}: {made['what']}", output)


def compress(
    context: typer.Context,
    run: RunFolder,
    accuracy_loss: Annotated[
        float, number("How much accuracy may be lost, as a share.", at_least=0, metavar="SHARE")
    ] = 0.005,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where the smaller model goes; else RUN/compressed.",
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="SHARDS", help="Samples to choose by; else the run's own.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORM",
            help="int8, int4, pruned or float32; several times; else the first three.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE",
            help="Of the units of inner layers; several times; else 1, 0.5, 0.375 and 0.25.",
            show_default=False,
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A run whose model they learn from, too.", show_default=False),
    ] = None,
    temperature: Annotated[
        float, typer.Option(metavar="NUMBER", help="What the teacher's scores are divided by.")
    ] = 1.0,
    epochs: Annotated[int, number("Of learning on, of what was cut.", at_least=1)] = 12,
    seed: Annotated[int, number("Of the order in which they learn.", at_least=0)] = 0,
    best: Best = False,
    keys: Keys = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace a smaller model.")
    ] = False,
    as_json: AsJson = False,
):
    """Try smaller models; keep the smallest that is as good (one process)."""
    from isthmus.jobs.compressing import compress_run, compression_words

    if not speaks():
        return  # under mpirun the first rank works, and the others have nothing to do
    wanted = {"weights": weights, "keep": keep}
    try:
        made = compress_run(
            run,
            output,
            validation=validation,
            best=best,
            keys=keys,
            teacher=teacher,
            overwrite=overwrite,
            tell=context.obj.tell,
            accuracy_loss=accuracy_loss,
            temperature=temperature,
            epochs=epochs,
            seed=seed,
            **{name: given for name, given in wanted.items() if given},
        )
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None
    context.obj.answer(as_json, made, compression_words(made), made["folder"])
