"""Messages between sites with a CRC32C, so that a bit that flips on its way is found at that message.

TCP's own 16 bits let about one in 65,536 such messages through, and what flips it in a network card or
in memory may come before TCP counts. Sealed links and sockets between sites find the same by themselves.
"""

import struct
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.errors import SealError
from isthmus.links.comm import Comm, Request, Wrapped
from isthmus.links.frames import checksum
from isthmus.links.sealed import strangers

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers

_CHECK = struct.Struct(">I")
CHECK_NBYTES = _CHECK.size


class ChecksummedComm(Wrapped):
    """A communicator whose messages to ranks of other sites go with their CRC32C.

    ranks: the cluster rank of each rank of `comm`. strangers: those of other sites.
    """

    def __init__(self, comm: Comm, ranks: Sequence[int], strangers: Collection[int]):
        super().__init__(comm)
        self.ranks, self.crc32c = ranks, checksum()
        self.strange = [rank in strangers for rank in ranks]

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Request:  # noqa: N802
        if not self.strange[dest]:
            return self.comm.Isend(buffer, dest, tag)
        sent = np.empty(buffer.nbytes + CHECK_NBYTES, np.uint8)
        sent[:-CHECK_NBYTES] = buffer.reshape(-1).view(np.uint8)
        _CHECK.pack_into(sent, buffer.nbytes, self.crc32c(sent[:-CHECK_NBYTES]))
        return _Message(self.comm.Isend(sent, dest, tag), sent, lambda: None)

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Request:  # noqa: N802
        if not self.strange[source]:
            return self.comm.Irecv(buffer, source, tag)
        came = np.empty(buffer.nbytes + CHECK_NBYTES, np.uint8)

        def take() -> None:
            plain = came[:-CHECK_NBYTES]
            if (self.crc32c(plain),) != _CHECK.unpack_from(came, buffer.nbytes):
                raise SealError(
                    f"a message from rank {self.ranks[source]} to rank {self.ranks[self.rank]} was "
                    "changed on its way; look at what lies between, and at the memory of both"
                )
            buffer.reshape(-1).view(np.uint8)[:] = plain

        return _Message(self.comm.Irecv(came, source, tag), came, take)

    def overhead_nbytes(self, nbytes: int, dest: int) -> int:
        added = CHECK_NBYTES if self.strange[dest] else 0
        return added + super().overhead_nbytes(nbytes + added, dest)


class _Message:
    """A message under way, its bytes, and what is done once it is there."""

    def __init__(self, request: Request, held: np.ndarray, take: Callable[[], None]):
        self.request, self.held = request, held
        self.take: Callable[[], None] | None = take

    def Wait(self) -> None:  # noqa: N802
        self.request.Wait()
        self._end()

    def Test(self) -> bool:  # noqa: N802
        done = self.request.Test()
        if done:
            self._end()
        return done

    def _end(self) -> None:
        if self.take is not None:
            take, self.take = self.take, None
            take()


def checksummed(tiers: "Tiers") -> "Tiers":
    """Return `tiers` with the messages between sites checked. MachineError without the extra `sites`."""
    others = strangers(tiers.cluster, tiers.site_name)
    return tiers.through(
        lambda comm, ranks: ChecksummedComm(comm, ranks, others) if others & {*ranks} else comm
    )
