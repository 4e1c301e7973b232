"""What is to happen at random to sites that are jobs of their own, which ones come back, and how."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isthmus.jobs.fault_plans import WRITES, Fault, listening
from isthmus.jobs.plan import make_plan
from isthmus.jobs.settings import RunSettings
from isthmus.recovery.moments import LINK_KINDS

MOMENTS = ("compute", "send", "allreduce", "agree", "update", "report", "evaluation")
"""Those that ranks of all sites come to."""
SHORT_SECONDS, LONG_SECONDS = 0.3, 6.0
"""For which a rank stops or a link is cut: so that nobody may notice, and so that all do."""
SLOW_BYTES_PER_SECOND, SLOW_SECONDS = 20e3, 2.0
BACK_AFTER_SECONDS = 0.1
MOST_MESSAGES = 8
"""Of a site that comes back, in one of which it is harmed."""


def random_site_faults(
    settings_path: Path,
    runs: int,
    seed: int,
    kinds: Sequence[str] = ("kill",),
    listen: Sequence[str] = (),
) -> list[list[Fault]]:
    """Return what happens to one or two sites in each of so many runs, spread over steps and moments.

    listen: the sites that others call, the first hub first. More than half of the sites that are harmed
    before the last two steps come back, which one that is not harmed waits for; some of these are killed
    once more, as they do.
    """
    settings = RunSettings.from_toml(settings_path)
    plan, cluster, _ = make_plan(settings_path)
    return [
        _Draw(
            np.random.default_rng([seed, number]),
            cluster,
            plan.steps,
            settings,
            kinds,
            listen or listening(cluster),
        ).faults(number)
        for number in range(runs)
    ]


class _Draw:
    """What is drawn of one run."""

    def __init__(self, draw, cluster, steps, settings, kinds, listen):
        self.draw, self.cluster, self.kinds, self.listen = draw, cluster, kinds, listen
        self.steps, self.total = steps, steps * settings.training.epochs
        self.hub = listen[0]
        self.thaws = ("stop",) if len(listen) > 1 else ()  # and finds that the others have gone on
        self.first = {name: cluster.ranks_of_site(name)[0] for name in cluster.names}

    def faults(self, run):
        """Return the Faults."""
        made, waits, harmed = [], set(), set()
        votes = len(self.listen) > 1 and self.draw.random() < 0.3
        count = 1 + int(self.draw.integers(2)) if len(self.cluster.names) > 2 else 1
        for site in self._some(self.cluster.names, count):
            fault = self._harm(site)
            site, at = Fault(**fault).site(self.cluster, self.listen), fault["step"] + 2
            if votes and harmed:  # it dies as it has noticed that the first one is gone
                fault = {"kind": "kill", "rank": self.first[site], "moment": "settle"}
            harmed.add(site)
            first = self.first[site]
            ends = fault["kind"] in ("kill", "freeze", "cut", "close", *self.thaws) and (
                "between" in fault or fault["rank"] == first
            )
            if (site,) != (*self.listen,) and ends and at < self.total and self.draw.random() < 0.6:
                back = {"back_after": BACK_AFTER_SECONDS}
                made.append(fault | back | ({"seconds": LONG_SECONDS} if "between" in fault else {}))
                waits.add(at)
                if self.draw.random() < 0.4:
                    killed = self._one([first, first, *self.first.values()])
                    number = int(self.draw.integers(MOST_MESSAGES))
                    join = {"rank": killed, "moment": "join", "number": number}
                    made.append(join | (back if killed == first else {}))
                    waits.add(at + 1)
            else:
                made.append(fault)
        waiting = [self.hub, *self.cluster.names]
        if len(self.listen) > 1:
            waiting = [name for name in waiting if name not in harmed] or waiting
        wait = {"kind": "wait", "rank": self.first[waiting[0]], "moment": "compute"}
        made += [wait | {"step": step} for step in sorted(waits)]
        return [Fault(**each, run=run) for each in made]

    def _harm(self, site):
        """Return what happens to a site, or to its link."""
        kind = self._one(self.kinds)
        ranks = self.cluster.ranks_of_site(site)
        rank = ranks[0] if self.draw.random() < 0.7 else self._one(ranks)
        moments = MOMENTS
        if kind in ("full", "torn"):
            rank, moments = self.first[self.hub], WRITES[:1]
        moment = self._one(moments)
        stride = self.steps if moment in ("evaluation", "report") else 1
        step = stride * int(self.draw.integers(1, self.total // stride + 1))
        fault = {"kind": kind, "rank": rank, "step": step, "moment": moment}
        if moment == "send":
            fault["number"] = int(self.draw.integers(3))
        if kind == "flip":
            fault["bit"] = int(self.draw.integers(1 << 30))
        if kind == "freeze":
            fault["seconds"] = LONG_SECONDS
        if kind in ("stop", "cut", "close"):
            fault["seconds"] = self._one((SHORT_SECONDS, LONG_SECONDS))
        if kind == "slow":
            fault |= {"bytes_per_second": SLOW_BYTES_PER_SECOND, "seconds": SLOW_SECONDS}
        if kind in (*LINK_KINDS, "flip"):
            hub = self.hub if len(self.listen) == 1 else self._one(self.listen)
            other = self._one([each for each in self.cluster.names if each != hub])
            fault["between"] = (hub, other if site == hub else site)
        return fault

    def _one(self, of):
        return of[int(self.draw.integers(len(of)))]

    def _some(self, of, count):
        return [of[number] for number in self.draw.permutation(len(of))[:count].tolist()]
