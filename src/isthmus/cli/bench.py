"""`isthmus bench collectives | kernels | links`: one verb a function, no logic of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson, ClusterFile, Verbs, number

bench = Verbs(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Time allreduces, kernels and links, beside the model and what bounds them.",
)

Links = Annotated[
    str, typer.Option(metavar="real|paced", help="Real, or held to the rates of the cluster file.")
]
Smallest = Annotated[
    int, number("The least size; then 4 times it, and so on ...", at_least=4, metavar="NBYTES")
]
Largest = Annotated[int, number("... and at last the largest.", at_least=4, metavar="NBYTES")]
Repetitions = Annotated[int, number("Of each result at most; see --seconds.", at_least=2)]
Seconds = Annotated[
    float, number("For the repetitions of each result, or as long as 2 of them take.", at_least=0.01)
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Where results go; those of the same verb are replaced."
    ),
]
FOLDER = Path("runs/bench")


@dataclass(frozen=True)
class Surroundings:
    """What the command line gives its verbs: world() -> communicator, tell(line),
    answer(as_json, table, words), and aftermath(code, folder) -> the exit code after mpirun's."""

    world: Callable
    tell: Callable
    answer: Callable
    aftermath: Callable


@bench.command()
def collectives(
    context: typer.Context,
    cluster: ClusterFile,
    links: Links = "real",
    algorithm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="May be given more than once; without it, all that go."),
    ] = None,
    compressor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:KEY=VALUE,...]",
            help="On the links, as in top_k:ratio=0.05; may be given more than once. Without it, "
            "none and int8.",
        ),
    ] = None,
    smallest: Smallest = 4,
    largest: Largest = 100_000_000,
    repetitions: Repetitions = 20,
    seconds: Seconds = 1.0,
    output: Output = FOLDER,
    as_json: AsJson = False,
):
    """Time allreduces by size, algorithm and compressor (under mpirun)."""
    from isthmus.benchmarking.bench import run_collectives
    from isthmus.benchmarking.options import CollectivesOptions

    chosen = {"compressors": tuple(compressor)} if compressor else {}
    options = _checked(
        CollectivesOptions,
        algorithms=tuple(algorithm or ()),
        links=links,
        smallest_nbytes=smallest,
        largest_nbytes=largest,
        repetitions=repetitions,
        seconds=seconds,
        **chosen,
    )
    _answer(
        context.obj,
        as_json,
        run_collectives(context.obj.world(), cluster, options, output, context.obj.tell),
    )


@bench.command()
def kernels(
    context: typer.Context,
    name: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KERNEL]...", help="Those to measure; without it, all."),
    ] = None,
    nbytes: Annotated[
        int, number("Bytes of each array; fewer than caches hold give another figure.", at_least=4096)
    ] = 384_000_000,
    repetitions: Annotated[int, number("Times each.", at_least=1)] = 5,
    output: Output = FOLDER,
    as_json: AsJson = False,
):
    """Time kernels on one core as a share of a triad of the same run."""
    from isthmus.benchmarking.bench import run_kernels
    from isthmus.benchmarking.kernels import KernelOptions

    options = _checked(KernelOptions, names=tuple(name or ()), nbytes=nbytes, repetitions=repetitions)
    _answer(context.obj, as_json, run_kernels(options, output, context.obj.tell))


@bench.command()
def links(
    context: typer.Context,
    cluster: ClusterFile,
    links: Links = "real",
    smallest: Smallest = 4,
    largest: Largest = 4_000_000,
    repetitions: Repetitions = 20,
    seconds: Seconds = 0.5,
    output: Output = FOLDER,
    as_json: AsJson = False,
):
    """Time ping-pong and streams between sites and inside them (under mpirun)."""
    from isthmus.benchmarking.bench import run_links
    from isthmus.benchmarking.options import LinksOptions

    options = _checked(
        LinksOptions,
        links=links,
        smallest_nbytes=smallest,
        largest_nbytes=largest,
        repetitions=repetitions,
        seconds=seconds,
    )
    _answer(
        context.obj, as_json, run_links(context.obj.world(), cluster, options, output, context.obj.tell)
    )


def _checked(kind, **values):
    """Return the options, or say which argument is wrong."""
    try:
        return kind(**values)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None


def _answer(surroundings, as_json, table):
    surroundings.answer(
        as_json,
        table,
        [f"results: {table['file']}", *(f"picture: {path}" for path in table.get("pictures", ()))],
    )
