"""The contract of a strategy: when sites exchange, what they exchange, and what is made of it.

A `Strategy` is what a user inherits: frozen, numbers alone, asked by the plan, the time model and the
report. It makes one `Member` in each rank, which takes part in every step; the training loop, the
checkpoint, the report and the comparison of replicas ask a member, and know no strategy by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isthmus.quantities import LEAST_WEIGHT

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.collectives.allreduce import Allreduce
    from isthmus.compression.compressor import Compressor
    from isthmus.training.strategies.sums import Sums


@dataclass(frozen=True)
class Exchange:
    """One use of the links between sites.

    step: number of the step, from 1, at whose end it begins. share: the part of the vector that is sent.
    late: steps that are made while it is under way. part: number of the slice of the vector that it is
    of; None for all of it. bucketed: whether it is of gradients, which travel in buckets while the rest
    of them is computed; in a step without such a one gradients are summed inside sites.
    """

    step: int
    share: float = 1.0
    late: int = 0
    part: int | None = None
    bucketed: bool = False


@dataclass(frozen=True)
class ExpectedEpoch:
    """An epoch as changes arrive. walks: how often each site walks its own samples."""

    seconds: float
    walks: tuple[float, ...]


class Strategy(ABC):
    """When sites exchange, and what.

    plays_clients: its steps are rounds, and its member has the verbs of `client_rounds.Player`.
    without_rounds: sites do not wait for each other, and each speaks with the hub, whatever tree of
    sites there is. leaves_open: something is to be `settled` before it can be asked anything else.
    """

    plays_clients: ClassVar[bool] = False
    without_rounds: ClassVar[bool] = False

    @abstractmethod
    def exchanges(self, steps: float) -> Iterator[Exchange]:
        """Yield every exchange of a run of `steps` steps, in order; the last step ends with one."""

    @abstractmethod
    def join(self, sums: "Sums", steps: float) -> "Member":
        """Return this rank's part in a run of `steps` steps. Collective, where it makes sums."""

    def fits(  # noqa: B027
        self, size: int, compressor: "Compressor | None", error_feedback: bool = True
    ) -> None:
        """Raise ValueError where it cannot work on a vector of so many entries sent like that."""

    @property
    def redone(self) -> str | None:
        """What those who are left make again where a rank is gone.

        "step": the step that was under way; its gradient is summed over all ranks before it changes
        anything. "round": all steps since `Member.agreed` was true last, as it is after each of the
        `exchanges`; `Member.state` is then all that decides the steps to come, and what of it sites have
        of their own they keep. None: nobody says, and the run ends where a rank is gone.
        """
        return None

    @property
    def leaves_open(self) -> bool:
        return False

    def settled(
        self, computing_seconds: float, exchange_seconds: float, classes_differ: bool | None
    ) -> tuple["Strategy", str]:
        """Return the strategy with what it leaves open decided, and why.

        computing_seconds: of a step. exchange_seconds: of an exchange that nothing hides.
        classes_differ: whether the shards of sites hold other classes; None where nobody has counted.
        """
        return self, "nothing is left open"

    def outlook(self, seconds: Sequence[float]) -> tuple[str | None, str | None]:
        """Return what comes of sites that do not wait for each other, in words, and a warning.

        seconds: what each takes for a change, sent and answered. None where there is nothing to say.
        """
        return None, None

    def expected_epoch(self, seconds: Sequence[float], steps: int) -> "ExpectedEpoch":
        """Return what an epoch takes of sites that do not wait for each other, who take so many seconds
        for a change."""
        raise NotImplementedError(f"{self} has rounds")


