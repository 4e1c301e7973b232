"""What a plan is made for and what it must keep to, as arrays: shards, ranks, limits, staging."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from isthmus.errors import PlanError, PolicyError
from isthmus.planning.programme.problem import Pipes, Prices
from isthmus.quantities import real, whole
from isthmus.timing.time_model import Workload, steps_per_epoch


class Shards(Protocol):
    """What a plan asks of shards: numbers alone. A set with a policy has `readers` and `names` too."""

    @property
    def samples(self) -> Sequence[int]:
        """Samples of each shard."""

    @property
    def nbytes(self) -> Sequence[int]:
        """Bytes of each shard's samples."""


@dataclass(frozen=True, eq=False)
class Epoch:
    """The shards of one epoch, that are to be placed on the ranks of a cluster."""

    cluster: Any
    workload: Workload
    samples: np.ndarray  # float64[shards]
    nbytes: np.ndarray  # float64[shards]
    readers: Sequence[frozenset[str]] | None = None  # of each shard, by the set's policy
    names: Sequence[str] = ()  # of their files, where there is a policy

    @classmethod
    def of(cls, cluster, shards_or_counts, workload):
        """Return the Epoch of a ShardSet, or of the samples of each shard."""
        readers = getattr(shards_or_counts, "readers", None)
        names = () if readers is None else shards_or_counts.names
        if hasattr(shards_or_counts, "samples"):
            samples, nbytes = (
                np.array(column, float) for column in (shards_or_counts.samples, shards_or_counts.nbytes)
            )
        else:
            samples = np.asarray(shards_or_counts, float)
            if (broken := ~((samples >= 0) & np.isfinite(samples))).any():
                shard = int(broken.argmax())
                raise ValueError(
                    f"samples of shard {shard} must be a number and not negative, not {samples[shard]}"
                )
            nbytes = samples * workload.sample_nbytes
        return cls(cluster, workload, samples, nbytes, readers, names)

    @cached_property
    def steps(self):
        """Steps of an epoch."""
        return steps_per_epoch(int(self.samples.sum()), self.workload.batch_size)

    def of_rank(self, name):
        """Return float64[ranks]: a number of each rank's site, by its name in the cluster file."""
        sites = self.cluster.sites
        return np.array([getattr(sites[site], name) for site in self.cluster.site_of_rank])

    @cached_property
    def seconds_per_sample(self):
        """float64[ranks]."""
        return 1 / np.array(self.cluster.rates)

    @cached_property
    def fixed_seconds(self):
        """float64[ranks]: of all steps, whatever a rank holds."""
        return self.steps * self.of_rank("fixed_seconds")

    def limits(self, pinned=None, forbidden=None, least_samples=0):
        """Return keyword arguments of `allocate_shards` and of `make_problem`.

        PolicyError where they, or the cluster, leave a shard no rank that its policy lets read it.
        """
        of_shard, places = allowed_ranks(self.cluster, pinned or {}, forbidden or {}, self.samples.size)
        if self.readers is not None:
            of_shard, places = self._of_readers(of_shard, places)
        return {
            "storage": self.of_rank("storage_nbytes"),
            "storage_sizes": self.nbytes,
            "allowed": (of_shard, places),
            "least": least_of_ranks(self.cluster, least_samples),
        }

    def _of_readers(self, of_shard, places):
        """Return what `allowed_ranks` does, without what policies forbid."""
        cluster, sites = self.cluster, np.array(self.cluster.site_of_rank)
        rows, known, row_of = [], {}, np.zeros_like(of_shard)
        for shard, readers in enumerate(self.readers):
            key = int(of_shard[shard]), readers
            if key not in known:
                may = [site for site, name in enumerate(cluster.names) if name in readers]
                row = places[key[0]] & np.isin(sites, may)
                if not row.any():
                    raise PolicyError(self._told(shard, places[key[0]]))
                known[key] = len(rows)
                rows.append(row)
            row_of[shard] = known[key]
        return row_of, np.array(rows).reshape(-1, cluster.size)

    def _told(self, shard, wanted):
        """Return why a shard may be nowhere. wanted: bool[ranks], where the settings would have it."""
        cluster = self.cluster
        where = dict.fromkeys(
            cluster.names[cluster.site_of_rank[rank]] for rank in np.flatnonzero(wanted)
        )
        readers = sorted(self.readers[shard])
        if {*readers}.isdisjoint(cluster.names):
            cure = f"the cluster has the sites {', '.join(cluster.names)}; name one of them so"
        else:
            cure = f"the limits leave it {' and '.join(where) or 'no site'}; pin it where it may be read"
        return (
            f"no plan: {self.names[shard]} (shard {shard}) may be read by {' and '.join(readers)} "
            f"alone, says its policy, and {cure}, or have it packed with more --readers"
        )

    def complaint(self):
        """Return what to say of shards that not every rank may read; None where there are none."""
        everyone = {*self.cluster.names}
        bound = [shard for shard, readers in enumerate(self.readers or ()) if not readers >= everyone]
        if not bound:
            return None
        first = bound[0]
        more = f" and {len(bound) - 1} more" if len(bound) > 1 else ""
        return (
            f"policies let only {' and '.join(sorted(self.readers[first]))} read {self.names[first]} "
            f"(shard {first}){more}: give those sites what they lack, or have the shards packed with "
            "more --readers"
        )


