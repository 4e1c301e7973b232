"""Secure sums: exact inside a site, and between sites masked, so that the hub learns the sum alone.

    inside a site   as `hierarchical` does
    up to the hub   a leader turns its site's sum into codes of fixed point, adds masks that cancel in
                    the sum of all, and sends them; a site whose sum is not finite says so instead
    who is there    the hub tells all leaders who takes part. Where one is missing, its masks are in what
                    the others have sent: "repeat" has them mask and send again, "reveal" has them tell
                    the seeds that are missing
    down            the sum of the codes goes to all leaders as it is, and all read it alike

All sites meet at the hub, whatever tree there is: who adds up for others would see what they send. The
sum of the weights of those who take part travels masked behind the entries.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from isthmus import kernels
from isthmus.collectives.given import GivenBucket
from isthmus.collectives.hierarchical import Hierarchical
from isthmus.collectives.messages import wait_for
from isthmus.compression.dense import Dense
from isthmus.compression.fixed_point import FIRST_RANGE, FixedPoint
from isthmus.errors import NoDeviceError
from isthmus.links.comm import message_nbytes
from isthmus.links.on_device import Host
from isthmus.security.masks import FEWEST, Masking, revealed_nbytes, unmask
from isthmus.vectors import chunk_slices

if TYPE_CHECKING:  # cluster files need what not every machine has
    from isthmus.links.tiers import Tiers

HOW = ("repeat", "reveal")


@dataclass(frozen=True)
class SecureSum:
    """How sums over sites are kept secret from the hub: each site's part is masked.

    how: what is done where a site's sum is not finite: "repeat": the others mask and send theirs again;
    "reveal": they tell the masks that are missing, a round trip more in every sum. bits: of an entry, 8
    or 16. goes_on: whether the sum of the others is then used, if they are three or more; else it is
    not finite. What is wrong with a rank's vector is raised on all ranks either way. ValueError for what
    makes no sense.
    """

    how: str = "repeat"
    bits: int = 8
    goes_on: bool = False

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ValueError(f"a secure sum must be one of {', '.join(HOW)}, not {self.how!r}")
        FixedPoint(self.bits)

    def wires(self, sites: int) -> FixedPoint:
        """Return what so many sites send; ValueError where they are too few or too many."""
        if sites < FEWEST:
            raise ValueError(
                f"a secure sum takes {FEWEST} sites at least, not {sites}: of two, each would know what "
                "the other has sent; leave secure_sum out"
            )
        return FixedPoint(self.bits, sites)

    def check(self, tiers: "Tiers") -> None:
        """Raise ValueError where sites cannot make such sums."""
        self.wires(len(tiers.cluster.sites))
        if tiers.keys is None:
            raise ValueError(
                "a secure sum takes sealed links: masks are made of the keys that sites have signed; "
                "give split_tiers keys"
            )


@dataclass
class Secret:
    """What one allreduce makes its secure sums with: masks are of one `purpose`, and of no other.

    weight: of this rank's site, of a sum of 1.
    """

    sum: SecureSum
    purpose: bytes
    weight: float = 0.0

    @classmethod
    def of(cls, secure: SecureSum, tiers: "Tiers", weights: list[float]) -> Self:
        """Return the secret of the next allreduce. weights: of all ranks, not yet normalised."""
        assert tiers.keys is not None  # or `check` has refused it
        secret = cls(secure, tiers.keys.purpose())
        secret.weigh(tiers, weights)
        return secret

    def weigh(self, tiers: "Tiers", weights: list[float]) -> None:
        """Give this rank's site its weight of those of all ranks, not yet normalised."""
        ranks = tiers.cluster.ranks_of_site(tiers.site_name)
        self.weight = sum(weights[rank] for rank in ranks) / sum(weights)


