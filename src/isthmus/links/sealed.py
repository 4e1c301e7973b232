"""Links whose messages nobody between the sites can read, or change unnoticed: AES-256-GCM.

A message is 16 bytes longer than what is sent, and that is all. Its nonce is its tag and its number
among those of that tag, which both ends count, for MPI keeps their order: no counter travels, and none
is stored. A message that was changed, cut, left out, sent twice, sent by another or meant for another
does not open. Keys last as long as the tiers, so a run that goes on has others, as ranks have that go on
without those that are gone.
"""

import struct
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from isthmus.cluster.cluster import Cluster
from isthmus.errors import MachineError, SealError, SecurityError
from isthmus.json_text import dumps
from isthmus.links.agreement import ranks_where, together
from isthmus.links.clocks import machine_name
from isthmus.links.comm import Comm, Request, Wrapped, bytes_of
from isthmus.links.world import World, all_gather, all_gather_rows
from isthmus.security.key_files import key_paths, read_private, read_public, sites_in
from isthmus.security.pair_keys import HELLO, PairKeys, signed, verify
from isthmus.security.public_keys import KEY_NBYTES, key_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TAG_NBYTES = 16
MOST_MESSAGES = 1 << 32
"""Under one key."""
MOST_NBYTES = (1 << 31) - 1 - TAG_NBYTES
"""Of a message, which the library seals in one call."""
_NONCE = struct.Struct(">IQ")


class SealedComm(Wrapped):
    """A communicator that seals what goes to ranks of other sites, and passes on all else.

    ranks: the cluster rank of each rank of `comm`. keys: this rank's. name: which communicator this is,
    the same on all its ranks.
    """

    def __init__(
        self, comm: Comm, ranks: Sequence[int], keys: PairKeys, strangers: Collection[int], name: str
    ):
        super().__init__(comm)
        self.ranks, self.keys, self.name = ranks, keys, name
        self.strange = [rank in strangers for rank in ranks]
        self._out: dict[int, _Way] = {}
        self._into: dict[int, _Way] = {}

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Request:  # noqa: N802
        if not self.strange[dest]:
            return self.comm.Isend(buffer, dest, tag)
        way = self._out.get(dest)
        if way is None:
            way = self._out[dest] = self._way(self.rank, dest, dest)
        sealed = np.empty(_sealed_nbytes(buffer), np.uint8)
        way.cipher.encrypt_into(way.nonce(tag), bytes_of(buffer).data, None, sealed.data)
        return _Sent(self.comm.Isend(sealed, dest, tag), sealed)

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Request:  # noqa: N802
        if not self.strange[source]:
            return self.comm.Irecv(buffer, source, tag)
        way = self._into.get(source)
        if way is None:
            way = self._into[source] = self._way(source, self.rank, source)
        sealed, nonce = np.empty(_sealed_nbytes(buffer), np.uint8), way.nonce(tag)

        def open_it() -> None:
            from cryptography.exceptions import InvalidTag

            plain = bytes_of(buffer)
            try:
                way.cipher.decrypt_into(nonce, sealed.data, None, plain.data)
            except InvalidTag:
                plain[:] = 0  # nobody takes what was written before it was known to be wrong
                raise self._refused(source) from None

        return _Received(
            self.comm.Irecv(sealed, source, tag), open_it, lambda: self._refused(source), sealed
        )

    def overhead_nbytes(self, nbytes: int, dest: int) -> int:
        added = TAG_NBYTES if self.strange[dest] else 0
        return added + super().overhead_nbytes(nbytes + added, dest)

    def _way(self, source: int, target: int, other: int) -> "_Way":
        ends = self.ranks[source], self.ranks[target]
        return _Way(self.keys.key(self.name, *ends, self.ranks[other]), *ends)

    def _refused(self, source: int) -> SealError:
        error = SealError(
            f"a message from rank {self.ranks[source]} to rank {self.ranks[self.rank]} does not open: "
            "it was changed on its way, or is not the one that is due; look at what lies between their "
            "sites, and start again"
        )
        error.source = self.ranks[source]
        return error


