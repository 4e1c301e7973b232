"""What is done after the steps of a run: in which phase, after which, and what."""

from collections.abc import Callable
from typing import NamedTuple


class Duty(NamedTuple):
    """What is done after a step: in which phase, after which steps, and what.

    due(step) is asked on every rank and says the same on all of them. alone: whether a rank does it
    without the others; what they do together waits for a step after which they are at the same one.
    """

    phase: str
    due: Callable[[int], bool]
    act: Callable[[], None]
    alone: bool = False


def every(steps):
    """Return a function that tells whether a step is one of every so many; of None, none is."""
    return lambda step: steps is not None and step % steps == 0


def meetings(recipe):
    """Return a function that tells after which steps all ranks have something to do together."""
    return lambda step: every(recipe.steps)(step) or every(recipe.checkpoint_every)(step)
