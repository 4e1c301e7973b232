"""`isthmus schedule`: tasks of a graph on the ranks of a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson


def schedule(
    context: typer.Context,
    graph: Annotated[Path, typer.Argument(metavar="GRAPH.toml", help="The file of tasks and edges.")],
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="best, link_aware, heft, cpop, min_load, greedy or genetic; else the file's.",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", metavar="", help="Tell what every method's schedule takes.")
    ] = False,
    run: Annotated[
        bool, typer.Option("--run", metavar="", help="Run the tasks (under mpirun), and measure.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where numbers and pictures go."),
    ] = None,
    as_json: AsJson = False,
):
    """Decide which rank runs which task when, over links that carry one message after another."""
    from isthmus.jobs.schedule import plan_tasks, run_file, schedule_words, write_schedule

    if run:
        table = run_file(context.obj.world(), graph, method, compare, output, context.obj.tell)
    else:
        table = plan_tasks(graph, method, compare)[2]
        table = write_schedule(output, table) if output else table
    context.obj.answer(as_json, table, schedule_words(table))
