"""`isthmus report | submit | status | compare`: one verb a function, no logic of its own."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson, OtherCluster, RunFile
from isthmus.cli.sites import Joins, Listens, SiteName, site_job
from isthmus.terminal import Content


def report(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder of a run, or of answers.")
    ],
    as_json: AsJson = False,
):
    """Write a run's report: one page that needs nothing else."""
    from isthmus.pages.answers import is_of_answers, write_answers_report
    from isthmus.pages.report import write_report

    page = write_answers_report(folder) if is_of_answers(folder) else write_report(folder)
    context.obj.answer(as_json, {"report": str(page)}, f"report: {page}")


def submit(
    context: typer.Context,
    run: RunFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Print the sbatch script and submit nothing.")
    ] = False,
    cluster: OtherCluster = None,
    site: SiteName = None,
    listen: Listens = None,
    join: Joins = None,
    as_json: AsJson = False,
):
    """Submit the run to Slurm: one job for all sites, or with --site one of a job a site."""
    from isthmus.jobs.slurm.submit import script_of_run, submit_run

    part = site_job(site, listen, join, None)
    if dry_run:
        script = script_of_run(run, cluster, part)
        context.obj.answer(as_json, {"script": script}, [Content(script)])
        return
    made = submit_run(run, cluster, part)
    where = f"folder is {made['folder']}, its " if made["folder"] else ""
    context.obj.answer(as_json, made, f"job {made['job']}: submitted; its {where}log {made['log']}")


def status(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of all runs.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
):
    """List runs with their state, how far they are, and what is left."""
    from isthmus.folders.status import list_runs, status_table

    runs = list_runs(folder)
    context.obj.answer(as_json, {"runs": runs}, status_table(runs, folder))


def compare(
    context: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...", help="The folders of two finished runs or more.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="The page to write; else comparison.html beside the first run.",
        ),
    ] = None,
    as_json: AsJson = False,
):
    """Put runs side by side in one page: settings, curves, seconds, bytes, hashes."""
    from isthmus.pages.compare import LETTERS, compare
    from isthmus.pages.comparison_words import comparison_table

    if not 2 <= len({run.resolve() for run in runs}) == len(runs) <= len(LETTERS):
        raise typer.BadParameter(f"name two to {len(LETTERS)} runs, each once", param_hint="RUN RUN...")
    made = compare(runs, output)
    context.obj.answer(as_json, made, comparison_table(made))
