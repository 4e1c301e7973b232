"""`isthmus verify`: whether a run ended with the bits, and has the record, that it tells."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.arguments import AsJson


def verify(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the .pub of the sites lie that signed it."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Play only the steps after A until B again; A is 0 or the checkpoint's.",
            show_default=False,
        ),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", metavar="", help="Hold the record against its hashes alone.")
    ] = False,
    as_json: AsJson = False,
):
    """Play a run again, serially: same bits, each sample once? Hold its record against its hashes."""
    from isthmus.folders.statements import is_chained, verify_record

    made, words, ends = {"run": str(run)}, [], _steps(steps)
    if record or keys is not None or is_chained(run):
        made |= verify_record(run, keys)
        words.append(f"{run}: {made['lines']} lines are as they were written")
        if made["sites"]:
            words[0] += f"; {', '.join(made['sites'])} kept the hash of the first {made['kept_lines']}"
        words[0] += ", signed" if keys is not None else "; --keys holds it against signatures"
    if not record:
        context.obj.world()  # which starts MPI
        from isthmus.jobs.verifying import replay_words, verify_steps

        played = verify_steps(run, ends)
        made |= {"replay": played}
        words.append(replay_words(run, played))
    context.obj.answer(as_json, made, words)


def _steps(text):
    """Return (first, last) of A:B; last is None where it is left out."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        ends = int(first or 0), int(last) if last else None
    except ValueError:
        ends = -1, None
    if not colon or ends[0] < 0 or (ends[1] is not None and ends[1] <= ends[0]):
        raise typer.BadParameter(f"must be two steps, as in 0:100, not {text!r}", param_hint="--steps")
    return ends
