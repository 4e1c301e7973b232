"""Sealed links: the same bits, 16 bytes a message more, and nothing that anybody between could use."""

import json
import time
from collections import deque
from itertools import pairwise
from pathlib import Path

import cryptography_vectors
import numpy as np
import pytest
from clusters import cluster_of
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from mpi4py import MPI
from patience import launched
from test_rebalancing import lab

import isthmus
from isthmus.collectives import messages
from isthmus.collectives.allreduce import Allreduce
from isthmus.compression import COMPRESSORS
from isthmus.errors import SealError, SecurityError
from isthmus.jobs import using
from isthmus.jobs.launch import rank_command, rank_environment
from isthmus.links import comm as link_verbs
from isthmus.links import sealed
from isthmus.links.agreement import broadcast_json, from_root, gather_json, together
from isthmus.links.clocks import clock_offsets
from isthmus.links.comm import Wrapped, receive, send
from isthmus.links.sealed import TAG_NBYTES, SealedComm, agree_on_keys
from isthmus.links.world import all_gather, broadcast, gather
from isthmus.recovery.handover import taken_by_new
from isthmus.registry import ALGORITHMS
from isthmus.security.key_files import make_keys
from isthmus.security.pair_keys import HELLO, PairKeys, signed, statement, verify

VECTORS = Path(cryptography_vectors.__file__).parent
CANARY = b"what only its own site may know"


class Watched(Wrapped):
    """What leaves through it, as somebody between the sites sees it: (cluster rank, bytes)."""

    lets_past = True  # a key is agreed on in clear, over what is wrapped

    def __init__(self, comm, ranks, left):
        super().__init__(comm)
        self.ranks, self.left = ranks, left

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        self.left.append((self.ranks[dest], np.array(buffer).tobytes()))
        return self.comm.Isend(buffer, dest, tag)


def keys_of(comm, folder, *sites):
    """Return the folder with a key of each site, on every rank."""
    for site in sites if comm.rank == 0 else ():
        make_keys(folder / "keys", site)
    comm.Barrier()
    return folder / "keys"


def watched_and_sealed(tiers, folder):
    """Return the tiers watched, the same sealed inside the watch, and what leaves either."""
    left = []
    watched = tiers.through(lambda comm, ranks: Watched(comm, ranks, left))
    keys = agree_on_keys(tiers.cluster, tiers.world, tiers.site, folder)
    return watched, watched.sealed_by(keys), left


def across(tiers, left):
    """Return the bytes of each message in `left` that went to another site."""
    own = tiers.cluster.ranks_of_site(tiers.site_name)
    return [message for rank, message in left if rank not in own]


EVERY = [
    *((name, None) for name, row in ALGORITHMS.items() if row.own),
    *(("hierarchical", kind) for kind in COMPRESSORS.values()),
]


@pytest.mark.ranks(4)
@pytest.mark.parametrize("sites", [(2, 2), (1, 2, 1)])
def test_sealed_sums_have_the_bits_of_plain_ones_and_16_bytes_a_message_more(comm, shared_folder, sites):
    size, draw = 20_000, np.random.default_rng(comm.rank)
    vectors = [draw.normal(size=size).astype("f4") for _ in range(2)]
    folder = keys_of(comm, shared_folder, *(f"site{number}" for number in range(len(sites))))
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(*sites))) as tiers:
        plain, secret, left = watched_and_sealed(tiers, folder)
        assert secret.sealed
        assert not plain.sealed
        for name, kind in EVERY:
            compressor = kind and kind(
                **({"shapes": ((100, 200),)} if kind.__name__ == "LowRank" else {})
            )
            found = []
            for each in (plain, secret):
                allreduce = Allreduce(each, size, name, compressor, chunk_nbytes=6000)
                left.clear()
                means = [allreduce(vector).tobytes() for vector in vectors]
                went = across(tiers, left)
                counted = allreduce.sent_nbytes
                assert counted["link"] == sum(map(len, went)), (name, kind)
                assert counted == {key: 2 * n for key, n in allreduce.predicted_nbytes().items()}
                seconds = isthmus.predict_allreduce(
                    each.cluster, size, algorithm=name, compressor=compressor, chunk_nbytes=6000
                ).seconds
                found.append((means, allreduce.memory.tobytes(), went, counted, seconds))
            (means, memory, clear, counted, seconds), (same, alike, dark, more, longer) = found
            assert means == same, (name, kind)
            assert memory == alike, (name, kind)
            assert [len(message) + TAG_NBYTES for message in clear] == [len(each) for each in dark]
            assert more["link"] == counted["link"] + TAG_NBYTES * len(clear)
            assert more["site"] == counted["site"]
            assert seconds < longer < 1.1 * seconds, name
            assert not {message[:32] for message in clear} & {message[:32] for message in dark}
        with pytest.raises(ValueError, match='"mpi" cannot be sealed: MPI sends its messages itself'):
            Allreduce(secret, size, "mpi")
        with pytest.raises(AttributeError, match="SealedComm has no allreduce"):
            secret.world.allreduce(1)