def beneath_seal(comm: Comm, wrap: Callable[[Comm], Comm]) -> Comm:
    """Return `comm` with `wrap` around what is inside its seal, where somebody between the sites would
    be; around all of it where it has none."""
    inner = comm
    while isinstance(inner, Wrapped) and not isinstance(inner, SealedComm):
        inner = inner.comm
    if not isinstance(inner, SealedComm):
        return wrap(comm)
    inner.comm = wrap(inner.comm)
    return comm


class _Way:
    """Messages from one rank to another: their key, and how many of each tag there were."""

    def __init__(self, key: bytes, source: int, target: int):
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.cipher, self.source, self.target = AESGCM(key), source, target
        self.left = MOST_MESSAGES
        self.numbers: Counter[int] = Counter()

    def nonce(self, tag: int) -> bytes:
        """Return the nonce of the next message with this tag."""
        if self.left == 0:
            raise SealError(
                f"rank {self.source} has sent rank {self.target} {MOST_MESSAGES:,} messages, which is "
                "all that one key is good for; go on from a checkpoint, with new keys"
            )
        self.left -= 1
        number = self.numbers[tag]
        self.numbers[tag] = number + 1
        return _NONCE.pack(tag, number)


class _Sent:
    """A message on its way; its bytes stay as long as it is asked for."""

    def __init__(self, request: Request, sealed: np.ndarray):
        self.request, self.sealed = request, sealed

    def Wait(self) -> None:  # noqa: N802
        self.request.Wait()

    def Test(self) -> bool:  # noqa: N802
        return self.request.Test()


class _Received:
    """A message that is opened once, when it is there."""

    def __init__(
        self,
        request: Request,
        open_it: Callable[[], None],
        refusal: Callable[[], SealError],
        sealed: np.ndarray,
    ):
        self.request, self.refusal, self.sealed = request, refusal, sealed
        self.open_it: Callable[[], None] | None = open_it

    def Wait(self) -> None:  # noqa: N802
        self._take(self.request.Wait)

    def Test(self) -> bool:  # noqa: N802
        return self._take(self.request.Test)

    def _take(self, ask: Callable[[], Any]) -> bool:
        try:
            done = ask() is not False
        except MPI.Exception as problem:
            if problem.Get_error_class() == MPI.ERR_TRUNCATE:  # longer than what is due
                raise self.refusal() from None
            raise
        except MachineError:  # over a socket: of another length
            raise self.refusal() from None
        if done and self.open_it is not None:
            open_it, self.open_it = self.open_it, None
            open_it()
        return done


def agree_on_keys(
    cluster: Cluster, world: World, site: Comm, folder: str | PathLike[str], pinned: bool = True
) -> PairKeys:
    """Return this rank's keys for messages to ranks of other sites. Collective.

    world, site: communicators of all ranks and of this rank's site; what is said over them now is in
    clear, and nothing of it is a secret. A site's leader reads its private key in `folder` on its own
    host, and signs for its site's ranks; it holds the others' signatures against their .pub in that
    folder. What is signed has the public keys of all ranks in it, which are new, so that nothing said at
    another time is taken for an answer. pinned: the cluster's `public_key` is not enough, for it has
    come over a link. SecurityError on every rank if any leader's folder is not right, or a signature is
    not a site's; SealError where what comes makes no sense.
    """
    try:
        return _agreed_keys(cluster, world, site, Path(folder).expanduser(), pinned)
    except (ValueError, TypeError, LookupError) as problem:
        raise SealError(
            "what ranks tell one another to agree on keys was changed on its way; look at what lies "
            "between their sites, and start again"
        ) from problem


