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


def duties_of(job, stop):
    """Return what a Job does after a step, in order: when, and what. stop: the StopRequest."""
    recipe, member = job.training.recipe, job.training.member
    ends_epoch = every(recipe.steps)

    def ask_to_stop():
        may = job.settings.privacy.may_stop(member)
        job.stops = may and stop.told(job.training.state.step)

    def reports(step):
        return ends_epoch(step) or every(recipe.report_every)(step)

    def compares(step):
        """Where ranks may go back, they do so before anything is told of what they have made."""
        last = reports(step) or every(recipe.checkpoint_every)(step) or not job.training.finite
        return member.agreed and (
            every(recipe.compare_replicas_every)(step) or (job.replicas.repairs and last)
        )

    return [
        Duty("replicas", compares, job.compare_and_note),
        Duty("report", lambda step: not job.training.finite, job.account.note_skipped, alone=True),
        Duty("report", reports, job.report),
        Duty("report", ends_epoch, job.members.note_samples),
        Duty("evaluation", ends_epoch, job.evaluate),
        Duty(
            "rebalancing",
            lambda step: job.settings.plan.replan and ends_epoch(step) and not job.ends_early,
            job.rebalance,
        ),
        Duty("buddies", every(job.settings.recovery.buddies_every), job.buddies.copy),
        Duty("signals", lambda step: step < recipe.total_steps and not job.ends_early, ask_to_stop),
        Duty("replicas", lambda step: job.stops and job.replicas.repairs, job.compare_replicas),
        Duty(
            "checkpoint",
            lambda step: job.stops or every(recipe.checkpoint_every)(step),
            job.write_checkpoint,
        ),
        Duty("end", lambda step: job.stops, job.stop),
    ]
