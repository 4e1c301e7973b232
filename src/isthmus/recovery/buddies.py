"""Residuals of leaders, copied to who may still be there when they are gone.

Inside one mpirun that is the second rank of their site, which leads the site after them. Where sites are
jobs of their own a site whose first rank is gone is gone as a whole, until it is started again: there it
is another site's leader, who gives the copy back.

A residual of some steps ago is not what the leader had: what was sent since is sent again in part. A
copy counts once all have agreed on what is done after its step, and no longer where that is undone.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from isthmus.devices import set_from_host, to_host
from isthmus.errors import CheckpointError
from isthmus.links.agreement import gather_json
from isthmus.links.comm import parts_of, receive, send
from isthmus.training.residuals import ResidualSeal, is_residual

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers
    from isthmus.training.loop import Training

TAG = 79


class Copy(NamedTuple):
    """A leader's residual as it was after `step`: name -> uint8 array, sealed where links are."""

    step: int
    contents: dict[str, np.ndarray]


Copies = Mapping[str, Sequence[Copy]]
"""Site -> copies of its leader's residual, the last one and the one before."""


class Pair(NamedTuple):
    """The leader of `site`, and who has its copies, by their ranks in a communicator."""

    site: str
    leader: int
    keeper: int


class Buddies:
    """What this rank has of the residuals of others.

    seal: of this rank's site, where its residual is nothing for other sites; else None.
    """

    def __init__(self, tiers: "Tiers", training: "Training", seal: ResidualSeal | None = None):
        self.tiers, self.training = tiers, training
        self.copies: Copies = {}
        self._seal = seal if tiers.joined else None
        self._comm, self._pairs = (
            (tiers.leaders, pairs_of_sites(tiers))
            if tiers.joined
            else (tiers.site, _pairs_in_site(tiers))
        )
        self._new: tuple[int, dict[str, Copy]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of a copy that this rank sends."""
        return sum(each.nbytes for _ in self._pairs_led() for each in self._contents().values())

    def copy(self) -> None:
        """Copy residuals as they are after this step; they count once all agree that they are there."""
        step, comm, sent = self.training.state.step, self._comm, []
        for pair in self._pairs_led():
            contents = self._contents()
            messages = [np.array([each.size for each in contents.values()], np.int64)]
            messages += [part for each in contents.values() if each.size for part in parts_of(each)]
            sent += [(comm.Isend(each, pair.keeper, TAG), each) for each in messages]
        new = {
            pair.site: Copy(step, self._received(pair.leader))
            for pair in self._pairs
            if pair.keeper == comm.rank
        }
        for request, _ in sent:
            request.Wait()
        self._new = step, new

    def keep(self) -> None:
        """Take what was copied last to what was copied before."""
        if self._new is not None:
            (step, new), self._new = self._new, None
            before = self.until(step - 1)
            self.copies = before | {
                site: [*before.get(site, ())[-1:], each] for site, each in new.items()
            }

    def until(self, step: int) -> dict[str, list[Copy]]:
        """Return the copies of no later step: those are of steps that are undone."""
        found = {
            site: [each for each in copies if each.step <= step] for site, copies in self.copies.items()
        }
        return {site: copies for site, copies in found.items() if copies}

    def forget_after(self, step: int) -> None:
        """Drop copies of later steps, which are made again."""
        self.copies, self._new = self.until(step), None

    def take_up(
        self, copies: Copies, here: Sequence[int | None], held: Mapping[str, np.ndarray] | None
    ) -> int | None:
        """Go on with the `copies` that this rank had before; where it leads a site in the place of
        another one, begin with that one's residual. Collective.

        here: which rank each was before, None for one that is new. held: this rank's arrays before, None
        where it is new. Returns after which step the residual was so; None for its own, or none.
        """
        if self.tiers.joined:
            self.copies, copy = self._given_back(copies, here)
        else:
            leads, own = self.tiers.site.rank == 0, self._residuals()
            mine = copies.get(self.tiers.site_name, ()) if leads else ()
            did_not = held is not None and any(own[name].size != held[name].size for name in own)
            self.copies, copy = {} if leads else copies, mine[-1] if mine and did_not else None
        if copy is None:
            return None
        taken = [self._take(name, copy) for name in self._residuals()]
        return copy.step if any(taken) else None

    def _given_back(self, copies, here):
        """Return the copies of other sites than those that have come back, and, on the leader of one of
        these, the last one of its own that any rank has. Collective."""
        world, cluster, found = self.tiers.world, self.tiers.cluster, None
        first = {name: cluster.ranks_of_site(name)[0] for name in cluster.names}
        back = {name: rank for name, rank in first.items() if here[rank] is None}
        there = gather_json(world, {site: copies[site][-1].step for site in back if site in copies})
        for site, rank in back.items():
            steps = [each.get(site, -1) for each in there]
            keeper = steps.index(max(steps))
            if steps[keeper] < 0:
                continue
            if world.rank == keeper:
                contents = copies[site][-1].contents
                world.Send(np.array([each.size for each in contents.values()], np.int64), rank, TAG)
                for each in contents.values():
                    if each.size:
                        send(world, each, rank, TAG)
            elif world.rank == rank:
                found = Copy(steps[keeper], self._received(keeper, world))
        return {site: each for site, each in copies.items() if site not in back}, found

    def _received(self, source, comm=None):
        """Return name -> content of a residual that a rank of `comm` sends."""
        comm, names = comm or self._comm, [*self._residuals()]
        sizes = np.empty(len(names), np.int64)
        comm.Recv(sizes, source, TAG)
        contents = {name: np.empty(size, np.uint8) for name, size in zip(names, sizes)}
        for each in contents.values():
            if each.size:
                receive(comm, each, source, TAG)
        return contents

    def _take(self, name, copy):
        """Begin with an array of the copy, if that is of what this rank has; return whether it is."""
        own, content = self._residuals()[name], copy.contents[name]
        plain = content
        if self._seal is not None and content.size:
            plain = np.empty(own.nbytes, np.uint8)
            try:
                self._seal.open(name, copy.step, content, plain)
            except CheckpointError:  # of another length, or not what this site has sealed
                return False
        if not own.size or plain.size != own.nbytes:
            return False
        set_from_host(own, plain.view(own.dtype))
        return True

    def _pairs_led(self):
        return [pair for pair in self._pairs if pair.leader == self._comm.rank]

    def _contents(self):
        """Return name -> content of this rank's residual as it is now."""
        step, found = self.training.state.step, {}
        for name, array in self._residuals().items():
            plain = np.array(to_host(array)).reshape(-1)
            sealed = self._seal is not None and plain.size
            found[name] = self._seal.seal(name, step, plain) if sealed else plain.view(np.uint8)
        return found

    def _residuals(self) -> dict[str, Any]:
        """Return name -> array of this rank's residual, as it lives."""
        arrays = self.training.arrays()
        return {name: arrays[name] for name in sorted(arrays) if is_residual(name)}


def _pairs_in_site(tiers):
    return [Pair(tiers.site_name, 0, 1)] if tiers.site.size > 1 else []


def pairs_of_sites(tiers: "Tiers") -> list[Pair]:
    """Return who has whose copies, by numbers of sites: the one above in the tree, and of the one at the
    top the first below. On ranks that are no leader nobody has any.

    Not of a hub whose end is the end of all, nor of two at the top that keep the same of a common sum.
    """
    tree, names, circle = tiers.cluster.tree, tiers.cluster.names, tiers.circle
    if tiers.site.rank != 0 or len(names) == 1:
        return []
    assert circle is not None
    pairs = []
    for number, site in enumerate(names):
        ends_all = site == circle.listens and circle.succession is None
        above = tree.above(number)
        if not ends_all and not (tree.retells and number in (tree.hub, tree.partner)):
            pairs.append(Pair(site, number, tree.children[number][0] if above is None else above))
    return pairs