@pytest.mark.ranks(4)
def test_all_that_ranks_tell_each_other_is_sealed(comm, shared_folder):
    folder = keys_of(comm, shared_folder, "site0", "site1", "site2")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(1, 2, 1))) as tiers:
        plain, secret, left = watched_and_sealed(tiers, folder)
        text = np.frombuffer(CANARY, np.uint8)
        seen = []
        for each in (plain, secret):
            world = each.world
            left.clear()
            for root in range(world.size):
                told = text.copy() if world.rank == root else np.zeros_like(text)
                broadcast(world, told, root)
                assert told.tobytes() == CANARY
                rows = gather(world, text, root)
                assert root != world.rank or [row.tobytes() for row in rows] == [CANARY] * 4
            assert [row.tobytes() for row in all_gather(world, text)] == [CANARY] * 4
            assert broadcast_json(world, CANARY.decode()) == CANARY.decode()
            assert gather_json(world, CANARY.decode()) == [CANARY.decode()] * 4
            with pytest.raises(SecurityError, match=CANARY.decode()):
                together(world, lambda world=world: fail_on(world.rank == 3))
            assert np.abs(clock_offsets(world, time.perf_counter)).max() < 60
            seen.append([CANARY in message for message in across(tiers, left)])
        clear, dark = (comm.allgather(each) for each in seen)
        assert [sum(each) > 3 for each in clear] == [True, True, False, True]  # rank 2 leads no site
        assert not any(map(any, dark))


def fail_on(here, kind=SecurityError):
    if here:
        raise kind(CANARY.decode())


@pytest.mark.ranks(4)
def test_tiers_of_several_sites_are_sealed_too_and_inside_a_site_nothing_is(comm, shared_folder):
    folder = keys_of(comm, shared_folder, "site0", "site1", "site2")
    with isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 1, 1)), folder) as tiers:
        assert tiers.sealed
        assert not isinstance(tiers.site, Wrapped)
        message = np.full(3, comm.rank, "f4")
        if tiers.tier == "edge":
            assert isinstance(tiers.edge, SealedComm)
            tiers.edge.Isend(message, 1 - tiers.edge.rank).Wait()
            tiers.edge.Recv(message, 1 - tiers.edge.rank)
            assert message[0] == 5 - comm.rank
            with pytest.raises(AttributeError, match="SealedComm has no Allreduce"):
                tiers.edge.Allreduce(message, message)
        else:
            assert not isinstance(tiers.cloud, Wrapped)
    with pytest.raises(ValueError, match="some ranks give `keys` and others do not"):
        isthmus.split_tiers(comm, isthmus.Cluster(cluster_of(2, 1, 1)), folder if comm.rank else None)


def test_what_does_not_open_is_not_agreed_on():
    """Over a link that cannot be trusted, the others would wait for another message."""
    for kind, told in ((SecurityError, True), (SealError, False)):
        for ask in (together, from_root):
            with pytest.raises(kind) as problem:
                ask(MPI.COMM_SELF, lambda kind=kind: fail_on(True, kind))
            assert problem.value.everywhere == told


# --- what somebody between the sites may try


class Wire:
    """One end of a wire that keeps messages in order, until somebody takes hold of them."""

    def __init__(self, rank, messages):
        self.rank, self.size, self.messages = rank, 3, messages

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        self.messages.setdefault((self.rank, dest, tag), deque()).append(buffer.tobytes())
        return Done()

    def Irecv(self, buffer, source, tag=0):  # noqa: N802
        message = self.messages[source, self.rank, tag].popleft()
        buffer[: len(message)] = np.frombuffer(message, np.uint8)[: buffer.size]
        return Done()


class Done:
    def Wait(self):  # noqa: N802
        return None

    def Test(self):  # noqa: N802
        return True


