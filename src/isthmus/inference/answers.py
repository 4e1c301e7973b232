"""What comes of a stream of requests."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to n requests, in their order, and what they took.

    answers: int32[n] classes, -1 where scores were not finite; or float32[n, outputs] scores.
    from_cloud: bool[n]; the others are the edge's own. seconds: float64[n] from arrival to answer.
    late: bool[n], after the deadline. server: int[n], the cloud rank that was asked, -1 for none.
    terms: name -> float64[n], which sum to `seconds`: until the edge had done its part ("edge"; of what
    it answered, all, the others NaN), until it was sent ("wait"), until the cloud had it ("send"), until
    that had done its part, its queue included ("compute"), until the answer was here ("back").
    split: int[n], the number of the split that it was answered by, 0 where the plan is not ChainSplits.
    sent_nbytes, predicted_nbytes: to cloud ranks, counted and by formula. batches: how many were sent.
    """

    answers: npt.NDArray[Any]
    from_cloud: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.float64]
    late: npt.NDArray[np.bool_]
    terms: dict[str, npt.NDArray[np.float64]]
    server: npt.NDArray[np.int64]
    split: npt.NDArray[np.int64]
    sent_nbytes: int
    predicted_nbytes: int
    batches: int
