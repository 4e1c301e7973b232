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


def at_ends(steps, ends):
    """Return a function that tells which of `ends`, of rounds, is the first after every so many steps.

    Where each step is such an end it is the same as `every`.
    """
    due, before = set(), 0
    for end in sorted(ends) if steps is not None else ():
        if end // steps > before // steps:
            due.add(end)
        before = end
    return due.__contains__


def meetings(recipe):
    """Return a function that tells after which steps all ranks have something to do together."""
    return lambda step: every(recipe.steps)(step) or every(recipe.checkpoint_every)(step)


def duties_of(job, stop):
    """Return what a Job does after a step, in order: when, and what. stop: the StopRequest."""
    recipe, member, recovery = job.training.recipe, job.training.member, job.settings.recovery
    ends_epoch, writes = every(recipe.steps), every(recipe.checkpoint_every)
    if recovery.survive:  # then others may go on from it
        writes = at_ends(recipe.checkpoint_every, job.account.exchanged)

    def asks(step):
        """Where ranks may go, they stop where others can go on."""
        left = step < recipe.total_steps and not job.ends_early
        return left and (member.agreed or not recovery.survive)

    def ask_to_stop():
        may = job.settings.privacy.may_stop(member)
        job.stops = may and stop.told(job.training.state.step)

    def reports(step):
        return ends_epoch(step) or every(recipe.report_every)(step)

    def compares(step):
        """Where ranks may go back, they do so before anything is told of what they have made."""
        last = reports(step) or writes(step) or not job.training.finite
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
        Duty("buddies", at_ends(recovery.buddies_every, job.account.exchanged), job.buddies.copy),
        Duty("signals", asks, ask_to_stop),
        Duty("replicas", lambda step: job.stops and job.replicas.repairs, job.compare_replicas),
        Duty("checkpoint", lambda step: job.stops or writes(step), job.write_checkpoint),
        Duty("end", lambda step: job.stops, job.stop),
    ]
