"""Between epochs: ranks are as fast as they were measured to be, and shards move if that pays."""

import time

import numpy as np

from isthmus.links.agreement import from_root
from isthmus.planning.programme.allocation import shards_by_rank
from isthmus.planning.replanning import Replanner
from isthmus.shards.moving import move_shards
from isthmus.shards.shard_file import ShardSet
from isthmus.timing.rates import RateFilter, measured_rates


class Rebalancing:
    """Where a run's shards are, what its ranks were measured to do, and the planner for both.

    The job's rank 0 (`home`) measures and decides; all ranks know where every shard is.
    """

    def __init__(self, tiers, settings, plan, training):
        self.tiers, self.settings, self.training = tiers, settings, training
        self.rank_of_shard = np.array(plan.rank_of_shard)
        self.filter = RateFilter(tiers.cluster.rates)
        self.rows = []  # at home: (samples, seconds) of every rank in each step of this epoch
        self._planner = None

    def measure(self, of_rank):
        """Take in one step, at home: name -> float64[ranks] of what each rank measured."""
        if self.settings.plan.replan:
            self.rows.append((of_rank["samples"], of_rank["compute"]))

    def after_epoch(self):
        """Plan again if rates have changed, and move shards if it pays. Collective.

        Returns a JSON table of what changed and what was done, on every rank; None for nothing.
        """
        recipe, tiers = self.training.recipe, self.tiers
        left = recipe.epochs - self.training.state.step // recipe.steps
        told = from_root(tiers.world, lambda: self._decide(left), tiers.home)
        if told is None:
            return None
        new = self.rank_of_shard.copy()
        moves = np.array(told.pop("moves"), int).reshape(-1, 2)
        new[moves[:, 0]] = moves[:, 1]
        start = time.perf_counter()
        if len(moves):
            self._move(new)
        return told | {"moving_seconds": time.perf_counter() - start}

    def _decide(self, left):
        """Return what to do with `left` epochs to go, at home; None where rates are as they were."""
        samples, seconds = (np.array(column).T for column in zip(*self.rows))
        self.rows.clear()
        cluster, before = self.tiers.cluster, self.filter.rates.copy()
        fixed = np.array([cluster.sites[site].fixed_seconds for site in cluster.site_of_rank])
        changed = {
            rank for rates in measured_rates(samples, seconds, fixed) for rank in self.filter.add(rates)
        }
        if not changed or not left:
            return None
        found = self._plan_again(left)
        moved = list(found.moved)
        return {
            "changed": [
                {"rank": rank, "before": before[rank], "after": self.filter.rates[rank]}
                for rank in sorted(changed)
            ],
            "moves": [[shard, int(found.rank_of_shard[shard])] for shard in moved],
            "shards": len(moved),
            "nbytes": int(self._planner.problem.nbytes[moved].sum()),
            "staying_seconds": found.staying_seconds,
            "predicted_seconds": found.seconds,
            "predicted_moving_seconds": found.moving_seconds,
            "predicted_step_seconds": found.step_seconds,
            "samples_of_rank": found.samples_of_rank,
        }

    def _plan_again(self, left):
        if self._planner is None:
            plan, local = self.settings.plan, self.training.local
            self._planner = Replanner(
                self.tiers.cluster,
                ShardSet(self.settings.data.train, local.manifest, local.access),
                self.settings.workload(),
                objective=plan.objective,
                pinned=plan.pinned,
                forbidden=plan.forbidden,
                least_samples=plan.least_samples,
            )
        return self._planner.plan_again(self.rank_of_shard, self.filter.rates, left)

    def _move(self, new):
        self.training.take(move_shards(self.tiers, self.training.local, self.rank_of_shard, new))
        self.rank_of_shard = new

    @property
    def shards_of_rank(self):
        """The shards that each rank has now, ascending."""
        return shards_by_rank(self.rank_of_shard, self.tiers.cluster.size)

    def to_json(self):
        """Return what a checkpoint notes; what home alone knows is told by home, which writes it."""
        return {"rank_of_shard": self.rank_of_shard.tolist(), "filter": self.filter.to_json()}

    def resume(self, notes):
        """Move shards to where they were when the checkpoint was written. Collective."""
        self.filter = RateFilter.from_json(notes["filter"])
        new = np.array(notes["rank_of_shard"], int)
        if (new != self.rank_of_shard).any():
            self._move(new)