def _agreed_keys(cluster, world, site, folder, pinned):
    own, name = together(world, PairKeys), cluster.names[world.site_index]
    told = own.public + sha256(machine_name().encode()).digest()
    of_rank = [row.tobytes() for row in all_gather(world, np.frombuffer(told, np.uint8))]
    publics, machines = [row[:KEY_NBYTES] for row in of_rank], [row[KEY_NBYTES:] for row in of_rank]
    context = sha256(b"".join([dumps(cluster.to_table()).encode(), *publics])).digest()

    def introduce() -> tuple[list[bytes], dict[str, bytes]]:
        if site.rank != 0:
            return [], {}
        here = {
            cluster.names[number]
            for number, machine in zip(cluster.site_of_rank, machines)
            if machine == machines[world.rank]
        }
        private = read_private(folder, name)
        trusted = trusted_keys(cluster, name, private, folder, here, pinned)
        own_ranks = {rank: publics[rank] for rank in cluster.ranks_of_site(name)}
        return signed(private, context, name, own_ranks), trusted

    mine, trusted = together(world, introduce)
    rows = np.frombuffer(b"".join(mine), np.uint8).reshape(-1, HELLO.size)
    counts = [len(world.ranks_of_site[site]) * (not place) for site, place in world.place_of_rank]
    hellos = [row.tobytes() for each in all_gather_rows(world, rows, counts) for row in each]

    def meet() -> None:
        for site, key in trusted.items():
            for rank in cluster.ranks_of_site(site):
                verify(key, context, rank, site, hellos[rank])
        own.meet(context, hellos, sorted(strangers(cluster, name)))

    together(world, meet)
    return own


def trusted_keys(
    cluster: Cluster,
    site: str,
    private: "Ed25519PrivateKey",
    folder: str | PathLike[str],
    here: Collection[str],
    pinned: bool,
) -> dict[str, bytes]:
    """Return site -> public key, as the leader of `site`, whose key is `private`, knows them.

    here: the sites with ranks on this machine. SecurityError where a key is not in the folder,
    differs from the cluster file's, or where the folder has the private key of a site that is not here.
    """
    for name in sites_in(folder):
        if name in cluster.names and name not in here:
            path, _ = key_paths(folder, name)
            raise SecurityError(
                f"{path}: is the private key of a site that is not on this host; it belongs where the "
                f"leader of {name!r} runs, alone: make another there with `isthmus keys rotate {name}`"
            )
    found = {}
    for other in cluster.sites:
        told = None if other.public_key is None else key_bytes(other.public_key)
        known = read_public(folder, other.name)
        _, path = key_paths(folder, other.name)
        if other.name == site:
            known = private.public_key().public_bytes_raw()
        elif known is None and (pinned or told is None):
            raise SecurityError(
                f"{path}: no such file at site {site!r}; bring it there from site {other.name!r}, by a "
                "way that you trust"
            )
        if known is not None and told is not None and known != told:
            raise SecurityError(
                f"{path}: is not the public_key that {cluster.source} has for site {other.name!r}; "
                "bring both up to date"
            )
        key = known or told
        assert key is not None
        found[other.name] = key
    return found


def ranks_without_key(world: World, site: str, folder: str | PathLike[str]) -> list[int]:
    """Return the ranks that could not lead their site, as its key is not to be had where they are.

    site: this rank's. Collective.
    """
    try:
        found = read_private(Path(folder).expanduser(), site)
    except SecurityError:
        found = None
    return ranks_where(world, found is None)


def strangers(cluster: Cluster, site: str) -> set[int]:
    """Return the cluster ranks of other sites than `site`."""
    return {*range(cluster.size)} - {*cluster.ranks_of_site(site)}


def _sealed_nbytes(buffer: np.ndarray) -> int:
    if buffer.nbytes > MOST_NBYTES:
        raise MachineError(
            f"a message of {buffer.nbytes:,} bytes cannot be sealed, the longest has {MOST_NBYTES:,}; "
            "send it in pieces, or with links that are clear"
        )
    return buffer.nbytes + TAG_NBYTES
