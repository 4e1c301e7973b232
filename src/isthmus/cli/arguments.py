"""What the verbs' arguments have in common: how they are named, checked and helped with."""

import math
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from isthmus.mpirun import speaks
from isthmus.terminal import leave_unsaid, written

HELP = {"help_option_names": ["-h", "--help"]}
"""For each group of verbs: what shows their help."""


class _Helped:
    """Help that is a result as others are, from one rank, and -h as plain as other flags."""

    def get_help_option(self, ctx):
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option

    def format_help(self, ctx, formatter):
        if not speaks():
            leave_unsaid("stdout")
        with written():
            super().format_help(ctx, formatter)


class Verb(_Helped, TyperCommand):
    """One verb."""


class Group(_Helped, TyperGroup):
    """A group of verbs."""


class Verbs(typer.Typer):
    """An app of verbs whose help is `_Helped`."""

    def __init__(self, **options):
        super().__init__(cls=Group, context_settings=HELP, **options)

    def command(self, *names, **options):
        return super().command(*names, cls=Verb, **options)


AsJson = Annotated[
    bool, typer.Option("--json", metavar="", help="One JSON object in place of lines and tables.")
]
WithBar = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        metavar="",
        help="Draw a bar, or none; else where standard error is a terminal.",
        show_default=False,
    ),
]
RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run's settings file.")]
ClusterFile = Annotated[Path, typer.Argument(metavar="CLUSTER.toml", help="The cluster file.")]
OtherCluster = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A cluster file to take instead of the one in the settings."),
]


def number(text, *names, at_least=None, above=None, at_most=math.inf, metavar="NUMBER"):
    """Return an option that takes a number, which is refused in one line where it is too small or large.

    above: what a finite number must be more than.

    The least value is checked here and told in `text`: a range would be help of 20 columns more.
    """

    def check(value):
        if value is not None and at_least is not None and not value >= at_least:
            raise typer.BadParameter(f"must be at least {at_least}, not {value:g}")
        if value is not None and above is not None and not above < value < math.inf:
            raise typer.BadParameter(f"must be a finite number above {above}, not {value:g}")
        if value is not None and value > at_most:
            raise typer.BadParameter(f"must be at most {at_most:g}, not {value:g}")
        return value

    return typer.Option(*names, metavar=metavar, help=text, callback=check)
