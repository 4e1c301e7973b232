"""`isthmus infer`: requests answered at the edge and across the link."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson


def infer(
    context: typer.Context,
    settings: Annotated[Path, typer.Argument(metavar="FILE.toml", help="Models, requests, and a mode.")],
    as_json: AsJson = False,
):
    """Answer a stream of requests at the edge and in the cloud (under mpirun)."""
    from isthmus.jobs.infer import inference_words, run_inference

    made = run_inference(context.obj.world(), settings, context.obj.tell)
    context.obj.answer(as_json, made, inference_words(made), made["output"])
