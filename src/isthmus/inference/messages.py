"""The messages between an edge rank that asks and a cloud rank that answers.

A batch is a head, int32[8], and the requests' bytes: how many, of which shape and dtype, and by which
split, so that no state is kept between two. An answer is a head, float64[4], and the answers: when the
batch was there, when it was done, and how many numbers an answer has. Batches to one rank are answered
in their order.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.links.comm import Comm, message_nbytes

HEAD_TAG, BODY_TAG, ANSWER_HEAD_TAG, ANSWER_TAG = 31, 32, 33, 34
HEAD_ENTRIES, ANSWER_HEAD_ENTRIES = 8, 4
MOST_AXES = HEAD_ENTRIES - 3
AXES = MOST_AXES + 1
KINDS = "uif"


def empty_head() -> npt.NDArray[np.int32]:
    """Return a head to receive into; as zeros, it says that nothing more comes."""
    return np.zeros(HEAD_ENTRIES, np.int32)


def empty_answer_head() -> npt.NDArray[np.float64]:
    """Return the head of an answer to receive into."""
    return np.empty(ANSWER_HEAD_ENTRIES)


def head_of(requests: npt.NDArray[Any], split: int = 0) -> npt.NDArray[np.int32]:
    """Return the head of a batch [n, ...]; ValueError for dtypes and shapes that it cannot say.

    split: the number of the split that the batch is of.
    """
    shape, dtype = requests.shape, requests.dtype
    if dtype.kind not in KINDS or len(shape) > MOST_AXES + 1 or not dtype.isnative:
        raise ValueError(
            f"requests are of dtype {dtype} and {len(shape) - 1} axes; give native integers or floats "
            f"of {MOST_AXES} axes at most"
        )
    head = empty_head()
    head[0] = len(requests)
    head[1] = 256 * KINDS.index(dtype.kind) + dtype.itemsize
    head[2] = AXES * split + len(shape) - 1
    head[3 : 2 + len(shape)] = shape[1:]
    return head


def empty_batch(head: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """Return the array that the batch of this head is received into."""
    kind, itemsize = divmod(int(head[1]), 256)
    shape = head[3 : 3 + head[2] % AXES]
    return np.empty((head[0], *shape), np.dtype(f"{KINDS[kind]}{itemsize}"))


def split_of(head: npt.NDArray[np.int32]) -> int:
    """Return the number of the split that the batch of this head is of."""
    return int(head[2]) // AXES


def answers_of(scores: npt.NDArray[np.float32], as_scores: bool) -> npt.NDArray[Any]:
    """Return what is told of scores[n, outputs]: themselves, or int32[n, 1] classes.

    A row that is not finite is of class -1.
    """
    if as_scores:
        return np.ascontiguousarray(scores, np.float32)
    classes = scores.argmax(1).astype(np.int32)
    classes[~np.isfinite(scores).all(1)] = -1
    return classes[:, None]


def batch_nbytes(comm: Comm, count: int, request_nbytes: int, peer: int) -> int:
    """Return the bytes that asking for `count` requests sends to `peer`."""
    return message_nbytes(comm, 4 * HEAD_ENTRIES, peer) + message_nbytes(
        comm, count * request_nbytes, peer
    )


def answer_nbytes(comm: Comm, count: int, entries: int, peer: int) -> int:
    """Return the bytes that `count` answers of so many numbers send to `peer`."""
    return message_nbytes(comm, 8 * ANSWER_HEAD_ENTRIES, peer) + message_nbytes(
        comm, 4 * count * entries, peer
    )
