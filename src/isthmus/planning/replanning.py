"""While a run goes on: a plan that follows measured rates, and that moves few shards to get there.

Moving shards takes link time, which counts like the seconds of the epochs still to come. Staying is
always one of the candidates, so that a new plan is never worse than the old one under the model.
"""

from dataclasses import dataclass, replace

import numpy as np

from isthmus.planning.epoch import Epoch
from isthmus.planning.programme.allocation import shards_by_rank
from isthmus.planning.programme.exchanges import following_seconds
from isthmus.planning.programme.moving_programme import MovingProgramme
from isthmus.planning.programme.objectives import make_objective
from isthmus.planning.programme.problem import loads, make_problem
from isthmus.planning.programme.search import improve

LEAST_GAIN = 0.02
"""Share of the seconds to come that a move must save: less is within what the time model knows."""

GOOD_ENOUGH = 5e-3
"""How near to the finish of divisible shards whole ones are searched."""
SMALL = 20_000
"""Shards times ranks up to which a search from where shards are is tried as well."""


def moving_seconds(cluster, nbytes, old, new):
    """Return the seconds of moving shards from the ranks `old` to the ranks `new`, int64[shards] both.

    nbytes: of each shard. All move at once: the busiest pipe's bytes over its rate, or those of the
    busiest rank on the network of its site, each way; and the latency of the longest way.
    """
    moved = np.flatnonzero(np.asarray(old) != new)
    if not moved.size:
        return 0.0
    carried = np.asarray(nbytes, float)[moved]
    source, target = np.asarray(old)[moved], np.asarray(new)[moved]
    rate = np.array([cluster.sites[site].network.bytes_per_second for site in cluster.site_of_rank])
    seconds = max(
        float((np.bincount(end, carried, minlength=cluster.size) / rate).max())
        for end in (source, target)
    )
    site, sites, busy = np.array(cluster.site_of_rank), len(cluster.names), {}
    latency = max(cluster.sites[here].network.latency_seconds for here in {*site[source], *site[target]})
    between = np.bincount(site[source] * sites + site[target], carried, minlength=sites**2)
    for way in np.unique(site[source] * sites + site[target]).tolist():
        if way // sites != way % sites:
            route = cluster.route(cluster.names[way // sites], cluster.names[way % sites])
            latency = max(latency, sum(link.latency_seconds for link in route))
            for link in route:
                busy[link.pipe] = busy.get(link.pipe, 0.0) + between[way] / link.bytes_per_second
    return latency + max(seconds, *busy.values(), 0.0)


@dataclass(frozen=True, eq=False)
class Replanned:
    """Where shards shall be from now on, and what that is predicted to save.

    Seconds are of the epochs that are left where nothing else is said.
    """

    rank_of_shard: np.ndarray  # int64[shards]
    moved: tuple[int, ...]  # the shards that change ranks
    samples_of_rank: tuple[int, ...]
    seconds_of_rank: tuple[float, ...]  # of computing a step, afterwards
    step_seconds: float  # from one step to the next, afterwards
    staying_seconds: float  # if nothing moved
    seconds: float  # with moving_seconds
    moving_seconds: float
    lower_bound_seconds: float  # no plan that starts here can beat it

    @property
    def shards_of_rank(self):
        """The shards of each rank, ascending: a tuple of tuples."""
        return shards_by_rank(self.rank_of_shard, len(self.samples_of_rank))


class Replanner:
    """Plans again for the same shards on the same ranks, whenever rates have changed.

    shards_or_counts, pinned, forbidden, least_samples: as in `plan_shards`.
    objective: a name of `objectives.OBJECTIVES` that "replanning" can handle; ValueError for others. Of
        two sites the one with the higher rate is a whole round trip ahead in "period".
    warm: start the linear programme from its last solution, where highspy is installed.
    """

    def __init__(
        self,
        cluster,
        shards_or_counts,
        workload,
        *,
        objective="makespan",
        pinned=None,
        forbidden=None,
        least_samples=0,
        warm=True,
    ):
        self.objective = make_objective(objective).on(cluster)
        self.objective.require("replanning")
        epoch = Epoch.of(cluster, shards_or_counts, workload)
        self.cluster, self.workload, self.steps = cluster, workload, epoch.steps
        self.problem = make_problem(
            epoch.samples,
            epoch.seconds_per_sample,
            fixed_seconds=epoch.fixed_seconds,
            **epoch.limits(pinned, forbidden, least_samples),
        )
        self.exchange = self.objective.exchange(
            cluster, workload, self.steps, self.problem.ideal_seconds / self.steps
        )
        self.delay_seconds = self.steps * self.exchange.delay_of_rank()
        self.programme = MovingProgramme(cluster, self._delayed(self.problem), warm)

    def plan_again(self, rank_of_shard, samples_per_second, epochs):
        """Return the Replanned that ends the `epochs` that are left soonest, moving included.

        rank_of_shard: where shards are now. samples_per_second: of each rank. Nothing moves where
        less than LEAST_GAIN would be saved, or where no epoch is left.
        """
        old = np.asarray(rank_of_shard)
        problem = self._with_rates(samples_per_second)
        stay = self._seconds(problem, old, old, epochs)
        best, chosen, bound = stay, old, 0.0
        found = epochs > 0 and self.programme.solve(samples_per_second, old, epochs)
        if found:
            bound = found[0] + epochs * self.steps * self._least_exchange(problem, old)
            for candidate in self._candidates(self._delayed(problem), old, found[1]):
                seconds = self._seconds(problem, old, candidate, epochs)
                if seconds < best and problem.broken_limits(*loads(problem, candidate)) is None:
                    best, chosen = seconds, candidate
        if best > (1 - LEAST_GAIN) * stay:
            best, chosen = stay, old
        units = loads(problem, chosen)[0]
        step = problem.seconds_of(units) / self.steps
        following = following_seconds(self.cluster, self.workload, step)
        return Replanned(
            chosen,
            tuple(np.flatnonzero(chosen != old).tolist()),
            tuple(units.astype(int).tolist()),
            tuple(step.tolist()),
            float(step.max()) + following,
            stay,
            best,
            moving_seconds(self.cluster, problem.nbytes, old, chosen),
            min(bound, best),
        )

    def _with_rates(self, samples_per_second):
        rates = np.asarray(samples_per_second, float)
        if rates.shape != (self.problem.ranks,) or not (np.isfinite(rates) & (rates > 0)).all():
            raise ValueError(
                f"samples_per_second must hold {self.problem.ranks} positive numbers, one "
                f"a rank, not {rates.tolist()}"
            )
        return replace(self.problem, seconds_per_unit=1 / rates)

    def _delayed(self, problem):
        """Return the Problem with what the links add to each site as part of its own seconds."""
        return replace(problem, fixed_seconds=problem.fixed_seconds + self.delay_seconds)

    def _candidates(self, problem, old, target):
        """Yield plans that are worth a look: towards the target of divisible shards, then searched."""
        towards = move_towards(problem, np.array(self.cluster.site_of_rank), old, target)
        yield towards
        enough = (1 + GOOD_ENOUGH) * problem.seconds_of(target).max()
        yield improve(problem, self.objective, towards.copy(), enough)
        if old.size * problem.ranks <= SMALL:
            yield improve(problem, self.objective, old.copy(), enough)

    def _seconds(self, problem, old, new, epochs):
        """Return the seconds of moving from `old` to `new` and of `epochs` epochs there."""
        step = problem.seconds_of(loads(problem, new)[0]) / self.steps
        return float(
            moving_seconds(self.cluster, problem.nbytes, old, new)
            + epochs * self.steps * (step.max() + self.exchange.beyond_seconds(step))
        )

    def _least_exchange(self, problem, old):
        """Return seconds of a step that come on top of the programme's in any plan."""
        computing = problem.seconds_of(loads(problem, old)[0]).max() / self.steps
        return self.exchange.least_beyond_seconds(computing)


def move_towards(problem, site_of_rank, rank_of_shard, target):
    """Return a plan in which ranks hold about `target` units, from which only few shards have moved.

    Ranks with most above their target give first, their largest shards first, to the rank that lacks
    most at their own site, and only then to other sites. Limits are kept.
    """
    result = rank_of_shard.copy()
    units, stored = loads(problem, result)
    for giver in np.argsort(target - units, kind="stable").tolist():
        mine = np.flatnonzero(result == giver)
        mine = mine[np.argsort(-problem.sizes[mine], kind="stable")]
        for shard in mine[problem.sizes[mine] > 0].tolist():
            size, nbytes = problem.sizes[shard], problem.nbytes[shard]
            above = units[giver] - target[giver]
            if 2 * above < problem.sizes[mine[-1]]:
                break
            lacking = target - units
            fits = problem.may_hold(shard) & (2 * lacking >= size) & (stored + nbytes <= problem.storage)
            if 2 * above < size or units[giver] - size < problem.least[giver] or not fits.any():
                continue
            near = fits & (site_of_rank == site_of_rank[giver])
            taker = int(np.where(near if near.any() else fits, lacking, -np.inf).argmax())
            result[shard] = taker
            for rank, sign in ((giver, -1), (taker, 1)):
                units[rank] += sign * size
                stored[rank] += sign * nbytes
    return result
