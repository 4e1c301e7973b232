"""The command line: one verb a function, no logic of its own."""

import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings as python_warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from isthmus.benchmarking.verbs import Surroundings, bench
from isthmus.runs.failures import failure_of, last_words, told_by_another
from isthmus.runs.verbs import compare, report, status, submit
from isthmus.testbed.verbs import testbed

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
    help="Train one model over machines on both sides of a narrow link: plan, run, check.",
    epilog="Exit codes: 0 done, 2 wrong arguments, 3 to 15 by cause, 130 interrupted; a page for "
           "each is in docs/errors.")
app.add_typer(bench, name="bench")
app.add_typer(testbed, name="testbed")
# Click's ClickException, wherever Typer has it: newer versions bring their own copy of click.
CommandLineError = typer.BadParameter.__mro__[2]
text = Console(stderr=True, highlight=False, soft_wrap=True)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run's settings file.")]
OtherCluster = Annotated[Path | None, typer.Option(
    metavar="FILE", help="A cluster file to take instead of the one in the settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.callback()
def options(context: typer.Context, debug: Annotated[bool, typer.Option(
        "--debug", help="Show the traceback of an error.")] = False):
    """Note what holds for every verb."""
    global show_tracebacks
    show_tracebacks = debug
    context.obj = Surroundings(world, tell, answer)


show_tracebacks, told = False, set()  # told: the warnings that were


@app.command()
def check(
        run: Annotated[Path | None, typer.Argument(
            metavar="[RUN.toml]", help="A run's settings file, to check against this machine.",
            show_default=False)] = None,
        cluster: OtherCluster = None,
        as_json: AsJson = False):
    """Look for what would stop or slow a run (alone or under mpirun)."""
    from isthmus.runs.check import check, check_words
    if cluster and not run:
        raise typer.BadParameter("goes with a run's settings; add RUN.toml", param_hint="--cluster")
    made = check(world, run, cluster)
    answer(as_json, made, check_words(made))
    raise typer.Exit(made["exit_code"])


@app.command()
def pack(
        folder: Annotated[Path, typer.Argument(help="Where the shards and their manifest go.")],
        array: Annotated[list[str], typer.Option(
            "--array", "-a", metavar="NAME=FILE[:MEMBER]",
            help="An array by name: IDX (also .gz), file.npz:array or file.h5:dataset. Give "
                 "features first, then targets.")],
        shards: Annotated[int, typer.Option(min=1, help="Number of shards.")] = 64,
        compression: Annotated[str, typer.Option(help="lz4, zstd, gzip or none.")] = "lz4",
        overwrite: Annotated[bool, typer.Option(help="Replace a packed set.")] = False,
        as_json: AsJson = False):
    """Turn arrays into a folder of HDF5 shards with checksums."""
    from isthmus.shards.packing import pack_shards
    from isthmus.shards.sources import read_arrays
    sources = {}
    for item in array:
        name, equals, source = item.partition("=")
        if not (name and equals and source):
            raise typer.BadParameter(f"{item!r}: write NAME=FILE, as in features=images.npz:x",
                                     param_hint="--array")
        sources[name] = source
    packed = pack_shards(read_arrays(sources), folder, shards=shards, compression=compression,
                         overwrite=overwrite)
    answer(as_json, {"folder": str(folder), "shards": len(packed.samples),
                     "samples": sum(packed.samples), "nbytes": sum(packed.nbytes)},
           f"{folder}: {sum(packed.samples)} samples in {len(packed.samples)} shards, "
           f"{sum(packed.nbytes) / 1e6:.1f} MB")


@app.command()
def calibrate(
        run: RunFile,
        output: Annotated[Path, typer.Option("--output", "-o", help="The cluster file to write.")],
        repetitions: Annotated[int, typer.Option(min=1, help="Times of which to take the median.")]
        = 20,
        as_json: AsJson = False):
    """Measure ranks and links (under mpirun); write a cluster file."""
    from isthmus.runs.calibrate import calibrate
    table = calibrate(world(), run, output, repetitions, tell)
    answer(as_json, table, f"{output}: written; name it under \\[cluster] file in {run}")


@app.command()
def plan(
        run: RunFile,
        cluster: OtherCluster = None,
        launch: Annotated[bool, typer.Option(
            "--launch", help="Add the mpirun line, and what the links want of TCP.")] = False,
        as_json: AsJson = False):
    """Decide which rank holds which shard, and predict the times."""
    from isthmus.runs.launch import launch_advice, launch_lines
    from isthmus.runs.plan import make_plan, plan_table
    chosen, its_cluster, advice = make_plan(run, cluster)
    other = ["--cluster", cluster] if cluster else []
    start = launch_advice(its_cluster, "train", run, *other)
    answer(as_json, chosen.to_dict() | {"advice": advice} | ({"launch": start} if launch else {}),
           [*plan_table(chosen, its_cluster, advice), *(launch_lines(start) if launch else [])])


@app.command()
def train(
        run: RunFile,
        resume: Annotated[Path | None, typer.Option(
            metavar="FOLDER", help="Go on with the run in this folder from its checkpoint.")] = None,
        cluster: OtherCluster = None,
        name: Annotated[str | None, typer.Option(
            help="What the run's folder is called; if it has a checkpoint, go on from that.")] = None,
        as_json: AsJson = False):
    """Plan, scatter and train (under mpirun); leave a folder with a report."""
    from isthmus.runs.report import write_report
    from isthmus.runs.train import train
    from isthmus.topology.agreement import from_root
    comm = world()
    summary = train(comm, run, tell, resume=resume, cluster=cluster, name=name)
    page = from_root(comm, lambda: str(write_report(Path(summary["folder"]))))
    step = summary["step"]
    answer(as_json, summary | {"report": page},
           f"accuracy {summary['accuracy']:.4f} after {summary['steps']} steps; a step took "
           f"{1e3 * step['measured_seconds']:.1f} ms, predicted "
           f"{1e3 * step['predicted_seconds']:.1f} ms\nreport: {page}")


@app.command()
def simulate(
        file: Annotated[Path, typer.Argument(
            metavar="CLUSTER_OR_RUN.toml", help="A cluster file, or a run's settings file.")],
        steps: Annotated[int, typer.Option(min=1, help="Steps to simulate.")] = 100,
        stragglers: Annotated[str, typer.Option(
            metavar="NUMBER|FOLDER", help="How much a rank's computing varies: standard deviation "
            "over mean, or the folder of a run to draw from.")] = "0",
        local_steps: Annotated[int, typer.Option(
            min=1, help="Steps from one synchronisation to the next.")] = 1,
        buckets: Annotated[int, typer.Option(
            min=1, help="Parts of the gradient, summed while the rest is computed.")] = 1,
        size: Annotated[int | None, typer.Option(
            min=1, help="Entries of the gradient; else the run's, or a million.")] = None,
        batch_size: Annotated[int | None, typer.Option(
            min=1, help="Samples of a step, all ranks together; else the run's, or 256.")] = None,
        edge_sites: Annotated[int, typer.Option(
            min=0, help="Simulate up to so many edge sites, other links and compressors; 0: none.")]
        = 64,
        cluster: OtherCluster = None,
        seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
        output: Annotated[Path | None, typer.Option(
            "--output", "-o", metavar="FOLDER", help="Where numbers and pictures go.")] = None,
        as_json: AsJson = False):
    """Simulate steps of a cluster of any size, and how it scales."""
    from isthmus.runs.simulate import simulate_file, simulation_words
    made = simulate_file(file, steps=steps, local_steps=local_steps, buckets=buckets, size=size,
                         stragglers=stragglers, seed=seed, batch_size=batch_size,
                         edge_sites=edge_sites, output=output, other_cluster=cluster)
    answer(as_json, made, simulation_words(made))


app.command()(report)
app.command()(compare)
app.command()(submit)
app.command()(status)


def answer(as_json, table, words):
    """Print what a verb has to say, from one rank: an object on stdout, or words on stderr."""
    if not speaks():
        return
    if as_json:
        print(json.dumps(table))
    else:
        for part in [words] if isinstance(words, str) else words:
            text.print(part)


def tell(line, passing=False):
    """Print a line of progress, from one rank; on a terminal the next one replaces a passing one."""
    if not speaks():
        return
    if text.is_terminal:
        text.file.write("\r\x1b[2K")  # what the passing line has left there
    text.print(line, markup=False, end="" if passing and text.is_terminal else "\n")


def speaks():
    """Whether this process prints what all ranks have to say: rank 0, or no rank at all."""
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


class Warnings(logging.Handler):
    """Prints what any rank warns of, a step that stalls."""

    def emit(self, record):
        if record.levelno == logging.WARNING:
            text.print(("\r\x1b[2K" if text.is_terminal else "") + record.getMessage(), markup=False,
                       style="yellow")


warnings = Warnings(logging.WARNING)


def world():
    """Return COMM_WORLD: the one place where the library is told of it."""
    from mpi4py import MPI
    return MPI.COMM_WORLD


def world_if_there():
    """Return COMM_WORLD, or None where MPI was not started: ending is no reason to start it."""
    MPI = sys.modules.get("mpi4py.MPI")  # noqa: N806
    return MPI and MPI.COMM_WORLD


def main():
    """Run a verb; every error becomes one line, printed once, and a numbered exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    python_warnings.showwarning = warn
    logging.getLogger("isthmus").addHandler(warnings)
    try:
        code = app(standalone_mode=False, prog_name="isthmus") or 0
        together = True
    except CommandLineError as problem:
        code, together = problem.exit_code, True
        verb = problem.ctx.command_path if getattr(problem, "ctx", None) else "isthmus"
        line = problem.format_message().rstrip(".").replace("Input should", "must")
        say([f"isthmus: {line[0].lower()}{line[1:]}; see `{verb} --help`"] * speaks())
    except typer.Abort:
        code, together = 130, False
    except KeyboardInterrupt:
        code, together = 130, False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if told_by_another(world_if_there()):
            signal.raise_signal(signal.SIGTERM)  # mpirun ends all ranks because one of them has failed
        say(["isthmus: interrupted; a run with checkpoints goes on with `isthmus train RUN.toml "
             "--resume FOLDER`"] * speaks())
    except Exception as problem:
        code, together = failure_of(problem)["code"], getattr(problem, "everywhere", False)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        say(last_words(problem, world_if_there(), speaks()))
    end(code, together)


def say(lines):
    """Print what ends the job, with the traceback where that is wanted."""
    if lines and show_tracebacks:
        traceback.print_exc()
    for line in lines:
        text.print(line, markup=False, style="red" if line.startswith("isthmus:") else None)


def warn(message, *_):
    """Print a warning as one line, once, from one rank."""
    line = f"warning: {' '.join(str(message).split())}"
    if speaks() and line not in told:
        told.add(line)
        text.print(line, markup=False, style="yellow")


def end(code, together):
    """Leave with `code`; one rank that fails alone takes the others with it."""
    comm = world_if_there()
    if comm is None and not speaks():
        code = 0  # a code here would have mpirun end rank 0 before it has told what is wrong
    if code and not together and comm is not None and comm.size > 1:
        sys.stderr.flush()
        time.sleep(0.1)  # what is said on standard error comes before mpirun's own words
        comm.Abort(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
