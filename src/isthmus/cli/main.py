"""The command line: one verb a function, no logic of its own."""

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import isthmus
from isthmus.cli.arguments import AsJson, OtherCluster, RunFile, Verbs, WithBar, number
from isthmus.cli.bench import Surroundings, bench
from isthmus.cli.chaos import chaos
from isthmus.cli.ending import Ending
from isthmus.cli.infer import infer
from isthmus.cli.keys import keys
from isthmus.cli.packing import pack
from isthmus.cli.progress import columns_of_terminal, draw_bar
from isthmus.cli.runs import compare, report, status, submit
from isthmus.cli.schedule import schedule
from isthmus.cli.sites import Joins, Listens, SiteName, site_job
from isthmus.cli.testbed import testbed
from isthmus.cli.trained import compress, evaluate, export, predict
from isthmus.cli.verify import verify
from isthmus.fabric import leave_out_fabric
from isthmus.json_text import dumps
from isthmus.mpirun import speaks, tolerates_faults
from isthmus.segments import remove_segments
from isthmus.spare import if_possible
from isthmus.terminal import Content, Terminal

app = Verbs(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Train one model over machines on both sides of a narrow link: plan, run, check.",
    epilog="Exit codes: 0 done, 2 wrong arguments, 3 to 21 by cause, 130 interrupted; a page for "
    "each is in docs/errors.",
)
app.add_typer(bench, name="bench")
app.add_typer(testbed, name="testbed")
app.add_typer(keys, name="keys")
# Click's ClickException, wherever Typer has it: newer versions bring their own copy of click.
CommandLineError = typer.BadParameter.__mro__[2]
span = partial(number, at_least=1e-9, at_most=1e9)  # hours between failures, seconds that they cost
terminal = Terminal()
ending = Ending(terminal, lambda: None, lambda: True)  # main() makes the one of this process


def show_version(wanted: bool):
    """Print the version and end, where --version is given."""
    if wanted:
        if speaks():
            terminal.result(f"isthmus {isthmus.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            help="Show the version and end.",
            is_eager=True,
            callback=show_version,
        ),
    ] = False,
):
    """Note what holds for every verb."""
    ending.debug = debug
    context.obj = Surroundings(world, tell, answer, after_mpirun)


@app.command()
def check(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN.toml]",
            help="A run's settings file, to check against this machine.",
            show_default=False,
        ),
    ] = None,
    cluster: OtherCluster = None,
    as_json: AsJson = False,
):
    """Look for what would stop or slow a run (alone or under mpirun)."""
    from isthmus.checks import check, check_words

    if cluster and not run:
        raise typer.BadParameter("goes with a run's settings; add RUN.toml", param_hint="--cluster")
    made = check(world, run, cluster)
    answer(as_json, made, check_words(made))
    raise typer.Exit(made["exit_code"])


app.command()(pack)


@app.command()
def calibrate(
    run: RunFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The cluster file to write.")
    ],
    repetitions: Annotated[int, number("Times of which to take the median.", at_least=1)] = 20,
    as_json: AsJson = False,
):
    """Measure ranks and links (under mpirun); write a cluster file."""
    comm = world()
    from isthmus.measuring.calibrate import calibrate

    table = calibrate(comm, run, output, repetitions, tell)
    answer(as_json, table, f"{output}: written; name it under [cluster] file in {run}", output)


@app.command()
def plan(
    run: RunFile,
    cluster: OtherCluster = None,
    launch: Annotated[
        bool,
        typer.Option(
            "--launch", metavar="", help="Add the mpirun line, and what the links want of TCP."
        ),
    ] = False,
    as_json: AsJson = False,
):
    """Decide which rank holds which shard, and predict the times."""
    from isthmus.jobs.launch import launch_advice, launch_lines
    from isthmus.jobs.plan import make_plan, plan_table

    chosen, its_cluster, advice = make_plan(run, cluster)
    other = ["--cluster", cluster] if cluster else []
    start = launch_advice(its_cluster, "train", run, *other)
    answer(
        as_json,
        chosen.to_dict() | {"advice": advice} | ({"launch": start} if launch else {}),
        [*plan_table(chosen, its_cluster, advice), *(launch_lines(start) if launch else [])],
    )


@app.command()
def train(
    run: RunFile,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Go on with the run in this folder from its checkpoint."),
    ] = None,
    cluster: OtherCluster = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the run's folder is called; if it has a checkpoint, go on from that.",
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Let changes arrive in the order of the run in this folder: same bits.",
        ),
    ] = None,
    site: SiteName = None,
    listen: Listens = None,
    join: Joins = None,
    progress: WithBar = None,
    as_json: AsJson = False,
):
    """Plan, scatter and train (under mpirun); leave a folder with a report."""
    part = site_job(site, listen, join, resume or name)
    comm = world()
    from isthmus.folders.metrics import outcome_in_words
    from isthmus.jobs.train import train
    from isthmus.links.agreement import from_root

    terminal.columns = from_root(comm, lambda: columns_of_terminal(progress))
    show = partial(draw_bar, terminal) if terminal.columns else None
    summary = train(
        comm, run, tell, resume=resume, cluster=cluster, name=name, replay=replay, show=show, part=part
    )
    terminal.end_drawing()
    folder = summary["folder"]
    if summary.get("lost_ranks") and tolerates_faults():
        comm = comm.Shrink()
    page = None

    def draw():  # the others are not told where: this would go past sealed links
        nonlocal page
        from isthmus.pages.report import write_report

        page = if_possible(
            lambda: str(write_report(folder)),
            "the report",
            f"make it with `{shlex.join(['isthmus', 'report', folder])}`",
        )

    if summary.pop("is_here"):
        from_root(comm, draw)
    answer(
        as_json,
        summary | {"report": page},
        [outcome_in_words(summary), *[f"report: {page}"] * bool(page)],
        Path(folder, "summary.json"),
    )