def three(name="leaders"):
    """Return three ranks of three sites on one wire, and the messages under way."""
    keys, messages = [PairKeys() for _ in range(3)], {}
    hellos = [HELLO.pack(each.public, bytes(64)) for each in keys]
    for rank, each in enumerate(keys):
        each.meet(b"context", hellos, [other for other in range(3) if other != rank])
    return (
        [
            SealedComm(Wire(rank, messages), range(3), keys[rank], {0, 1, 2} - {rank}, name)
            for rank in range(3)
        ],
        messages,
        keys,
    )


def test_every_way_to_meddle_with_a_message_is_refused():
    given = [np.arange(7, dtype="f4") + number for number in range(4)]
    plain = given[0].tobytes()

    def changed(byte):
        def act(queue, _):
            queue[0] = bytes(each ^ (1 if at == byte else 0) for at, each in enumerate(queue[0]))

        return act

    ways = {f"byte {byte} is changed": changed(byte) for byte in range(len(plain) + TAG_NBYTES)}
    ways |= {
        "cut": lambda queue, _: queue.__setitem__(0, queue[0][:-1]),
        "empty": lambda queue, _: queue.__setitem__(0, b""),
        "left out": lambda queue, _: queue.popleft(),
        "another order": lambda queue, _: queue.rotate(1),
        "in clear": lambda queue, _: queue.__setitem__(0, plain + bytes(TAG_NBYTES)),
        "of another rank": lambda queue, all_: queue.__setitem__(0, all_[2, 1, 5][0]),
        "to another rank": lambda queue, all_: queue.__setitem__(0, all_[0, 2, 5][0]),
        "of another tag": lambda queue, all_: queue.__setitem__(0, all_[0, 1, 6][0]),
        "sent back": lambda queue, all_: queue.__setitem__(0, all_[1, 0, 5][0]),
    }
    for what, meddle in ways.items():
        ranks, messages, _ = three()
        for tag in (5, 6):
            for vector in given:
                for source, dest in ((0, 1), (0, 2), (2, 1), (1, 0)):
                    ranks[source].Send(vector, dest, tag)
        meddle(messages[0, 1, 5], messages)
        received = np.ones(7, "f4")
        with pytest.raises(SealError, match="a message from rank 0 to rank 1 does not open: it"):
            ranks[1].Recv(received, 0, 5)
        assert not received.any(), what
        for vector in given:  # what was let alone opens
            ranks[1].Recv(received, 2, 5)
            assert received.tolist() == vector.tolist()
    ranks, messages, _ = three()
    ranks[0].Send(given[0], 1)
    (message,) = messages[0, 1, 0]
    messages[0, 1, 0].append(message)
    request = ranks[1].Irecv(received, 0)
    assert request.Test()
    assert request.Test()  # opened once
    with pytest.raises(SealError):  # the same message again
        ranks[1].Recv(received, 0)


def test_keys_differ_by_communicator_direction_and_job_and_end_after_their_messages():
    ranks, messages, keys = three()
    others = SealedComm(Wire(1, messages), range(3), keys[1], {0, 2}, "world")
    message = np.zeros(4, "f4")
    ranks[0].Send(message, 1)
    with pytest.raises(SealError):
        others.Recv(message, 0)
    of_pair = {keys[0].key(name, *ends, 1) for name in ("leaders", "world") for ends in ((0, 1), (1, 0))}
    assert len(of_pair) == 4
    assert keys[1].key("leaders", 0, 1, 0) in of_pair
    ranks, messages, _ = three()
    for number in range(3):
        ranks[0].Send(message, 1, tag=number % 2)
    for first, second in pairwise(messages[0, 1, 0]):
        assert first != second
    ranks[0]._out[1].left = 1
    ranks[0].Send(message, 1)
    with pytest.raises(SealError, match="rank 0 has sent rank 1 4,294,967,296 messages"):
        ranks[0].Send(message, 1)


def test_messages_of_every_shape_travel_and_others_are_refused(monkeypatch):
    ranks, _, _ = three()
    for given in (np.empty(0, "f4"), np.ones((2, 0, 3)), np.arange(6).reshape(2, 3), np.array(5.0)):
        received = np.zeros_like(given)
        ranks[0].Send(given, 1)
        ranks[1].Recv(received, 0)
        assert received.tolist() == given.tolist()
    with pytest.raises(ValueError, match="contiguous"):
        ranks[0].Send(np.zeros((4, 4))[:, 1], 1)
    monkeypatch.setattr(sealed, "MOST_NBYTES", 100)
    with pytest.raises(isthmus.IsthmusError, match="104 bytes cannot be sealed"):
        ranks[0].Send(np.zeros(26, "f4"), 1)


