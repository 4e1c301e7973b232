"""What losses of ranks and sites will cost a run, as `isthmus simulate` tells it."""

from dataclasses import asdict, dataclass

from isthmus.terminal import duration
from isthmus.timing.losses import (
    daly_seconds,
    failure_seconds,
    surviving,
    with_checkpoints,
    young_seconds,
)

HOUR = 3600.0


@dataclass(frozen=True)
class Failing:
    """How often what fails, and what that takes.

    rank_hours, site_hours: from one failure of a rank, or of a site, to its next; None: never.
    checkpoint_seconds: of writing one. restart_seconds: until a run that has ended makes steps again.
    recovery_seconds: until one that survives does.
    """

    rank_hours: float | None
    site_hours: float | None
    checkpoint_seconds: float
    restart_seconds: float
    recovery_seconds: float

    def told(self, ranks, sites, round_seconds):
        """Return what that comes to for so many ranks and sites, for JSON.

        round_seconds: of what is made again where one fails: a step, or as many as there are between two
        exchanges.
        """
        hours = (each and each * HOUR for each in (self.rank_hours, self.site_hours))
        mtbf = failure_seconds(ranks, sites, *hours)
        found = {
            name: asdict(
                with_checkpoints(
                    interval(self.checkpoint_seconds, mtbf),
                    self.checkpoint_seconds,
                    self.restart_seconds,
                    mtbf,
                )
            )
            for name, interval in (("young", young_seconds), ("daly", daly_seconds))
        }
        ours = surviving(self.recovery_seconds, round_seconds, mtbf)
        return asdict(self) | {"mtbf_seconds": mtbf, **found, "survive": {"goodput": ours}}


def failure_words(told):
    """Return the lines to print of what `Failing.told` gives."""
    young, daly = told["young"], told["daly"]
    return [
        f"a rank or a site fails every {duration(told['mtbf_seconds'])}; of the time, this counts:",
        f"- checkpoints of {told['checkpoint_seconds']:.3g} s, {told['restart_seconds']:.3g} s until a "
        f"run goes on: {_share(young)} with one every {duration(young['interval_seconds'])} "
        f"(Young 1974), {_share(daly)} every {duration(daly['interval_seconds'])} (Daly 2006)",
        f"- recovery.survive, going on after {told['recovery_seconds']:.3g} s: "
        f"{_share(told['survive'])}; what is lost computes no more until the run is started again",
    ]


def _share(of):
    return f"{100 * of['goodput']:.6g} %"
