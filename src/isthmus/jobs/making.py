"""One rank's training, made from a run's settings: the same in a job and where one is played again."""

from isthmus.compression.chunks import link_chunk_nbytes
from isthmus.devices import array_library
from isthmus.jobs.clients import make_clients, turn_of
from isthmus.jobs.duties import meetings
from isthmus.jobs.preparation import hold_seconds
from isthmus.jobs.protecting import protect
from isthmus.jobs.replaying import replay_arrivals
from isthmus.jobs.shared_model import shared_start
from isthmus.links.agreement import together
from isthmus.training.loop import Training
from isthmus.training.playing import ClientTraining
from isthmus.training.private import PrivateClientTraining, PrivateTraining, Untold
from isthmus.training.strategies.sums import Sums


def make_training(tiers, settings, model, plan, local, journal, replay=None, resume=None):
    """Return this rank's Training, which begins with the first parameters. Collective.

    plan: with `steps`, `shards_of_rank` and `hash`. journal: with tell(line) and enter(phase, step).
    replay: the folder of a run whose changes arrive here in the order in which they arrived there.
    resume: that of the run that this one goes on with.
    """
    recipe = together(tiers.world, lambda: settings.recipe(plan.steps))
    state = shared_start(tiers, model, recipe, array_library(tiers.device), journal.tell)
    clients, rows = None, {}
    if settings.plays_clients:
        clients, rows = make_clients(tiers, settings, plan, local, model)
    protection = None
    if settings.privacy.unit is not None:
        protection = protect(tiers, settings, plan, model, local, state, clients, resume, journal.tell)
    of_units = protection is not None and settings.privacy.unit == "site"
    sums = Sums(
        tiers,
        model.size,
        weight=float(len(rows) if clients and of_units else local.samples),
        clients=clients,
        protection=protection if of_units else None,
        algorithm=settings.allreduce.algorithm,
        compressor=settings.make_compressor(),
        error_feedback=settings.allreduce.error_feedback,
        buckets=settings.make_buckets(),
        chunk_nbytes=settings.allreduce.chunk_nbytes or link_chunk_nbytes(tiers.cluster.links),
        like=state.parameters,
        secure=settings.privacy.sum_of(settings),
        combine=settings.allreduce.robust_mean,
    )
    member = settings.make_strategy().join(sums, recipe.total_steps)
    member.meet(meetings(recipe))
    if replay:
        replay_arrivals(tiers, settings, plan, local.manifest, member, replay)
    arguments = (tiers, model, local, member, recipe, state)
    held = hold_seconds(tiers, settings), journal.enter
    named = {"rows": rows, "turn": turn_of(settings)} if clients else {}
    if protection is None:
        return (ClientTraining if clients else Training)(*arguments, *held, **named)
    kind = PrivateClientTraining if clients else Untold if of_units else PrivateTraining
    return kind(*arguments, *held, protection=protection, **named)
