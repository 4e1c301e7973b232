"""Where the leaders of sites meet: the hub's serves all of them, each of the others asks it."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from isthmus.collectives.messages import wait_for
from isthmus.compression.chunks import WIRE_NBYTES
from isthmus.compression.compressor import Vector
from isthmus.links.comm import Comm
from isthmus.training.strategies.arrivals import Arrival, Arriving, Recorded, Server, Turns
from isthmus.training.strategies.carrier import Carrier, Note

if TYPE_CHECKING:
    from isthmus.training.strategies.sums import Sums

PAUSE_SECONDS = 1e-4
"""Between two looks for what has come, where there is nothing else to do."""


class Spoke:
    """The leader of a site that is not the hub's. comm: of leaders, which are numbered as sites are."""

    def __init__(self, comm: Comm, index: int, hub: int, sums: "Sums", strategy: Arriving):
        self.strategy, self.index, self.hub, self.size = strategy, index, hub, sums.size
        self.comm = comm
        self.compressor = sums.arguments.get("compressor")
        feedback = sums.arguments.get("error_feedback", True)
        self._up = _maker(comm, sums, self.compressor, feedback, index)
        self._down = _maker(comm, sums, self.compressor, False)
        self._whole = _maker(comm, sums, None, False)
        self._connect(comm.size)

    def _connect(self, sites: int) -> None:
        self.up, self.down, self.whole = self._up(self.hub), self._down(self.hub), self._whole(self.hub)
        self.meets = Note(self.comm, self.hub)
        self.sending = [self.up]

    def set(self, vector: Vector, version: int) -> None:
        """Begin with `vector`, which all have."""
        self.start = vector

    def weigh(self, weights: Sequence[float]) -> None:
        """The hub's business."""

    def open(self, changes: int, recorded: Sequence[Arrival] | None) -> None:
        """Begin with what leads to the next meeting: so many changes, of all sites."""

    def serve(self) -> bool:
        """Nobody asks."""
        return False

    def turn(self) -> Vector:
        """Wait until this site may begin, and return where from."""
        return self._wait()[0]

    def exchange(self, change: Vector) -> tuple[Vector, bool]:
        """Send a change; return where this site goes on from, and whether that is where all meet."""
        self.up.send(change)
        return self._wait()

    def predicted(self, changes: Sequence[int], meetings: int) -> Iterator[tuple[int, int]]:
        """Yield (site, bytes) of all that was sent for so many changes of each site."""
        yield self.hub, changes[self.index] * self.up.nbytes()

    def _wait(self):
        meets = bool(self.meets.take())
        carrier = self.whole if meets else self.down
        carrier.expect()
        vector = carrier.take()
        if carrier.compressor is not None:
            vector += self.start
        self.start = vector
        return vector, meets


class Hub(Spoke):
    """The leader of the hub's site: it serves the others between its own steps, and is a worker too."""

    def _connect(self, sites: int) -> None:
        others = [site for site in range(sites) if site != self.index]
        self.up, self.down, self.whole = (
            {site: make(site) for site in others} for make in (self._down, self._down, self._whole)
        )
        self.notes = {site: Note(self.comm, site) for site in others}
        self.sending = list(self.down.values())
        self.sites, self.known = sites, list[Vector]()
        self.trace: list[tuple[int, int, int]] = []  # site, version and staleness of each arrival
        self.lost = self.due = 0
        self.mine: Vector | None = None
        self.given: list[Vector] = []  # where this site goes on from, once it may

    def set(self, vector: Vector, version: int) -> None:
        self.server = Server(self.strategy, vector, [1.0] * self.sites)
        self.server.weights, self.server.version = self.weights, version
        self.known = [vector] * self.sites

    def weigh(self, weights: Sequence[float]) -> None:
        self.weights = list(weights)
        if self.known:
            self.server.weights = self.weights

    def open(self, changes: int, recorded: Sequence[Arrival] | None) -> None:
        self.turns = (
            Turns(self.strategy, self.sites, changes) if recorded is None else Recorded(recorded)
        )
        self.trace, self.lost, self.due = [], 0, changes
        for site in self.turns.begin(self.server.version):
            if site >= self.strategy.busy:
                self._begin(site)
            elif site != self.index:  # who has the vector already, and does not wait for it
                self.up[site].expect()

    def serve(self) -> bool:
        """Take all changes that are here and whose turn it is; return whether there were any."""
        found = False
        for site in sorted(self.turns.at_work):
            here = self.mine is not None if site == self.index else self.up[site].here()
            if here and self.turns.may_arrive(site):
                self._arrive(site)
                found = True
        return found

    def turn(self) -> Vector:
        self._serve_until(lambda: bool(self.given))
        return self.given.pop()

    def exchange(self, change: Vector) -> tuple[Vector, bool]:
        self.mine = change
        self._serve_until(lambda: bool(self.given) or len(self.trace) == self.due)
        if self.given:
            return self.given.pop(), False
        if self.server.buffer:
            self.server.move()
        for site, carrier in self.whole.items():
            self.notes[site].send(True)
            carrier.send(self.server.vector)
        for carrier in self.whole.values():
            wait_for(carrier.requests)
        self.known = [self.server.vector] * self.sites
        return self.server.vector, True

    def predicted(self, changes: Sequence[int], meetings: int) -> Iterator[tuple[int, int]]:
        for site, carrier in self.down.items():
            turns = changes[site] - (0 if site >= self.strategy.busy else meetings)
            nbytes = turns * carrier.nbytes() + meetings * self.whole[site].nbytes()
            yield site, nbytes + (turns + meetings) * self.notes[site].nbytes()

    def _serve_until(self, done):
        while not done():
            if not self.serve():
                time.sleep(PAUSE_SECONDS)

    def _arrive(self, site):
        """Take a change, move the vector if that is enough, and let begin whose turn it is."""
        change, server = self.mine if site == self.index else self.up[site].read(), self.server
        if site == self.index:
            self.mine = None
        version = self.turns.arrive(site)
        self.trace.append((site, version, server.version - version))
        if np.isfinite(change).all():
            server.take(site, version, self.known[site], change)
        else:
            self.lost += 1
        if self.strategy.moves(len(server.buffer), server.version, self.turns.oldest):
            server.move()
        for other in self.turns.begin(server.version):
            self._begin(other)

    def _begin(self, site):
        """Have a site go on from the newest vector."""
        vector = self.server.vector
        if site == self.index:
            self.known[site] = vector
            self.given.append(vector)
            return
        self.notes[site].send(False)
        if self.compressor is None:
            self.down[site].send(vector)
            self.known[site] = vector
        else:
            known = self.known[site]
            self.known[site] = self.down[site].send(vector - known) + known
        self.up[site].expect()


def _maker(comm, sums, compressor, feedback, index=None):
    """Return a function that makes a Carrier to a site: of site `index`, or of the hub."""
    chunk_nbytes = sums.arguments.get("chunk_nbytes", WIRE_NBYTES)

    def make(site):
        offset = comm.size + site if index is None else index
        stride = 2 * comm.size
        return Carrier(comm, site, sums.size, compressor, feedback, chunk_nbytes, stride, offset)

    return make
