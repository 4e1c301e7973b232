"""`isthmus infer`: requests answered at the edge and across the link."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson, number
from isthmus.spare import if_possible

LOOPBACK = "127.0.0.1"


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
    ] = LOOPBACK,
    seconds: Annotated[
        float | None, number("With --serve: for how long; else until stopped.", above=0)
    ] = None,
    as_json: AsJson = False,
):
    """Answer requests at the edge and in the cloud (under mpirun)."""
    for name, given in {"--host": host != LOOPBACK, "--seconds": seconds is not None}.items():
        if given and serve is None:
            raise typer.BadParameter("goes with --serve PORT", param_hint=name)
    comm, door = context.obj.world(), None if serve is None else (host, serve, seconds)
    from isthmus.jobs.infer import run_inference
    from isthmus.links.agreement import from_root
    from isthmus.pages.answer_words import inference_words
    from isthmus.pages.answers import write_answers_report

    made, page = run_inference(comm, settings, context.obj.tell, door), None
    if output := made.get("output"):
        page = from_root(
            comm,
            lambda: if_possible(
                lambda: str(write_answers_report(output)),
                "the report",
                f"make it with `{shlex.join(['isthmus', 'report', output])}`",
            ),
        )
        made["report"] = page
    lines = [*inference_words(made), *[f"report: {page}"] * bool(page)]
    context.obj.answer(as_json, made, lines, output)
