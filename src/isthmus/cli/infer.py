"""`isthmus infer`: requests answered at the edge and across the link."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson


def infer(
    context: typer.Context,
    settings: Annotated[Path, typer.Argument(metavar="FILE.toml", help="Models, requests, and a mode.")],
    serve: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Let programs ask edge ranks over HTTP (KServe V2); 0: any port.",
            show_default=False,
            min=0,
            max=65535,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="With --serve: where it listens.")
    ] = "127.0.0.1",
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER", help="With --serve: for how long; else until stopped.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
):
    """Answer requests at the edge and in the cloud (under mpirun)."""
    from isthmus.jobs.infer import inference_words, run_inference

    door = None if serve is None else (host, serve, seconds)
    made = run_inference(context.obj.world(), settings, context.obj.tell, door)
    context.obj.answer(as_json, made, inference_words(made), made.get("output"))
