"""`isthmus verify`: whether a run's record is what the run has written."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson


def verify(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the .pub of the sites lie that signed it."),
    ] = None,
    as_json: AsJson = False,
):
    """Hold a run's record against its hashes and signatures."""
    from isthmus.folders.statements import verify_record

    made = {"run": str(run), **verify_record(run, keys)}
    words = f"{run}: {made['lines']} lines are as they were written"
    if made["sites"]:
        words += f"; {', '.join(made['sites'])} kept the hash of the first {made['kept_lines']}"
    words += ", signed" if keys is not None else "; --keys holds it against signatures"
    context.obj.answer(as_json, made, words)