def rhythm(strategy: Strategy, steps: int = 5040) -> dict[str, float]:
    """Return what the time model asks of a strategy: keyword arguments of `Workload`.

    That of the second half of a run of `steps` steps, between two exchanges: what comes before a
    strategy has its rhythm does not count, nor does a run's end.
    """
    found = list(strategy.exchanges(steps))
    steady = [each for each in found[:-1] if each.step >= steps // 2]
    counted, span = (steady[1:], steady[-1].step - steady[0].step) if len(steady) > 1 else (found, steps)
    return {
        "exchanges_per_step": sum(each.share for each in counted) / span,
        "exchanged_share": sum(each.share for each in counted) / len(counted),
        "late_steps": sum(each.late for each in counted) / len(counted),
        "site_sums_per_step": 1 - sum(each.bucketed for each in counted) / span,
    }


def exchanges_per_step(strategy: Strategy, steps: int = 5040) -> float:
    """Return how many whole vectors are exchanged a step, once a strategy has its rhythm."""
    return rhythm(strategy, steps)["exchanges_per_step"]


class Member:
    """One rank's part in a strategy.

    gradients: sums the gradients of each step, over as many ranks as the strategy says.
    others: further allreduces, of what is exchanged now and then.
    agreed: whether all ranks hold the same parameters now, so that they may be compared.
    finite: whether what was exchanged after the last step was free of NaN and infinity; if not, on all
    ranks alike, and it was left out.
    together: whether all ranks are at the same step now, so that they may do things together.
    step: of the job, how many were made so far.
    """

    together = True

    def __init__(self, gradients: "Allreduce", *others: "Allreduce"):
        self.gradients, self.sums = gradients, (gradients, *others)
        self.agreed, self.finite = True, True
        self.step = 0

    def begin(self, parameters: Any) -> None:
        """Take note of the parameters that all ranks begin with."""

    def meet(self, due: Callable[[int], bool]) -> None:
        """Take note of the steps after which all ranks have to be `together`, beside the last."""

    def replay(self, lines: Sequence[dict[str, Any]]) -> None:
        """Go as another run did, whose `told` gave `lines`. ValueError where that cannot be."""
        raise ValueError("this strategy leaves nothing to chance that could be replayed")

    def before_step(self, parameters: Any) -> None:
        """Wait for what a step needs, and change `parameters` in place where they are to begin anew."""

    def after_step(self, parameters: Any) -> None:
        """Exchange what is due after a step has changed `parameters`, and change them in place."""
        for act in self.acts():
            act(parameters)

    def acts(self) -> list[Callable[[Any], None]]:
        """Count a step, and return what is due after it, in turn: each act sends, or takes what came.

        Ranks that are played one after another (`serial_rounds`) do each act on all of them first.
        """
        self.step += 1
        return []

    def anchor(self, parameters: Any) -> Any:
        """Return the parameters that all ranks hold alike: what is evaluated."""
        return parameters

    def exchanged(self, exchanges: Iterable[Exchange]) -> set[int]:
        """Return the steps that end with an exchange, or with taking what a late one has brought.

        exchanges: those of the whole run, as its strategy tells them.
        """
        return {each.step + each.late for each in exchanges}

    def told(self) -> dict[str, dict[str, Any]]:
        """Return kind -> values of lines for metrics.jsonl on what has happened since the last call."""
        left_out = [told for each in self.sums for told in each.tell_left_out()]
        return {"left_out": {"sums": left_out}} if left_out else {}

    def state(self) -> dict[str, Any]:
        """Return name -> array of this rank: with the parameters, all that the next steps depend on."""
        named = {"step": np.array([self.step]), "agreed": np.array([self.agreed], np.uint8)}
        for number, each in enumerate(self.sums):
            named |= {f"sums/{number}/{name}": array for name, array in each.state().items()}
        return named

    def memories(self) -> dict[str, Any]:
        """Return name -> array of `state`: what each sum remembers.

        The next one reads it and writes elsewhere; only the one after that writes there.
        """
        return {f"sums/{number}/memory": each.memory for number, each in enumerate(self.sums)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, in place."""
        self.step, self.agreed = int(state["step"][0]), bool(state["agreed"][0])
        for number, each in enumerate(self.sums):
            each.load({name: state[f"sums/{number}/{name}"] for name in each.state()})

    def reweigh(self, weight: float) -> None:
        """Give this rank another share from the next step on. Collective."""
        for each in self.sums:
            each.reweigh(max(weight, LEAST_WEIGHT))

    @property
    def walked(self) -> int:
        """Batches that this rank has taken of its own samples, one after another.

        As many as there were steps, but where sites make unequally many.
        """
        return self.step

    @property
    def sent_nbytes(self) -> dict[str, int]:
        """Bytes handed to MPI so far, to this rank's own "site" and over a "link"."""
        each = [part.sent_nbytes for part in self.sums]
        return {way: sum(nbytes[way] for nbytes in each) for way in ("site", "link")}

    @property
    def sent_to_sites(self) -> np.ndarray:
        """The same by site, int64[sites + 1]: see `Allreduce`."""
        return np.sum([each.sent_to_sites for each in self.sums], axis=0)

    def predicted_to_sites(self) -> np.ndarray:
        """`sent_to_sites` from the formula alone."""
        return np.sum(
            [(each.calls - each.counted_from) * each.predicted_to_sites() for each in self.sums], axis=0
        )

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds by stage of all exchanges so far."""
        each = [part.total_seconds for part in self.sums]
        return {stage: sum(seconds[stage] for seconds in each) for stage in each[0]}
