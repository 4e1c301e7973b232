"""One rank's part in a strategy without rounds: its site is a worker, the hub's leader serves all."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.devices import set_from_host, to_host
from isthmus.links.counted import CountedComm
from isthmus.links.stage_clock import StageClock
from isthmus.links.world import all_gather, broadcast
from isthmus.training.strategies.arrivals import Arrival, Arriving, check_trace
from isthmus.training.strategies.carrier import Carrier, Note
from isthmus.training.strategies.hub import Hub, Spoke
from isthmus.training.strategies.strategy import Exchange, Member

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums


class Worker(Member):
    """Its site sends a change after every so many steps; where all ranks meet, all changes are applied.

    Up to a meeting all sites together make as many changes as if each made all steps that lead to it;
    who is fast makes more of them, and walks its own samples again. So a rank goes on while `step` has
    not come to the run's last, which it does where all meet, however often it is asked in between.
    `meet` says where that is; the last step always is. At a meeting all have the same vector, of the
    same version, and `state` is told there alone.
    """

    def __init__(self, sums: "Sums", strategy: Arriving, steps: float):
        if not (steps < math.inf and hasattr(sums, "tiers")):
            raise ValueError(
                "Buffered has no rounds, and its workers end together: play it by serial_arrivals, or "
                "in a run of so many steps"
            )
        super().__init__(sums.of_site())
        self.strategy, self.total_steps, self.tiers = strategy, int(steps), sums.tiers
        self.due: Callable[[int], bool] = lambda step: False
        self.recorded: dict[int, list[Arrival]] = {}
        self.trace: list[list[int]] = []  # site, version and staleness, since the last meeting
        self.meetings = self.version = self.lost = 0
        self.began = self.ends = self.made = self.taken = 0
        self.clock = StageClock(sums.tiers.recorder)
        self._sent = np.zeros_like(self.gradients.sent_to_sites)
        tiers, index, cluster = sums.tiers, sums.tiers.site_index, sums.tiers.cluster
        self.sites = len(cluster.sites)
        self.hub_rank = cluster.ranks_of_site(cluster.names[cluster.hub])[0]
        self.arrived = np.zeros(self.sites, np.int64)  # changes of each site
        self.waits = index >= strategy.busy
        within = CountedComm(tiers.site, self._sent, [index] * tiers.site.size)
        mates = range(1, tiers.site.size) if tiers.site.rank == 0 else [0]
        chunk = sums.arguments.get("chunk_nbytes", 1 << 20)
        self.mates = [
            (Note(within, mate), Carrier(within, mate, sums.size, None, False, chunk)) for mate in mates
        ]
        self.post: Hub | Spoke | None = None
        if tiers.site.rank == 0:
            leaders = CountedComm(tiers.leaders, self._sent, range(tiers.leaders.size))
            kind = Hub if index == cluster.hub else Spoke
            self.post = kind(leaders, index, cluster.hub, sums, strategy)
        self.reweigh(sums.weight)

    def begin(self, parameters: Any) -> None:
        self.start = to_host(parameters).copy()
        if self.post is not None:
            self.post.set(self.start, self.version)

    def meet(self, due: Callable[[int], bool]) -> None:
        self.due = due

    def replay(self, lines: Sequence[dict[str, Any]]) -> None:
        self.recorded, version, step = {}, 0, 0
        told = {line["step"]: line for line in lines}
        while step < max(told):  # it may have ended early
            began, step = step, self._next_meeting(step)
            if step not in told:
                raise ValueError(f"no arrivals are told of that led to step {step}")
            trace = [(worker, start) for worker, start in told[step]["arrivals"]]
            check_trace(
                self.strategy, trace, self.sites, self._changes(began, step), version, told[step]
            )
            self.recorded[step], version = trace, told[step]["version"]

    def before_step(self, parameters: Any) -> None:
        if self.step != self.ends:
            return
        self.began, self.ends, self.made = self.ends, self._next_meeting(self.ends), 0
        self.together = False
        if self.post is not None:
            self.post.open(self._changes(self.began, self.ends), self.recorded.get(self.ends))
        if self.waits:
            self._go_on(self.post and self.post.turn(), parameters)

    def after_step(self, parameters: Any) -> None:
        if self.step == self.ends:  # in a loop that does not say when a step begins
            self._refuse_to_wait()
            self.before_step(parameters)
        self.made, self.taken = self.made + 1, self.taken + 1
        self.step = min(self.began + self.made, self.ends - 1)
        self.agreed, self.finite = False, True
        if self.made % (self.ends - self.began) % self.strategy.every:
            if self.post is not None:
                self.post.serve()
            return
        vector = None
        if self.post is not None:
            with self.clock.inside("links"):
                vector, self.together = self.post.exchange(self.start - to_host(parameters))
        self._go_on(vector, parameters)
        if self.together:
            self.step, self.agreed = self.ends, True
            self._share_trace()

    def exchanged(self, exchanges: Iterable[Exchange]) -> set[int]:
        began, found = 0, set[int]()
        while began < self.total_steps:
            ends = self._next_meeting(began)
            found |= {*range(began + self.strategy.every, ends, self.strategy.every), ends}
            began = ends
        return found

    def told(self) -> dict[str, dict[str, Any]]:
        trace, self.trace = self.trace, []
        line = {
            "arrivals": [[site, version] for site, version, _ in trace],
            "staleness": [staleness for *_, staleness in trace],
            "version": self.version,
            "lost": self.lost,
            "steps_of_site": self.steps_of_site,
        }
        return {"arrivals": line} if trace else {}

    def reweigh(self, weight: float) -> None:
        super().reweigh(weight)
        everyone = np.concatenate(all_gather(self.tiers.world, np.array([weight])))
        sites = np.array(self.tiers.cluster.site_of_rank)
        if self.post is not None:
            self.post.weigh([everyone[sites == site].sum() for site in range(sites.max() + 1)])

    def state(self) -> dict[str, Any]:
        if not self.together:
            raise ValueError("a strategy without rounds has a state where ranks meet alone")
        counts = np.array([self.version, self.meetings, self.taken, *self.arrived])
        named = {"counts": counts, "sent_to_sites": self._sent, "start": self.start}
        for name in ("residual", "state", "sent"):
            kept = [getattr(each, name) for each in self._carriers]
            named[f"carried/{name}"] = np.concatenate(kept) if kept else np.zeros(0, "f4")
        return super().state() | named

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.version, self.meetings, self.taken = map(int, state["counts"][:3])
        self.arrived[:] = state["counts"][3:]
        self._sent[:], self.start, self.ends = state["sent_to_sites"], state["start"].copy(), self.step
        for name in ("residual", "state", "sent"):
            first = 0
            for each in self._carriers:
                kept = getattr(each, name)
                kept[:] = state[f"carried/{name}"][first : first + kept.size]
                first += kept.size
        if self.post is not None:
            self.post.set(self.start, self.version)

    @property
    def walked(self) -> int:
        return self.taken

    @property
    def sent_to_sites(self) -> np.ndarray:
        return super().sent_to_sites + self._sent

    @property
    def sent_nbytes(self) -> dict[str, int]:
        nbytes, own = self.sent_to_sites, self.tiers.site_index
        return {"site": int(nbytes[own]), "link": int(nbytes.sum() - nbytes[own])}

    def predicted_to_sites(self) -> np.ndarray:
        predicted = super().predicted_to_sites()
        if self.post is not None:
            for site, nbytes in self.post.predicted(self.arrived.tolist(), self.meetings):
                predicted[site] += nbytes
            own = self.tiers.site_index
            vectors = self.arrived[own] + self.waits * self.meetings
            predicted[own] += sum(vectors * each.nbytes() for mate in self.mates for each in mate)
        return predicted

    @property
    def stage_seconds(self) -> dict[str, float]:
        return {name: each + self.clock.total[name] for name, each in super().stage_seconds.items()}

    @property
    def _carriers(self):
        """Those that send, and have a state: of this rank."""
        return [] if self.post is None else self.post.sending

    def _next_meeting(self, step):
        return next(
            (each for each in range(step + 1, self.total_steps) if self.due(each)), self.total_steps
        )

    def _changes(self, began, ends):
        """Return how many changes all sites make between two meetings."""
        return self.sites * self._of_a_walk(began, ends)

    def _of_a_walk(self, began, ends):
        """Return how many changes a site makes in so many steps, of which the last may be short."""
        return -(-(ends - began) // self.strategy.every)

    def _refuse_to_wait(self):
        if self.waits:
            raise ValueError(
                "busy is less than the number of sites: call the member's before_step before each step"
            )

    def _go_on(self, vector, parameters):
        """Take the leader's `vector` on all ranks of the site, and go on from there."""
        with self.clock.inside("broadcast"):
            if self.post is not None:
                for note, mate in self.mates:
                    note.send(self.together)
                    mate.send(vector)
                self.start = vector
            else:
                note, mate = self.mates[0]
                self.together = bool(note.take())
                mate.expect()
                self.start = mate.take()
            set_from_host(parameters, self.start)

    def _share_trace(self):
        """Tell all ranks what has arrived since the last meeting. Collective."""
        self.meetings += 1
        told = np.zeros((self._changes(self.began, self.ends) + 1, 3), np.int64)
        if isinstance(self.post, Hub):
            told[:-1], told[-1, :2] = self.post.trace, (self.post.server.version, self.post.lost)
        broadcast(self.tiers.world, told, self.hub_rank)
        self.trace, (self.version, self.lost, _) = told[:-1].tolist(), told[-1].tolist()
        self.finite = not self.lost
        counts = np.bincount(told[:-1, 0], minlength=self.sites)
        self.arrived += counts
        length, in_walk = self.ends - self.began, self._of_a_walk(self.began, self.ends)
        walks, rest = np.divmod(counts, in_walk)
        self.steps_of_site = (walks * length + rest * self.strategy.every).tolist()
