"""`isthmus testbed up | run | down`: one verb a function, no logic of its own."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson, ClusterFile, Verbs

testbed = Verbs(
    no_args_is_help=True, help="A cluster on this machine alone: emulated sites and links (root)."
)

BedName = Annotated[
    str, typer.Option("--name", metavar="NAME", help="Which testbed, where there are several.")
]


@testbed.command()
def up(
    context: typer.Context,
    cluster: ClusterFile,
    name: BedName = "testbed",
    untuned: Annotated[
        bool,
        typer.Option(
            "--untuned", metavar="", help="Leave TCP as the machine has it, as where nobody is root."
        ),
    ] = False,
    as_json: AsJson = False,
):
    """Make the cluster's sites and links; nothing to do if they are up."""
    from isthmus.cluster.cluster import Cluster
    from isthmus.testbed import describe, up

    made = up(Cluster.from_toml(cluster), name, tuned=False if untuned else None)
    found = describe(name)
    sites = "; ".join(
        f"site {site_name} in {site['namespace']} at {site['address']}"
        for site_name, site in found["sites"].items()
    )
    context.obj.answer(
        as_json,
        found | {"made": made},
        f"testbed: {'up' if made else 'was up already'}, emulated, latencies by {found['latency']}: "
        f"{sites}",
    )


@testbed.command("run")
def run_on_testbed(
    context: typer.Context,
    cluster: ClusterFile,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND...", help="What to start in each rank: -- isthmus train RUN.toml"
        ),
    ],
    name: BedName = "testbed",
    as_json: AsJson = False,
):
    """Start a command in every rank, messages going over the links."""
    from isthmus.cluster.cluster import Cluster
    from isthmus.testbed import run

    with TemporaryDirectory(prefix="isthmus-") as folder:
        note = Path(folder, "run")
        code, sites = run(
            Cluster.from_toml(cluster), command, sys.stderr if as_json else None, name, note
        )
        code = context.obj.aftermath(code, note.read_text() if note.exists() else None)
    context.obj.answer(
        as_json,
        {"exit_code": code, "emulated": True, "sites": sites},
        "testbed: emulated links; "
        + "; ".join(
            f"site {site} sent {nbytes['sent_nbytes'] / 1e6:.1f} MB, received "
            f"{nbytes['received_nbytes'] / 1e6:.1f} MB"
            for site, nbytes in sites.items()
        ),
    )
    raise typer.Exit(code)


@testbed.command()
def down(context: typer.Context, name: BedName = "testbed", as_json: AsJson = False):
    """End the testbed and all that runs on it."""
    from isthmus.testbed import down

    was_up = down(name)
    context.obj.answer(as_json, {"was_up": was_up}, f"testbed: {'down' if was_up else 'none was up'}")
