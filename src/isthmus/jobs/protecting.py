"""What protects samples, clients or sites: how much noise, from which secrets, what it comes to."""

import secrets
from pathlib import Path

import numpy as np

from isthmus.devices import library_of
from isthmus.errors import NoDeviceError, SettingsError
from isthmus.folders.contents import Provenance
from isthmus.folders.reading import read_table
from isthmus.links.agreement import from_root, gather_json, require, together
from isthmus.links.world import broadcast
from isthmus.privacy.accounting import Steps, noise_for
from isthmus.privacy.draws import NOISE, SAMPLE, Draws, site_secret
from isthmus.privacy.ledger import charge, told
from isthmus.privacy.protection import Protection
from isthmus.security.key_files import read_private


def protect(tiers, settings, plan, model, local, state, clients, resume, tell):
    """Return the Protection of this rank's samples, of its clients, or of its site. Collective.

    The run is added to the account of its training set before it begins. clients: the Clients of a
    strategy that has them. resume: the folder of the run that it goes on with, whose draws it makes
    again. SettingsError where all runs together would tell more than the budget.
    """
    world, privacy = tiers.world, settings.privacy
    require(
        world,
        library_of(state.parameters) is np,
        NoDeviceError,
        "clipping is done on CPUs, and a rank's parameters are on a GPU; leave privacy.unit out",
    )
    together(world, lambda: _check_model(model, local, state, privacy))
    unit, sampling, total = _unit(settings, plan, clients)

    def decide():
        run = _run_of(resume) if resume else secrets.token_hex(16)
        noise = privacy.noise
        if noise is None:
            try:
                noise = noise_for(privacy.epsilon, sampling=sampling, steps=total, delta=privacy.delta)
            except ValueError as problem:
                raise SettingsError(f"privacy.epsilon = {privacy.epsilon:g}: {problem}") from None
        return [run, noise, told([Steps(sampling, noise, total)], privacy.delta, unit)]

    run, noise, table = from_root(world, decide, tiers.home)
    seen = gather_json(world, Path(settings.data.train).is_dir()).index(True)
    steps = Steps(sampling, noise, total)
    spent = from_root(
        world, lambda: charge(settings.data.train, run, steps, privacy.delta, privacy.budget, unit), seen
    )
    secret = _secret_of_site(tiers, settings, bytes.fromhex(run))
    mine = tiers.cluster.ranks_of_site(tiers.site_name)
    holding = [rank for rank in mine if plan.samples_of_rank[rank]] or [mine[0]]
    # All ranks of a site give its change, with the same noise; of sums one of them adds it.
    adds = unit == "site" or holding[0] == world.rank
    table |= {
        "run": run,
        "noise": noise,
        "clip": privacy.clip,
        "sampling_probability": sampling,
        "steps": total,
        "epsilon_of_all_runs": spent,
        "budget": privacy.budget,
    }
    tell(
        f"privacy: epsilon {table['epsilon']:.3g} at delta {privacy.delta:g} for each {unit} (noise "
        f"{noise:g}, clip {privacy.clip:g}, {total} times, in each with probability {sampling:.3g}); "
        f"all runs on this set {spent:.3g}" + (f" of {privacy.budget:g}" if privacy.budget else "")
    )
    return Protection(
        privacy.clip,
        noise,
        sampling,
        Draws(secret, world.rank, SAMPLE),
        Draws(secret, holding[0], NOISE) if adds else None,
        table,
    )


def _check_model(model, local, state, privacy):
    """Raise SettingsError or ModelError for a model that tells more, or of which none is clipped."""
    if privacy.unit != "sample":
        if buffers := list(model.buffers()):
            raise SettingsError(
                f"[model]: holds {buffers[0]}, a statistic of batches, which privacy.unit does not "
                "protect; take another normalisation, such as GroupNorm"
            )
        return
    if not hasattr(model, "clipped_gradient"):
        raise SettingsError(
            '[model]: privacy.unit = "sample" clips the gradient of each sample, which this model does '
            "not give: take a built-in model or an nn.Module"
        )
    one = local.at(np.arange(min(1, local.samples)))  # what cannot be done is told before it is counted
    model.clipped_gradient(state.parameters, *one, privacy.clip, np.empty(model.size, np.float32))


def _unit(settings, plan, clients):
    """Return of what is told, with which probability it takes part, and how often."""
    total = settings.training.epochs * plan.steps
    if settings.privacy.unit == "sample":
        return "sample", 1 / plan.steps, total
    strategy = settings.make_strategy()
    if clients is not None:
        return "client", strategy.number_of(clients.count) / clients.count, total
    return "site", 1.0, sum(1 for _ in strategy.exchanges(total))


def told_of_privacy(training):
    """Return {"privacy": what the run may tell of a sample}, for run.json; empty where nobody counts."""
    protection = getattr(training, "protection", None)
    return {} if protection is None else {"privacy": protection.told}


def identity_of_privacy(settings, cluster, training):
    """Return what a run that goes on must share of its [privacy] with the one that wrote a checkpoint.

    Its sites are among it: others would draw the same noise for other samples, and know other ranges.
    """
    told = told_of_privacy(training)
    if not told and settings.privacy.secure_sum == "off":
        return {}
    kept = {name: getattr(settings.privacy, name) for name in ("secure_sum", "bits")}
    kept |= {name: told["privacy"][name] for name in ("run", "noise", "clip") if told}
    return {"privacy": kept | {"sites": [[site.name, site.ranks] for site in cluster.sites]}}


def _run_of(folder):
    """Return under which name the run in `folder` has drawn."""
    table = read_table(Path(folder, "run.json"), Provenance)
    try:
        bytes.fromhex(table["privacy"]["run"])
    except (KeyError, TypeError, ValueError):
        raise SettingsError(
            f"{folder}: its samples were not protected: leave privacy.unit out, or start a new run"
        ) from None
    return table["privacy"]["run"]


def _secret_of_site(tiers, settings, run):
    """Return the secret of this rank's site for a run, which its leader makes of the site's key."""

    def make():
        if tiers.site.rank:
            return b"\0" * 32
        return site_secret(read_private(settings.security.keys.expanduser(), tiers.site_name), run)

    secret = np.frombuffer(together(tiers.world, make), np.uint8).copy()
    broadcast(tiers.within_site().world, secret)
    return secret.tobytes()
