"""Robust means in a run's settings: what takes the place of the mean over sites, and where it may."""

from isthmus.errors import PlanError, SettingsError

STRATEGIES_OF_SITES = ("synchronous", "local_steps", "streaming")
"""Whose every exchange is of one vector a site, each as good as the others."""


def check_combine(settings):
    """Raise ValueError where a run's settings cannot have the robust mean that they ask for."""
    allreduce = settings.allreduce
    if allreduce.robust_mean is None:
        return
    asked = f'allreduce.combine = "{allreduce.combine}"'
    if settings.privacy.secure_sum != "off":
        raise ValueError(
            f"{asked} is made of each site's own sum, which privacy.secure_sum hides: leave one out"
        )
    if settings.strategy.kind not in STRATEGIES_OF_SITES:
        raise ValueError(
            f"{asked} is for the strategies {', '.join(STRATEGIES_OF_SITES)}: what sites send with "
            f'"{settings.strategy.kind}" is not alike enough to be held against each other'
        )
    for key, moves in (
        ("recovery.survive", settings.recovery.survive),
        ("plan.replan", settings.plan.replan),
    ):
        if moves:
            raise ValueError(f"{asked} counts every site as it is planned: leave {key} out")


def check_sites_of_mean(settings, cluster):
    """Raise SettingsError where `cluster` has too few sites for the robust mean of the settings."""
    mean = settings.allreduce.robust_mean
    if mean is not None:
        try:
            mean.check_sites(len(cluster.sites))
        except ValueError as problem:
            raise SettingsError(f"[allreduce] combine, for {cluster.source}: {problem}") from None


def check_samples_of_sites(settings, cluster, samples_of_rank):
    """Raise PlanError where a site has no samples: a robust mean would count its zeros as an opinion."""
    if settings.allreduce.robust_mean is None:
        return
    for name in cluster.names:
        if not any(samples_of_rank[rank] for rank in cluster.ranks_of_site(name)):
            raise PlanError(
                f"site {name!r} holds no samples, and allreduce.combine = "
                f'"{settings.allreduce.combine}" counts every site; give plan.least_samples, or take '
                "the site out of the cluster file"
            )
