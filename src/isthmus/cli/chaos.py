"""`isthmus chaos`: harms ranks of a run at named moments, and says whether it kept what is promised."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson, RunFile, number
from isthmus.recovery.moments import KINDS


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
        str, typer.Option(metavar="KIND,...", help=f"Of faults at random: {', '.join(KINDS)}.")
    ] = "kill",
    seed: Annotated[int, number("Of what is drawn.", at_least=0)] = 0,
    seconds: Annotated[float, number("After which a run counts as hung.", above=0)] = 600.0,
    as_json: AsJson = False,
):
    """Harm ranks of a run at named moments; play it again: each sample once, same bits?"""
    from isthmus.jobs.chaos import chaos_words, play_faults
    from isthmus.jobs.fault_plans import planned_faults, random_faults

    if (plan is None) == (random is None):
        raise typer.BadParameter("give either --plan or --random", param_hint="--plan")
    wanted = kinds.split(",")
    if unknown := [each for each in wanted if each not in KINDS]:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: is none of {', '.join(KINDS)}", param_hint="--kinds"
        )
    faults = planned_faults(plan) if plan else random_faults(run, random, seed, wanted)
    made = play_faults(run, faults, seconds, context.obj.tell)
    context.obj.answer(as_json, made, chaos_words(made))
    if made["wrong"]:
        raise typer.Exit(19)
