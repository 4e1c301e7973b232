"""`Hierarchical` by compiled code, where that can do it.

It can where vectors are on the host, links are MPI's own with nothing around them but the counting,
nothing is traced, and each compressor has functions in `isthmus.compression.by_address`.
"""

import itertools

import numpy as np

from isthmus.collectives import native_loop as loop
from isthmus.collectives.hierarchical import Hierarchical
from isthmus.collectives.messages import PIECE_NBYTES
from isthmus.collectives.native_at_once import exchange_at_once
from isthmus.collectives.native_call import NONE_GIVEN, NativeCall, is_plain
from isthmus.compression import by_address
from isthmus.compression.by_address import functions_of
from isthmus.links import native_mpi
from isthmus.links.comm import innermost
from isthmus.links.on_device import Host


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
        places, most = loop.PEERS + len(self.peers), slots + 2 * len(pieces) + 3
        self.call = NativeCall(places, site, most, self.clock)
        plan = self.plan = self.call.plan
        plan[loop.LEADERS] = 0 if leaders is None else native_mpi.handle(innermost(leaders))
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
        plan[loop.SLOTS : loop.INBOX_NBYTES + 1] = (
            slots,
            parts,
            self.inbox.ctypes.data,
            self.inbox[0].nbytes,
        )
        plan[loop.COPY : loop.STAGE + 1] = by_address.decode_dense.address, self.stage.ctypes.data
        plan[loop.TAG] = self.tag
        plan[loop.PEER_COUNT], plan[loop.PEERS :] = len(self.peers), self.peers
        rows = np.array(list(self._rows(chunks)), np.int64)
        self.tables = (
            plan,
            rows.reshape(len(chunks), loop.WIRES + len(self.peers)),
            np.array(pieces, np.int64).reshape(-1, 2),
        )
        nothing, rows, pieces = np.empty(0, "f4"), *self.tables[1:]
        self._run(loop.ADVANCE, nothing, 0)  # compiled before it is needed
        exchange_at_once(plan, rows[:0], pieces[:0], self.call.one, nothing, nothing, 0, 0, 0)
        self.call.forget()

    def start(self, total, number, key, given):
        table, _arrays = self.call.given(given)
        self.plan[loop.AWAITED] = number + 1 == len(self.buckets)
        self._run(loop.START, total, key, table, *self.bounds[number])

    def at_once(self, total, vector, share_bits, key):
        """Start the one bucket and finish, in the main thread; return what `finish` does."""
        call = self.call
        try:
            finite = exchange_at_once(*self.tables, call.one, total, vector, share_bits, self.now, key)
        except loop.RefusedError:
            raise call.refused() from None
        return self._ended(finite)

    def advance(self, total, key):
        self.plan[loop.AWAITED] = 0
        self._run(loop.ADVANCE, total, key)

    def finish(self, total, key):
        self.plan[loop.AWAITED] = 1
        self._run(loop.FINISH, total, key)
        finite, self.plan[loop.FINITE] = bool(self.plan[loop.FINITE]), 1
        return self._ended(finite)

    def _run(self, what, total, key, given=NONE_GIVEN, first=0, last=0):
        self.plan[loop.TURN] = self.now
        self.call(loop.exchange, what, *self.tables, total, given, first, last, key)

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
        and all(is_plain(comm) for comm in (site, leaders) if comm is not None)
        and native_mpi.why_not() is None
        and all(functions_of(each) for each in compressors)
    )
    kind = Native if able else Hierarchical
    return kind(
        site=site, leaders=leaders, compressors=compressors, clock=clock, residence=residence, **plan
    )
