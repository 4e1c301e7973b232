"""`Inference`: answers at the edge, from the cloud, or from both, over the link between them."""

import math
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from isthmus.compression.compressor import Compressor
from isthmus.errors import PlanError
from isthmus.folders.trained_model import TrainedModel
from isthmus.inference.answering import serve
from isthmus.inference.answers import Answers
from isthmus.inference.asking import Asking
from isthmus.inference.dispatch import DISPATCHES
from isthmus.inference.feed import Feed
from isthmus.inference.following import Following
from isthmus.inference.forward import Run, digest_of, joined, parts_of
from isthmus.inference.halves import halves_of
from isthmus.links.agreement import gather_json, raise_first
from isthmus.links.clocks import clock_offsets, ranks_elsewhere
from isthmus.links.counted import CountedComm
from isthmus.links.tiers import Tiers
from isthmus.planning.cascades import Cascade
from isthmus.planning.splits import ChainSplits, Split
from isthmus.quantities import real, whole

MODES = ("cascade", "split", "edge", "cloud")


class Inference:
    """One trained model at the edge, another in the cloud, and a plan that says who answers what.

    Collective: every rank of the tiers makes one, edge ranks then call `answer` as often as they like,
    cloud ranks `serve` once, which returns when all edge ranks have left the `with` block.

    tiers: with an edge and a cloud site at least.
    edge, cloud: what `load_model` gives, (model, parameters), or a function of features [n, ...] that
        gives scores float32[n, outputs]. Both may be given on every rank; an edge rank uses `edge`, a
        cloud rank `cloud`.
    plan: a Cascade: the edge answers what it is sure of. A Split of one model, given as both: the edge
        computes its first layers, and answers where nothing is sent. ChainSplits of one: that split
        which is soonest on average over the link's rates of the last `recent_seconds`. "edge" or
        "cloud": all is answered there.
    activations: of a Split, the compressor of what crosses the link, as `plan_split` was given it.
    hedge: with a deadline, a request whose answer from the cloud is not there in time is answered by the
        edge model. Without one, under the plan "cloud", the edge computes while it waits, and the first
        answer counts; a cascade without a deadline waits.
    deadline_seconds: from the arrival of a request on.
    batch, window: requests of a message at most, and messages under way to a cloud rank at most.
    dispatch: to which cloud rank a batch goes: "least_pending", "round_robin" or "weighted" (by rate).
    queue_seconds: a cascade keeps more at the edge while what waits for the link would take longer than
        a share of this; infinite: its threshold stays.
    answers: "classes", int32[n], or "scores", float32[n, outputs].

    Raises ValueError for arguments that make no sense, PlanError where the plan was made for other
    models or activations.
    """

    def __init__(
        self,
        tiers: Tiers,
        *,
        edge: Any = None,
        cloud: Any = None,
        plan: Cascade | Split | ChainSplits | str = "cloud",
        activations: Compressor | None = None,
        hedge: bool = True,
        deadline_seconds: float | None = None,
        batch: int = 32,
        window: int = 8,
        dispatch: str = "least_pending",
        queue_seconds: float = 0.05,
        recent_seconds: float = 30.0,
        answers: str = "classes",
        clock: Callable[[], float] = time.monotonic,
    ):
        named = {Cascade: "cascade", Split: "split", ChainSplits: "split"}
        mode = named.get(type(plan), plan)
        for name, value, known in (
            ("plan", mode, MODES),
            ("dispatch", dispatch, DISPATCHES),
            ("answers", answers, ("classes", "scores")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if activations is not None and mode != "split":
            raise ValueError("activations cross the link of a Split alone; give plan=plan_split(...)")
        self.tiers, self.mode, self.plan, self.clock = tiers, mode, plan, clock
        self.activations = activations
        self.batch, self.window = whole("batch", batch, least=1), whole("window", window, least=1)
        if deadline_seconds is not None and real("deadline_seconds", deadline_seconds) <= 0:
            raise ValueError(f"deadline_seconds must be more than 0, not {deadline_seconds}")
        world = tiers.world
        sites, site_of_rank = tiers.cluster.sites, tiers.cluster.site_of_rank
        tier_of = [sites[site_of_rank[rank]].tier for rank in range(world.size)]
        self.edge_ranks = [rank for rank, tier in enumerate(tier_of) if tier == "edge"]
        self.cloud_ranks = [rank for rank, tier in enumerate(tier_of) if tier == "cloud"]
        if not self.edge_ranks or (mode != "edge" and not self.cloud_ranks):
            raise ValueError("requests come from an edge site, and a cloud site answers them; name both")
        self.recent_seconds = real("recent_seconds", recent_seconds, least=0)
        problem, functions = None, [(None, None)]
        try:
            functions = self._functions(edge, cloud)
        except (PlanError, ValueError) as caught:
            problem = caught
        raise_first(world, problem)
        self.halves = functions
        self.run_edge, self.run_cloud = functions[0]
        self.sent: npt.NDArray[np.int64] = np.zeros(world.size, np.int64)
        self.comm = CountedComm(world.comm, self.sent, list(range(world.size)))
        self.ahead = clock_offsets(world, clock, ranks_elsewhere(world))[:, 0]
        self.options = {
            "hedge": hedge,
            "deadline_seconds": deadline_seconds,
            "queue_seconds": queue_seconds
            if queue_seconds == math.inf
            else real("queue_seconds", queue_seconds, least=0),
            "dispatch": dispatch,
            "scores": answers == "scores",
        }
        told = gather_json(world, [self.mode, repr(activations), self.batch, self.window, answers])
        if any(each != told[0] for each in told):
            raise ValueError("ranks were given different arguments; give all the same")
        self.asking: Asking | None = None

    def _functions(self, edge: Any, cloud: Any) -> list[tuple[Run | None, Run | None]]:
        """Return what is computed at the edge and in the cloud, None for nothing, by each split."""
        if self.mode == "split":
            return self._halves(edge if edge is not None else cloud)
        if isinstance(self.plan, Cascade):
            for name, model, told in (
                ("edge", edge, self.plan.edge_model),
                ("cloud", cloud, self.plan.cloud_model),
            ):
                known = told is not None and model is not None and not callable(model)
                if known and (found := digest_of(*_pair(model))) != told:
                    raise PlanError(
                        f"the threshold was found with an {name} model of digest {told[:12]}, this "
                        f"one has {found[:12]}; plan the cascade again with these models"
                    )
        makes = {"edge": edge, "cloud": cloud}
        for name, ranks in (("edge", self.edge_ranks), ("cloud", self.cloud_ranks)):
            if makes[name] is None and self.tiers.world.rank in ranks and self.mode in (name, "cascade"):
                raise ValueError(f"plan {self.mode!r} needs a model: give {name}=")
        functions = [None if model is None else _function(model) for model in makes.values()]
        return [(functions[0], functions[1])]

    def _halves(self, model: Any) -> list[tuple[Run | None, Run | None]]:
        parts = parts_of(*_pair(model))
        if isinstance(self.plan, ChainSplits):
            return [halves_of(split, parts, self.activations) for split in self.plan.splits]
        assert isinstance(self.plan, Split)
        if not self.plan.target_layers:
            self.mode = "edge"  # which has all layers, and sends nothing
        return [halves_of(self.plan, parts, self.activations)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.asks and self.mode != "edge":
            self._asking().leave()

    @property
    def asks(self) -> bool:
        """Whether this rank takes requests; else it serves."""
        return self.tiers.tier == "edge"

    def serve(self) -> int:
        """Answer what edge ranks ask until all of them have left; return how many requests that were."""
        if self.asks:
            raise ValueError("an edge rank answers requests: call answer")
        if self.mode == "edge":
            return 0
        runs = [cloud for _, cloud in self.halves]
        return serve(self.comm, self.edge_ranks, runs, self.clock, self.options["scores"])

    def answer(self, features: npt.NDArray[Any], arrivals: npt.ArrayLike | None = None) -> Answers:
        """Answer n requests, and return the Answers in their order.

        features: [n, ...]. arrivals: seconds from now at which each comes, float64[n], not falling;
        None: all at once. Every call must be of features of one shape and dtype.
        """
        if not self.asks:
            raise ValueError("a cloud rank serves: call serve")
        times = np.zeros(len(features)) if arrivals is None else np.asarray(arrivals, np.float64)
        if times.shape != (len(features),) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise ValueError(
                f"arrivals must be {len(features)} finite seconds that do not fall, not {times.shape}"
            )
        return self._asking().run(np.ascontiguousarray(features), times)

    def answer_feed(self, feed: Feed) -> int:
        """Answer what comes through a Feed until it is closed; return how many requests that were."""
        if not self.asks:
            raise ValueError("a cloud rank serves: call serve")
        return self._asking().run_feed(feed)

    def _rest(self) -> tuple[Run | None, bool]:
        """Return what makes the edge's own scores of what it computes first, and if that is sent."""
        if self.mode == "split":
            return self.run_cloud, True
        return (self.run_edge, False) if self.mode == "cloud" else (lambda scores: scores, False)

    def _asking(self) -> Asking:
        if self.asking is None:
            cluster, following = self.tiers.cluster, None
            routes = [
                cluster.route(self.tiers.site_name, cluster.names[cluster.site_of_rank[rank]])
                for rank in self.cloud_ranks
            ]
            slowest = max(1 / link.bytes_per_second for route in routes for link in route)
            if isinstance(self.plan, ChainSplits):
                latency = min(sum(link.latency_seconds for link in route) for route in routes)
                following = Following(
                    self.plan, self.halves, slowest, latency, self.recent_seconds, self.clock
                )
            self.asking = Asking(
                self.comm,
                [] if self.mode == "edge" else self.cloud_ranks,
                [cluster.rates[rank] for rank in self.cloud_ranks],
                slowest,
                self.plan if isinstance(self.plan, Cascade) else self.mode,
                None if self.mode == "cloud" else self.run_edge,
                *self._rest(),
                batch=self.batch,
                window=self.window,
                clock=self.clock,
                ahead=self.ahead,
                following=following,
                **self.options,
            )
        return self.asking


def _pair(model: Any) -> tuple[Any, Any]:
    """Return (model, parameters) of what a caller may give."""
    if isinstance(model, TrainedModel):
        return model, model.parameters
    if isinstance(model, tuple) and len(model) == 2:
        return model
    raise ValueError("give what load_model gives, or (model, parameters)")


def _function(model: Any) -> Run:
    if callable(model) and not isinstance(model, TrainedModel):
        return model
    return joined(parts_of(*_pair(model)))
