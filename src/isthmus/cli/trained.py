"""`isthmus evaluate | predict | export`: what is done with the model that a run has kept."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Best = Annotated[
    bool,
    typer.Option(
        "--best", metavar="", help="The parameters that the validation set liked best, not the last."
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
    as_json: AsJson = False,
):
    """Judge a run's model on a set of samples (alone or under mpirun)."""
    from isthmus.folders.metrics import metrics_in_words
    from isthmus.jobs.using import evaluate_run

    made = evaluate_run(context.obj.world(), run, shards, best=best, tell=context.obj.tell)
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
    as_json: AsJson = False,
):
    """Say what a run's model takes samples for (alone or under mpirun)."""
    from isthmus.jobs.using import predict_run

    made = predict_run(context.obj.world(), run, features, output, best=best)
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
