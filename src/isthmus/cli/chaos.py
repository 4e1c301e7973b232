"""`isthmus chaos`: harms ranks of a run at named moments, and says whether it kept what is promised."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson, RunFile, number
from isthmus.recovery.moments import KINDS, LINK_KINDS


def chaos(
    context: typer.Context,
    run: RunFile,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FAULTS.toml", help="What happens to which ranks when.", show_default=False
        ),
    ] = None,
    random: Annotated[int | None, number("Runs with one or two faults at random.", at_least=1)] = None,
    kinds: Annotated[
        str,
        typer.Option(
            metavar="KIND,...",
            help=f"Of faults at random: {', '.join(KINDS)}; with --sites {', '.join(LINK_KINDS)} too.",
        ),
    ] = "kill",
    sites: Annotated[
        bool,
        typer.Option("--sites", metavar="", help="Each site is a job of its own, which may come back."),
    ] = False,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            help="With --sites: the others call it; the hub where left out. Several: each may be the "
            "next hub.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, number("Of what is drawn.", at_least=0)] = 0,
    seconds: Annotated[float, number("After which a run counts as hung.", above=0, at_most=1e6)] = 600.0,
    as_json: AsJson = False,
):
    """Harm ranks of a run at named moments; play it again: each sample once, same bits?"""
    from isthmus.jobs.chaos import chaos_words, play_faults
    from isthmus.jobs.fault_plans import listening, planned_faults, random_faults
    from isthmus.jobs.settings import RunSettings
    from isthmus.jobs.site_fault_plans import random_site_faults

    if (plan is None) == (random is None):
        raise typer.BadParameter("give either --plan or --random", param_hint="--plan")
    wanted = kinds.split(",")
    known = (*KINDS, *LINK_KINDS) if sites else KINDS
    if unknown := [each for each in wanted if each not in known]:
        more = f", and {', '.join(LINK_KINDS)} with --sites" if {*unknown} <= {*LINK_KINDS} else ""
        raise typer.BadParameter(
            f"{', '.join(unknown)}: is none of {', '.join(known)}{more}", param_hint="--kinds"
        )
    if listen and not sites:
        raise typer.BadParameter(
            "sites that are one job do not listen; add --sites", param_hint="--listen"
        )
    calls = listening(RunSettings.from_toml(run).read_cluster(), listen or ()) if sites else ()
    if plan:
        faults = planned_faults(plan)
    elif sites:
        faults = random_site_faults(run, random, seed, wanted, calls)
    else:
        faults = random_faults(run, random, seed, wanted)
    made = play_faults(run, faults, seconds, context.obj.tell, listen=calls)
    context.obj.answer(as_json, made, chaos_words(made))
    if made["wrong"]:
        raise typer.Exit(19)