class Masked(Hierarchical):
    """The sum of float32[size] over all ranks, in place, of which each site's part is masked.

    site, leaders, index, residence, tag: as those of `Hierarchical`. wish: of the allreduce. Buckets
    travel together. Raises NoDeviceError for vectors that live on a GPU.
    memory: the residual, then the ranges of the blocks, on leaders. present: who took part last.
    """

    def __init__(self, secret, site, leaders, index, tiers, wish, clock, residence, tag):
        if not isinstance(residence, Host):
            raise NoDeviceError(
                "secure sums are made on CPUs, and a vector is on a GPU; leave secure_sum out"
            )
        tree, size = tiers.cluster.tree, wish.size
        super().__init__(
            site,
            None,  # what stays inside a site is the base's
            index,
            tree,
            size,
            [slice(0, size)],
            [Dense()],
            [False],
            wish.chunk_nbytes,
            clock,
            residence,
            tag=tag,
        )
        self.hub, self.leaders, self.secret = tree.hub, leaders, secret
        self.secure, self.masking = secret.sum, None
        self.last_bucket = len(wish.buckets) - 1
        self.everyone = list(range(len(tree.parents)))
        self.present = self.everyone
        self.others = [other for other in self.everyone if other != index]
        self.wires = self.secure.wires(len(self.everyone))
        if leaders is None:
            return
        entries = self.wires.codes(size)
        self.codes, self.total = np.empty((2, entries), self.wires.dtype)
        self.messages = chunk_slices(0, entries, max(1, wish.chunk_nbytes // self.codes.itemsize))
        self.kept = size if wish.error_feedback else 0
        first = np.full(self.kept + self.wires.state_entries(size), FIRST_RANGE, "f4")
        first[: self.kept] = 0
        self.memories = [first, first.copy()]
        self.outgoing, self.flag = np.empty_like(self.codes), np.empty(1, np.uint8)
        self.inboxes = {}
        if index == self.hub:
            self.inboxes = {other: np.empty_like(self.codes) for other in self.others}
            return
        heads = [tiers.cluster.ranks_of_site(name)[0] for name in tiers.cluster.names]
        pair_keys = {
            other: tiers.keys.shared(secret.purpose, heads[other])
            for other in self.others
            if other != self.hub
        }
        self.masking = Masking(index, pair_keys, self.secure.how == "reveal")

    def decay(self, share):
        if self.residual is not None:
            self.residual[:] *= np.float32(share)

    @property
    def missing(self):
        """The sites that did not contribute to the last sum."""
        return [site for site in self.everyone if site not in self.present]

    @property
    def residual(self):
        return None if self.leaders is None else self._kept_and_ranges(self.now)[0]

    def _kept_and_ranges(self, which):
        """Return the residual, or None, and the ranges in one of the two memories."""
        memory = self.memories[which]
        return (memory[: self.kept] if self.kept else None), memory[self.kept :]

    def start(self, total, number, key, given):
        """Once the last bucket is there, sum all inside the site, and send that on masked."""
        given.write(total, given.part)
        if number < self.last_bucket:
            return
        super().start(total, 0, key, GivenBucket(slice(0, self.size), [total], 1))
        if self.leaders is not None:
            self._send_up(total, key)

    def finish(self, total, key):
        """Take the sum of all sites, and pass it down the chain, with who took part; as the base's."""
        present = np.zeros(len(self.everyone), np.uint8)
        if self.leaders is not None:
            if self.index == self.hub:
                self._add_up(key)
            else:
                self._follow(key)
            self._read(total)
            wait_for(self.sent)
            present[self.present] = 1
        if self.left is not None:
            self.site.Recv(present, self.left)
            self.present = np.flatnonzero(present).tolist()
        if self.right is not None:
            self.site.Send(present, self.right)
        return super().finish(total, key)

    def predicted(self):
        """Yield (site, bytes) for every message that this rank sends where all contribute."""
        yield from super().predicted()
        if self.right is not None:
            yield self.index, message_nbytes(self.site, len(self.everyone), self.right)
        if self.leaders is None:
            return
        itemsize = self.codes.itemsize
        whole = [itemsize * (part.stop - part.start) for part in self.messages]
        if self.index == self.hub:
            each = {other: [len(self.everyone), *whole] for other in self.others}
        else:
            told = [revealed_nbytes(0)] if self.masking.reveals else []
            each = {self.hub: [1, *whole, *told]}
        for other, messages in each.items():
            for nbytes in messages:
                yield other, message_nbytes(self.leaders, nbytes, other)

    def _send_up(self, total, key):
        """Encode this site's sum, and send it to the hub, piece by piece; or that there is none."""
        self.memories[1 - self.now][:] = self.memory
        finite = kernels.for_array(total).all_finite(total)
        self.flag[0], self.sent, at_hub = finite, [], self.index == self.hub
        if at_hub:
            self.flags = {other: np.empty(1, np.uint8) for other in self.others}
            self.asked = {
                other: self.leaders.Irecv(flag, other, self.tag) for other, flag in self.flags.items()
            }
        else:
            self.sent.append(self.leaders.Isend(self.flag, self.hub, self.tag))
        if finite:
            kept, ranges = self._kept_and_ranges(1 - self.now)
            self.wires.encode_codes(total, kept, ranges, self.codes[: self.size])
            self.wires.encode_weight(self.secret.weight, self.codes[self.size :])
            if not at_hub:
                self._send_masked(key, self.everyone)
        self.clock.lap("encode")

    def _send_masked(self, key, among):
        """Send the codes, masked for a sum of the sites `among`; a piece travels while others wait."""
        masks = self.masking.begin(key, among)
        wait_for(self.sent[1:])  # what went before leaves from the same place
        for part in self.messages:
            piece = self.outgoing[part]
            piece[:] = self.codes[part]
            for mask in masks:
                mask.mask(piece)
            self.sent.append(self.leaders.Isend(piece, self.hub, self.tag))

    def _add_up(self, key):
        """Leave in `total` the sum of the codes of all who take part."""
        wait_for(self.asked.values())
        there = [self.index] if self.flag[0] else []
        self.present = sorted(there + [other for other, flag in self.flags.items() if flag[0]])
        given = [site for site in self.present if site != self.index]
        said = np.zeros(len(self.everyone), np.uint8)
        said[self.present] = 1
        self.sent += [self.leaders.Isend(said, other, self.tag) for other in self.others]
        self.total[:] = self.codes if there else 0
        repeats = self._again()
        self._take_codes(given, add=not (repeats or self._refused()))
        if self._refused():
            return
        if repeats:
            self._take_codes(given, add=True)
        if self.secure.how == "reveal":
            missing = [site for site in self.others if site not in given]
            told = {site: np.empty(revealed_nbytes(len(missing)), np.uint8) for site in given}
            wait_for([self.leaders.Irecv(seeds, site, self.tag) for site, seeds in told.items()])
            self.clock.lap("links")
            unmask(self.total, given, missing, {site: told[site].tobytes() for site in given})
            self.clock.lap("decode")
        for part in self.messages:
            self.sent += [self.leaders.Isend(self.total[part], other, self.tag) for other in self.others]

    def _take_codes(self, sites, add):
        """Take the codes of `sites`, and add them to `total` where asked for."""
        arriving = [
            (
                self.leaders.Irecv(self.inboxes[site][part], site, self.tag),
                self.inboxes[site][part],
                part,
            )
            for part in self.messages
            for site in sites
        ]
        for request, codes, part in arriving:
            request.Wait()
            if add:
                self.total[part] += codes
        self.clock.lap("links")

    def _follow(self, key):
        """Do what the hub needs of this site, and take the sum of all."""
        said = np.empty(len(self.everyone), np.uint8)
        self.leaders.Recv(said, self.hub, self.tag)
        self.present = np.flatnonzero(said).tolist()
        if self._refused():
            return
        if self.flag[0]:
            if self._again():
                self._send_masked(key, self.present)
            if self.masking.reveals:
                told = np.frombuffer(self.masking.reveal(self.present), np.uint8)
                self.sent.append(self.leaders.Isend(told, self.hub, self.tag))
        wait_for([self.leaders.Irecv(self.total[part], self.hub, self.tag) for part in self.messages])
        self.clock.lap("links")

    def _again(self):
        """Whether those who take part mask and send once more."""
        missing = len(self.present) < len(self.everyone)
        return missing and self.secure.how == "repeat" and not self._refused()

    def _refused(self):
        """Whether there is no sum: too few take part, or one does not and the others do not go on."""
        if len(self.present) == len(self.everyone):
            return False
        return not self.secure.goes_on or len(self.present) < FEWEST

    def _read(self, total):
        """Overwrite `total` with the mean of those who took part, or with NaN."""
        if self._refused():
            total[:] = np.nan
            return
        ranges = self._kept_and_ranges(1 - self.now)[1]
        self.wires.decode_codes(self.total[: self.size], ranges, total)
        if len(self.present) < len(self.everyone):
            weight = self.wires.decode_weight(self.total[self.size :])
            total /= np.float32(weight)
        self.clock.lap("decode")