@dataclass(frozen=True, eq=False)
class Staging:
    """How the shards come to the ranks before computing starts."""

    epochs: float  # that it serves
    pipes: Pipes | None  # None: every rank sees the shards
    money_per_byte: np.ndarray  # float64[ranks]

    @classmethod
    def of(cls, cluster, data_site, staged_epochs):
        """Return the Staging from the site where the shards lie.

        staged_epochs: those that pay for its time. With None it is told, not counted.
        """
        if staged_epochs is not None:
            staged_epochs = real("staged_epochs", staged_epochs, least=1)
        if data_site is None:
            if staged_epochs is not None:
                raise PlanError(
                    "staged_epochs needs to know where the shards lie; name the site "
                    "(data.site in a run's settings, data_site of a workload)"
                )
            return cls(1, None, np.zeros(cluster.size))
        if data_site not in cluster.names:
            raise PlanError(
                f"the data lies at site {data_site!r}, which does not exist; known sites: "
                f"{', '.join(cluster.names)}"
            )
        routes = [cluster.route(data_site, name) for name in cluster.names]
        rate = {link.pipe: link.bytes_per_second for route in routes for link in route}
        of_site = np.array(
            [[any(link.pipe == pipe for link in route) for route in routes] for pipe in rate], bool
        ).reshape(len(rate), len(routes))
        money = np.array([sum(link.price_per_byte for link in route) for route in routes])
        sites = np.array(cluster.site_of_rank)
        pipes = Pipes(
            tuple(rate),
            np.array(list(rate.values())),
            of_site[:, sites],
            1 / staged_epochs if staged_epochs else 0.0,
        )
        return cls(staged_epochs or 1, pipes, money[sites])

    def prices(self, money_per_second, budget):
        """Return the Prices of all its epochs; None where there is no budget."""
        return (
            None
            if budget is None
            else Prices(self.epochs * money_per_second, self.money_per_byte, budget)
        )


def allowed_ranks(cluster, pinned, forbidden, shards):
    """Return (row of each shard, bool[rows, ranks]) of where shards may go."""
    sites = np.array(cluster.site_of_rank)
    held, banned = {}, {}
    for word, table, found in (("pinned to", pinned, held), ("forbidden at", forbidden, banned)):
        for shard, names in table.items():
            names = [names] if isinstance(names, str) else list(names)
            for name in names:
                if name not in cluster.names:
                    raise PlanError(
                        f"shard {shard} is {word} site {name!r}, which does not exist; "
                        f"known sites: {', '.join(cluster.names)}"
                    )
                if not 0 <= whole("a shard's number", shard) < shards:
                    raise PlanError(
                        f"shard {shard} is {word} site {name!r}, but there are shards 0 "
                        f"to {shards - 1}; name one of these"
                    )
            found[shard] = frozenset(map(cluster.names.index, names))
    of_shard, rows, known = np.zeros(shards, int), [sites >= 0], {}
    for shard in held | banned:
        key = held.get(shard), banned.get(shard, frozenset())
        if key not in known:
            known[key] = len(rows)
            at = rows[0] if key[0] is None else np.isin(sites, list(key[0]))
            rows.append(at & ~np.isin(sites, list(key[1])))
        of_shard[shard] = known[key]
    return of_shard, np.array(rows)


def least_of_ranks(cluster, least_samples):
    """Return the samples that each rank must hold."""
    if not isinstance(least_samples, dict):
        return np.full(cluster.size, real("least_samples", least_samples, 0))
    for name in least_samples:
        if name not in cluster.names:
            raise PlanError(
                f"least_samples names site {name!r}, which does not exist; known sites: "
                f"{', '.join(cluster.names)}"
            )
    return [
        real("least_samples", least_samples.get(cluster.names[site], 0), 0)
        for site in cluster.site_of_rank
    ]
