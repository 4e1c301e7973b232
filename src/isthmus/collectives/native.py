"""`Hierarchical` by compiled code, where that can do it.

It can where vectors are on the host, links are MPI's own with nothing around them but the counting,
nothing is traced, and each compressor has functions in `isthmus.compression.by_address`.
"""

import itertools
import threading

import numpy as np
from mpi4py import MPI

from isthmus.collectives import native_loop as loop
from isthmus.collectives.hierarchical import Hierarchical
from isthmus.collectives.messages import PIECE_NBYTES
from isthmus.compression import by_address
from isthmus.compression.by_address import functions_of
from isthmus.links import native_mpi
from isthmus.links.comm import innermost
from isthmus.links.counted import CountedComm
from isthmus.links.on_device import Host
from isthmus.registry import ALLREDUCE_STAGES

LAPS = slice(loop.REDUCE, loop.BROADCAST + 1)
NONE_GIVEN = np.zeros((0, 3), np.int64)
TIMED = [name for name in ALLREDUCE_STAGES if hasattr(loop, name.upper())]
STAGES = tuple(sorted(TIMED, key=lambda name: getattr(loop, name.upper())))
"""Those that the loop tells, in its order."""


class Native(Hierarchical):
    """The sum of float32[size] over all ranks, in place: as `Hierarchical` has it, to the bit."""

    def __init__(self, *, site, leaders, **plan):
        super().__init__(site, leaders, **plan)
        chunks = list(itertools.chain(*self.buckets))
        pieces = [(piece.start, piece.stop) for chunk in chunks for piece in chunk.pieces]
        bounds = np.cumsum([0, *map(len, self.buckets)]).tolist()
        self.bounds = list(itertools.pairwise(bounds))
        wires = [chunk.wire_nbytes for chunk in chunks if chunk.own]
        parts = -(-max(wires, default=0) // PIECE_NBYTES)
        slots = 2 * len(chunks) * len(self.peers) * parts
        self.requests = native_mpi.no_requests(slots + 2 * len(pieces) + 3)
        self.share = np.empty(1, "f4")
        self.share_bits = self.share.view("i4")
        self.status, self.sent = native_mpi.room_for_status(), site.sent
        plan = self.plan = np.zeros(loop.PEERS + len(self.peers), np.int64)
        plan[: loop.SLEEP + 1] = native_mpi.addresses()
        plan[loop.SITE] = native_mpi.handle(innermost(site))
        plan[loop.LEADERS] = 0 if leaders is None else native_mpi.handle(innermost(leaders))
        plan[loop.FLOAT], plan[loop.BYTE] = map(native_mpi.handle, (MPI.FLOAT, MPI.BYTE))
        plan[loop.STATUS] = self.status.ctypes.data
        plan[loop.LEFT : loop.RIGHT + 1] = [
            -1 if side is None else side for side in (self.left, self.right)
        ]
        plan[loop.ABOVE : loop.RETELLS + 1] = (
            self.above is not None,
            len(self.children),
            self.index,
            len(self.tree.parents) + self.tree.retells,
            self.exchanges,
            self.retells,
        )
        plan[loop.SENT : loop.STAGE + 1] = (
            self.sent.ctypes.data,
            self.requests.ctypes.data,
            self.requests.shape[1],
            slots,
            parts,
            self.inbox.ctypes.data,
            self.inbox[0].nbytes,
            by_address.add_dense.address,
            by_address.weight.address,
            by_address.check.address,
            by_address.decode_dense.address,
            self.stage.ctypes.data,
        )
        plan[loop.FINITE], plan[loop.TAG] = 1, self.tag
        plan[loop.PEER_COUNT], plan[loop.PEERS :] = len(self.peers), self.peers
        rows = np.array(list(self._rows(chunks)), np.int64)
        self.tables = (
            plan,
            rows.reshape(len(chunks), loop.WIRES + len(self.peers)),
            np.array(pieces, np.int64).reshape(-1, 2),
        )
        self._run(loop.ADVANCE, np.empty(0, "f4"), 0)  # compiled before it is needed

    def start(self, total, number, key, given):
        self._start(loop.START, total, number, key, given)

    def whole(self, total, key, given):
        """Start the one bucket and finish; return what `finish` does."""
        self._start(loop.WHOLE, total, 0, key, given)
        return self._finished()

    def _start(self, what, total, number, key, given):
        pieces = [np.ascontiguousarray(piece) for piece in given.pieces]
        bounds = itertools.pairwise(given.bounds)
        table = [(MPI.Get_address(piece), *ends) for piece, ends in zip(pieces, bounds)]
        table = table or [(0, given.part.start, given.part.stop)]
        self.changed = False
        self.share[0] = given.share
        self.plan[loop.SHARE] = self.share_bits[0]
        self.plan[loop.AWAITED] = number + 1 == len(self.buckets)
        self._run(what, total, key, np.array(table), *self.bounds[number])

    def advance(self, total, key):
        self.plan[loop.AWAITED] = 0
        self._run(loop.ADVANCE, total, key)

    def finish(self, total, key):
        self.plan[loop.AWAITED] = 1
        self._run(loop.FINISH, total, key)
        return self._finished()

    def _finished(self):
        finite, self.plan[loop.FINITE] = bool(self.plan[loop.FINITE]), 1
        return self._ended(finite)

    def _run(self, what, total, key, given=NONE_GIVEN, first=0, last=0):
        plan = self.plan
        plan[loop.TURN] = self.now
        plan[loop.BESIDE] = threading.get_ident() != threading.main_thread().ident
        plan[loop.NOW], plan[LAPS] = 1e9 * self.clock.last, 0
        try:
            loop.exchange(what, *self.tables, total, given, first, last, key)
        except loop.RefusedError:
            raise MPI.Exception(int(plan[loop.ERROR])) from None
        self.clock.take(STAGES, plan[LAPS].tolist(), int(plan[loop.NOW]))

    def _rows(self, chunks):
        """Yield what compiled code knows of each chunk."""
        piece = 0
        for chunk in chunks:
            encode, decode, add, block = functions_of(chunk.compressor)
            wire_nbytes = chunk.wire_nbytes if chunk.own else 0
            row = [chunk.whole.start, chunk.whole.stop, piece, piece + len(chunk.pieces), wire_nbytes]
            row += [chunk.ahead, encode, decode, add, block]
            for encoded in (chunk.own, chunk.told):
                arrays = (encoded.wire, *encoded.residuals) if encoded else (None,) * 3
                row += [0 if array is None else array.ctypes.data for array in arrays]
            inboxes = [chunk.inboxes[peer] for peer in self.peers]
            yield row + [0 if inbox is None else inbox.ctypes.data for inbox in inboxes]
            piece += len(chunk.pieces)


def planned(*, site, leaders, compressors, clock, residence, **plan):
    """Return the exchange of `hierarchical`: by compiled code where that can do it."""
    able = (
        type(residence) is Host
        and clock.recorder is None
        and all(_is_plain(comm) for comm in (site, leaders) if comm is not None)
        and native_mpi.why_not() is None
        and all(functions_of(each) for each in compressors)
    )
    kind = Native if able else Hierarchical
    return kind(
        site=site, leaders=leaders, compressors=compressors, clock=clock, residence=residence, **plan
    )


def _is_plain(comm):
    return type(comm) is CountedComm and isinstance(comm.comm, MPI.Comm)
