"""A bar that shows how far a run is, where somebody looks."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

from isthmus.folders.metrics import number_in_words
from isthmus.terminal import bar_of, duration

MPIRUNS = ("mpirun", "prterun", "prte", "orterun")
WIDEST = 40


def columns_of_terminal(wanted):
    """Return how wide the terminal is on which a bar is to be drawn; None: no bar is.

    wanted: what --progress or --no-progress say, None where neither is given. Then there is a bar where
    standard error is a terminal, or goes to an mpirun beside this process whose own is one.
    """
    if wanted is False:
        return None
    for opened in (_own_stderr, mpirun_stderr):
        with opened() as number:
            if number is not None and os.isatty(number):
                knows_how = os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
                return os.get_terminal_size(number).columns or 80 if knows_how or wanted else None
    return int(os.environ.get("COLUMNS") or 80) if wanted else None


@contextmanager
def _own_stderr():
    try:
        yield sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or no file
        yield None


@contextmanager
def mpirun_stderr():
    """Give the open standard error of the mpirun that has started this rank on its host, or None."""
    parent, number = Path("/proc", str(os.getppid())), None
    try:
        if (parent / "comm").read_text().strip() in MPIRUNS:
            number = os.open(parent / "fd/2", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
    except OSError:
        pass
    try:
        yield number
    finally:
        if number is not None:
            os.close(number)


def draw_bar(terminal, pace):
    """Draw the bar of a `Pace` in the place of the last: how far, a step's time, time left, loss."""
    before = f"{100 * pace.step // pace.steps:3d} % "
    words = f" {pace.step}/{pace.steps}"
    if pace.step_seconds is not None:
        words += f", {1e3 * pace.step_seconds:.1f} ms a step, {duration(pace.seconds_left)} left"
    if pace.loss is not None:
        words += f", loss {number_in_words(pace.loss)}"
    room = terminal.columns - len(before) - len(words) - 1
    if room < 4:  # a narrow terminal: what does not fit is left out
        terminal.draw((before + words)[: terminal.columns - 1])
        return
    terminal.draw(before, bar_of(pace.step, pace.steps, min(room, WIDEST)), words)