@pytest.mark.ranks(5)
@pytest.mark.parametrize("link", ["sealed", "clear"])
def test_arrays_that_are_longer_than_a_message_travel_in_parts(comm, shared_folder, monkeypatch, link):
    folder = keys_of(comm, shared_folder, *(f"site{number}" for number in range(4)))
    cluster = isthmus.Cluster(cluster_of(2, 1, 1, 1) | {"hub": ["site0", "site1"]})
    with isthmus.split_tiers(comm, cluster, keys=folder if link == "sealed" else None) as tiers:
        world, draw = tiers.world, np.random.default_rng(0)
        allreduce = Allreduce(tiers, 1000, compressor=isthmus.Int8())
        monkeypatch.setattr(sealed, "MOST_NBYTES", 1000)
        monkeypatch.setattr(messages, "PIECE_NBYTES", 800)
        monkeypatch.setattr(link_verbs, "MOST_NBYTES", 900)
        wanted = draw.normal(size=(7, 111)).astype("f4")
        for root in range(world.size):
            found = wanted.copy() if world.rank == root else np.zeros_like(wanted)
            broadcast(world, found, root)
            assert (found == wanted).all()
        found = np.zeros_like(wanted)
        if world.rank == 0:
            send(world, wanted, 4)
        elif world.rank == 4:
            receive(world, found, 0)
            assert (found == wanted).all()
        # A rank that is new begins with what another has, as in a run that goes on with others.
        new = world.rank == 3
        taken = taken_by_new(
            world, [0, 1, 2, None, 4], None if new else {"a": wanted}, {"a": wanted * 0}
        )
        assert (taken["a"] == wanted).all() if new else taken is None
        told = allreduce.memory[allreduce.memory.size // 2 :]
        told[:] = world.rank
        allreduce.begin_anew()  # two at the top keep the same of a common sum
        assert (told == (0 if world.rank == 2 else world.rank)).all()


def test_a_hello_is_of_one_site_rank_key_and_job():
    private, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    (hello,) = signed(private, b"c" * 32, "edge", {3: b"k" * 32})
    verify(public, b"c" * 32, 3, "edge", hello)
    for key, context, rank, site, said in (
        (other.public_key().public_bytes_raw(), b"c" * 32, 3, "edge", hello),
        (b"\xff" * 32, b"c" * 32, 3, "edge", hello),
        (public, b"d" * 32, 3, "edge", hello),
        (public, b"c" * 32, 4, "edge", hello),
        (public, b"c" * 32, 3, "edges", hello),
        (public, b"c" * 32, 3, "edge", b"l" + hello[1:]),
    ):
        with pytest.raises(SecurityError, match=f"site '{site}' does not sign with the key"):
            verify(key, context, rank, site, said)
    assert statement(b"c" * 32, 3, "edge", b"k" * 32) != statement(b"c" * 32, 3, "dge", b"k" * 32)
    with pytest.raises(SecurityError, match="rank 1 gives a key that keeps nothing secret"):
        PairKeys().meet(b"c", [HELLO.pack(bytes(32), bytes(64))] * 2, [1])


# --- published vectors, of the primitives as they are used here


def entries(path, opens):
    """Yield the entries of a file of `NAME = value` lines; `opens` is the name that begins one."""
    entry = {}
    for line in (VECTORS / path).read_text().splitlines():
        name, _, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if name == opens and entry:
            yield entry
            entry = {}
        if name and not name.startswith(("#", "[")):
            entry[name] = value
    yield entry


def test_aes_gcm_is_nists():
    opened = refused = 0
    for entry in entries("ciphers/AES/GCM/gcmDecrypt256.rsp", "Count"):
        nonce, tag, text = (bytes.fromhex(entry[name]) for name in ("IV", "Tag", "CT"))
        if len(nonce) != 12 or len(tag) != TAG_NBYTES:
            continue
        cipher, aad = AESGCM(bytes.fromhex(entry["Key"])), bytes.fromhex(entry["AAD"]) or None
        plain = bytearray(len(text))
        if "FAIL" in entry:
            refused += 1
            with pytest.raises(InvalidTag):
                cipher.decrypt_into(nonce, text + tag, aad, plain)
            continue
        opened += 1
        cipher.decrypt_into(nonce, text + tag, aad, plain)
        assert plain.hex() == entry["PT"]
        message = bytearray(len(text) + TAG_NBYTES)
        cipher.encrypt_into(nonce, bytes(plain), aad, message)
        assert message == text + tag
    assert opened > 100
    assert refused > 100


def test_hkdf_x25519_and_ed25519_are_the_rfcs():
    derived = 0
    for entry in entries("KDF/rfc-5869-HKDF-SHA256.txt", "COUNT"):
        salt, info, secret = (bytes.fromhex(entry.get(name, "")) for name in ("salt", "info", "IKM"))
        found = HKDF(hashes.SHA256(), int(entry["L"]), salt, info).derive(secret)
        assert found.hex() == entry["OKM"]
        derived += 1
    assert derived == 3
    for entry in entries("asymmetric/X25519/rfc7748.txt", "COUNT"):
        private = X25519PrivateKey.from_private_bytes(bytes.fromhex(entry["INPUT_SCALAR"]))
        public = X25519PublicKey.from_public_bytes(bytes.fromhex(entry["INPUT_U"]))
        assert private.exchange(public).hex() == entry["OUTPUT_U"]
    lines = (VECTORS / "asymmetric/Ed25519/sign.input").read_text().splitlines()
    for line in lines[:200]:
        secret, public, message, signature = map(bytes.fromhex, line.split(":")[:4])
        private = Ed25519PrivateKey.from_private_bytes(secret[:32])
        assert private.public_key().public_bytes_raw() == public
        assert private.sign(message) + message == signature
        with pytest.raises(InvalidSignature):
            private.public_key().verify(signature[:64], message + b"more")


# --- a job whose links are meddled with


MEDDLING = """
import sys
import numpy as np
from isthmus.cli import main
from isthmus.links import tiers
from isthmus.links.comm import Wrapped
from isthmus.links.sealed import SealedComm

class Meddled(Wrapped):
    sent, lets_past = 0, True

    def Isend(self, buffer, dest, tag=0):
        if self.comm.rank == FROM and buffer.nbytes == NBYTES:
            Meddled.sent += 1
            if Meddled.sent == 5:
                buffer = buffer.copy()
                buffer[-20] ^= 1
        return self.comm.Isend(buffer, dest, tag)

tiers.SealedComm = lambda comm, *of_sites: SealedComm(Meddled(comm), *of_sites)
FROM, NBYTES = int(sys.argv.pop(1)), int(sys.argv.pop(1))
main.main()
"""


class Alone:
    """The one rank of a communicator, for what prepares a test."""

    rank = 0

    def Barrier(self):  # noqa: N802
        pass


def sealed_lab(folder, sites, **changes):
    """Return the path of a run's settings with sealed links, its data and keys beside it."""
    path = lab(Alone(), folder, sites, **changes)
    for number in range(len(sites)):
        make_keys(folder / "keys", f"site{number}")
    path.write_text(path.read_text() + '\n[security]\nlink = "sealed"\nkeys = "keys"\n')
    return path


@pytest.mark.slow
def test_a_message_that_does_not_open_ends_the_job_with_one_line(tmp_path):
    """In the middle of a step, while other ranks wait for what their leader will not send."""
    path = sealed_lab(tmp_path, (2, 2), cluster={"compute": "real"}, plan={"replan": False})
    (tmp_path / "meddle.py").write_text(MEDDLING)
    wire = isthmus.Int8(16).wire_nbytes(16 * 8 + 8 + 8 * 3 + 3)
    command = rank_command(4, tmp_path / "meddle.py", 1, wire + TAG_NBYTES, "train", path)
    done = launched(command, env=rank_environment())
    assert done.returncode == 18, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("isthmus:")]
    assert len(said) == 1, done.stderr
    assert "rank 0: a message from rank 2 to rank 0 does not open: it was changed" in said[0]
    assert "docs/errors/18.md" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_model_of_a_sealed_run_goes_to_no_other_host(tmp_path, monkeypatch):
    settings = {
        "cluster": {"links": "real", "compute": "real"},
        "model": {"kind": "perceptron"},
        "allreduce": {"algorithm": "hierarchical", "compressor": None},
        "security": {"link": "sealed", "keys": "keys"},
    }
    run = {"settings": settings, "hosts": ["a", "b"], "started": "now", "model_size": 1}
    (tmp_path / "run.json").write_text(json.dumps(run))
    monkeypatch.setattr(using, "gather_json", lambda comm, value: ["a", "b"])
    with pytest.raises(SecurityError, match="from a to other hosts in clear; start this on one"):
        using.shared_model(MPI.COMM_SELF, tmp_path)
    settings["security"]["link"] = "clear"
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(isthmus.IsthmusError, match=r"model.h5: no such file"):
        using.shared_model(MPI.COMM_SELF, tmp_path)
