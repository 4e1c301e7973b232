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
    str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where others call this --site.")
]
Joins = Annotated[
    list[str] | None,
    typer.Option(
        "--join", metavar="HOST:PORT", help="Where this --site calls one that listens; once for each."
    ),
]


def site_job(
    site: str | None, listen: str | None, join: list[str] | None, folder: object
) -> "SiteJob | None":
    """Return what the options say; None where all sites are one job. BadParameter if they do not fit.

    folder: what --resume or --name says.
    """
    if site is None and listen is None and not join:
        return None
    if site is None or (listen is None and not join):
        raise typer.BadParameter(
            "goes with --listen HOST:PORT on one site, or more, and --join HOST:PORT on all others",
            param_hint="--site",
        )
    if listen is None and folder is not None:
        raise typer.BadParameter(
            "go with --listen: the site that listens has the run's folder; leave them out here",
            param_hint="--resume and --name",
        )
    from isthmus.jobs.sites import SiteJob
    from isthmus.links.meeting import address_of

    def address(text, option):
        try:
            return address_of(text)
        except ValueError as problem:
            raise typer.BadParameter(str(problem), param_hint=option) from None

    listens = listen and address(listen, "--listen")
    calls = tuple(address(each, "--join") for each in join or ())
    for each, text in zip(calls, join or ()):
        if calls.count(each) > 1:
            raise typer.BadParameter(f"{text} is given twice; leave one out", param_hint="--join")
        if each == listens:
            raise typer.BadParameter(
                f"{text} is where this site listens; --join names other sites", param_hint="--join"
            )
    return SiteJob(site, listens or None, calls)
