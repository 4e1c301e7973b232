"""The options of `isthmus train` with which each site is a job of its own."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from isthmus.jobs.sites import SiteJob

SiteName = Annotated[
    str | None,
    typer.Option(
        "--site", metavar="NAME", help="This job is that site alone; others are jobs of their own."
    ),
]
Listens = Annotated[
    str | None,
    typer.Option("--listen", metavar="HOST:PORT", help="Where this --site waits for all others."),
]
Joins = Annotated[
    str | None,
    typer.Option("--join", metavar="HOST:PORT", help="Where this --site calls the one that waits."),
]


def site_job(site: str | None, listen: str | None, join: str | None, folder: object) -> "SiteJob | None":
    """Return what the options say; None where all sites are one job. BadParameter if they do not fit.

    folder: what --resume or --name says.
    """
    if site is None and listen is None and join is None:
        return None
    if site is None or (listen is None) == (join is None):
        raise typer.BadParameter(
            "goes with --listen HOST:PORT on one site, and --join HOST:PORT on all others",
            param_hint="--site",
        )
    if join is not None and folder is not None:
        raise typer.BadParameter(
            "go with --listen: the site that listens has the run's folder; leave them out here",
            param_hint="--resume and --name",
        )
    from isthmus.jobs.sites import SiteJob
    from isthmus.links.meeting import address_of

    try:
        return SiteJob(site, address_of(listen or join or ""), listens=listen is not None)
    except ValueError as problem:
        raise typer.BadParameter(str(problem), param_hint="--listen" if listen else "--join") from None