@app.command()
def simulate(
    file: Annotated[
        Path,
        typer.Argument(metavar="CLUSTER_OR_RUN.toml", help="A cluster file, or a run's settings file."),
    ],
    steps: Annotated[int, number("Steps to simulate.", at_least=1)] = 100,
    stragglers: Annotated[
        str,
        typer.Option(
            metavar="NUMBER|FOLDER",
            help="How much a rank's computing varies: standard deviation "
            "over mean, or the folder of a run to draw from.",
        ),
    ] = "0",
    local_steps: Annotated[
        int | None,
        number("Steps from one synchronisation to the next; else the run's, or 1.", at_least=1),
    ] = None,
    buckets: Annotated[
        int, number("Parts of the gradient, summed while the rest is computed.", at_least=1)
    ] = 1,
    size: Annotated[
        int | None, number("Entries of the gradient; else the run's, or a million.", at_least=1)
    ] = None,
    batch_size: Annotated[
        int | None, number("Samples of a step, all ranks together; else the run's, or 256.", at_least=1)
    ] = None,
    edge_sites: Annotated[
        int,
        number("Simulate up to so many edge sites, other links and compressors; 0: none.", at_least=0),
    ] = 64,
    rank_mtbf: Annotated[
        float | None, span("Hours from one failure of a rank to its next; else none.")
    ] = None,
    site_mtbf: Annotated[float | None, span("The same of a site.")] = None,
    checkpoint_seconds: Annotated[float, span("Of writing a checkpoint.")] = 1.0,
    restart_seconds: Annotated[float, span("Until a run that has ended goes on.")] = 60.0,
    recovery_seconds: Annotated[float, span("Until one that survives goes on.")] = 1.0,
    cluster: OtherCluster = None,
    seed: Annotated[int, number("Of what is drawn.", at_least=0)] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where numbers and pictures go."),
    ] = None,
    as_json: AsJson = False,
):
    """Simulate steps of a cluster of any size, and how it scales."""
    from isthmus.jobs.failing import Failing
    from isthmus.jobs.simulate import simulate_file, simulation_words

    fails = rank_mtbf is not None or site_mtbf is not None
    costs = checkpoint_seconds, restart_seconds, recovery_seconds
    made = simulate_file(
        file,
        steps=steps,
        local_steps=local_steps,
        buckets=buckets,
        size=size,
        stragglers=stragglers,
        seed=seed,
        batch_size=batch_size,
        edge_sites=edge_sites,
        output=output,
        other_cluster=cluster,
        failing=Failing(rank_mtbf, site_mtbf, *costs) if fails else None,
    )
    answer(as_json, made, simulation_words(made))


app.command()(schedule)
app.command()(evaluate)
app.command()(predict)
app.command()(export)
app.command()(compress)
app.command()(infer)
app.command()(verify)
app.command()(chaos)
app.command()(report)
app.command()(compare)
app.command()(submit)
app.command()(status)


def answer(as_json, table, words, stands=None):
    """Give what a verb has to say on standard output, from one rank: an object, or lines and tables.

    stands: where the verb's work is, which then stands although this cannot be said.
    """

    def give():
        if as_json:
            terminal.result(Content(f"{dumps(table)}\n"))
            return
        for part in [words] if isinstance(words, str) else words:
            terminal.result(part)

    if not speaks():
        return
    if stands:
        if_possible(give, "the last line", f"the work is done: {stands}")
    else:
        give()


def tell(line, passing=False):
    """Print a line of progress on standard error, from one rank; the next one replaces a passing one."""
    if speaks() and not (passing and terminal.columns):  # the bar says it
        terminal.tell(line, passing=passing)


def after_mpirun(code, folder):
    """Say what became of the run in `folder` once mpirun has ended with `code`; return the exit code."""
    from isthmus.jobs.aftermath import aftermath

    code, lines = aftermath(code, folder)
    for line in lines:
        terminal.tell(line, "red")
    return code


def world():
    """Return COMM_WORLD: the one place where the library is told of it, before anything imports MPI."""
    if "mpi4py.MPI" not in sys.modules:
        leave_out_fabric()
        if os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0") == "0":
            remove_segments()
    from mpi4py import MPI

    return MPI.COMM_WORLD


def world_if_there():
    """Return COMM_WORLD, or None where MPI was not started: ending is no reason to start it."""
    MPI = sys.modules.get("mpi4py.MPI")  # noqa: N806
    return MPI and MPI.COMM_WORLD


def main():
    """Run a verb; every error becomes one line, printed once, and a numbered exit code."""
    global ending
    ending = Ending(terminal, world_if_there, speaks)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot write ends no verb
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    ending.run(lambda: app(standalone_mode=False, prog_name="isthmus"), CommandLineError)


if __name__ == "__main__":
    main()
