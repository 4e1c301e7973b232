"""Runs over sealed links go on without ranks and sites: under new keys, and nothing old is believed."""

import socket
import sys
import time
from collections import Counter

import numpy as np
import pytest
from clusters import cluster_of
from mpi4py import MPI
from patience import launched
from test_resuming import pack, settings
from test_sealed import MEDDLING, sealed_lab
from test_socket_links import TOKEN
from test_surviving import Left

import isthmus
from isthmus.cluster.cluster import Cluster
from isthmus.errors import SealError, SecurityError, SiteError
from isthmus.folders.reading import read_run
from isthmus.jobs.launch import rank_environment
from isthmus.jobs.settings import RunSettings
from isthmus.jobs.sites import SiteJob
from isthmus.jobs.verifying import verify_steps
from isthmus.json_text import dumps
from isthmus.links.comm import Wrapped
from isthmus.links.frames import MEMBERS, Stream
from isthmus.links.greeting import _JOINS, _LISTENS, Met, Voucher, say
from isthmus.links.in_process import in_threads, tiers_in_process
from isthmus.links.sealed import TAG_NBYTES, agree_on_keys, ranks_without_key
from isthmus.links.socket_comm import Endpoint, LostSitesError
from isthmus.mpirun import mpirun
from isthmus.recovery.faults import PLAN
from isthmus.recovery.membership import MOST_CHANGED, Borne, Membership
from isthmus.recovery.site_membership import SiteMembership
from isthmus.security.admission import Token
from isthmus.security.key_files import make_keys

pytest.importorskip("crc32c")

NOTING = """
import os
import signal
from hashlib import sha256
from isthmus.cli import main
from isthmus.links import sealed
from isthmus.security.pair_keys import PairKeys

RANK = os.environ["OMPI_COMM_WORLD_RANK"]
notes = open(f"notes{RANK}", "w", buffering=1)

class Noted(sealed._Way):
    def __init__(self, key, *ends):
        super().__init__(key, *ends)
        self.key, cipher = sha256(key).hexdigest(), self.cipher
        self.cipher = self

        def encrypt_into(nonce, *more):
            notes.write(f"sealed {self.key} {nonce.hex()}\\n")
            return cipher.encrypt_into(nonce, *more)

        self.encrypt_into, self.decrypt_into = encrypt_into, cipher.decrypt_into

class Dying(PairKeys):
    made = 0

    def key(self, communicator, *ends):
        found = super().key(communicator, *ends)
        notes.write(f"key {communicator} {sha256(found).hexdigest()}\\n")
        return found

    def meet(self, *told):
        Dying.made += 1
        if RANK == "0" and Dying.made == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        super().meet(*told)

sealed._Way, sealed.PairKeys = Noted, Dying
main.main()
"""
"""Notes the hash of each key, and of each message's key with its nonce. Rank 0 dies as it agrees on keys
for the third time."""


def keys_for(folder, sites):
    for number in range(sites):
        make_keys(folder / "keys", f"site{number}")
    return {"link": "sealed", "keys": "keys"}


@pytest.mark.slow
def test_who_is_left_agrees_on_new_keys_and_no_nonce_is_used_twice(tmp_path):
    """A message is changed; a rank dies, and while the others agree on keys the hub's leader does."""
    for name in ("train", "test"):
        pack(tmp_path, name)
    settings(
        tmp_path,
        cluster=cluster_of(2, 1, 1),
        allreduce={"compressor": {"kind": "int8", "block": 8}},
        recovery={"survive": True},
        security=keys_for(tmp_path, 3),
    )
    deaths = [
        {"rank": 2, "step": 3, "moment": "send", "kind": "flip", "bit": 9},
        {"rank": 2, "step": 4, "moment": "send", "number": 0},
    ]
    (tmp_path / "faults.json").write_text(dumps(deaths))
    (tmp_path / "noting.py").write_text(NOTING)
    done = launched(
        [mpirun(), "--with-ft", "ulfm", "-n", "4", sys.executable, "noting.py", "train", "run.toml"]
        + ["--name", "mine"],
        env=rank_environment(**{PLAN: str(tmp_path / "faults.json")}),
        cwd=tmp_path,
    )
    assert "Traceback" not in done.stderr
    assert "step 2: a message from rank 2 to rank 0 does not open" in done.stderr, done.stderr
    assert "step 3: ranks 0, 2 gone, 2 go on" in done.stderr, done.stderr
    assert "after 10 steps" in done.stdout
    lines = [(tmp_path / f"notes{rank}").read_text().splitlines() for rank in range(4)]
    notes = [[*map(str.split, each)] for each in lines]
    every = Counter(tuple(note) for each in notes for note in each if note[0] == "sealed")
    assert max(every.values()) == 1
    of_leaders = [key for kind, *key in notes[3] if kind == "key" and key[0] == "leaders"]
    assert len(of_leaders) == len({key for _, key in of_leaders}) >= 3 * 2  # of each set of ranks, a way
    run = read_run(tmp_path / "runs/mine")
    assert {link["sent_nbytes"] - link["predicted_nbytes"] for link in run.summary["links"]} == {0}
    assert [line["ranks"] for line in run.metrics if line["kind"] == "lost"] == [[], [0, 2]]
    counted = [line for line in run.metrics if line["kind"] == "samples"]
    assert [(line["once"], line["again"], line["lost"]) for line in counted] == [(120, 0, {})] * 2
    found = verify_steps(run.folder)
    assert (found["parameter_hash"], found["epochs"]) == (run.summary["parameter_hash"], [1, 2])


@pytest.mark.slow
def test_who_changes_messages_without_end_ends_the_run_in_words(tmp_path):
    still = {"cluster": {"compute": "real"}, "plan": {"replan": False}}
    path = sealed_lab(tmp_path, (1, 1), **still)
    path.write_text(path.read_text() + "\n[recovery]\nsurvive = true\n")
    (tmp_path / "meddle.py").write_text(MEDDLING.replace("sent == 5", "sent >= 5"))
    wire = isthmus.Int8(16).wire_nbytes(16 * 8 + 8 + 8 * 3 + 3)
    done = launched(
        [mpirun(), "--with-ft", "ulfm", "-n", "2", sys.executable, str(tmp_path / "meddle.py"), "1"]
        + [str(wire + TAG_NBYTES), "train", str(path)],
        env=rank_environment(),
    )
    assert done.returncode == 18, done.stderr
    assert (
        done.stderr.count("does not open: it was changed on its way, or is not the one that is due, 2")
        == 3
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("isthmus:")]
    assert len(said) == 1, done.stderr
    assert "rank 0: a message from rank 1 to rank 0 does not open: it was changed" in said[0]
    assert "Traceback" not in done.stderr


class Said(Wrapped):
    """Notes what leaves through it, or sends in its place what is given."""

    lets_past = True

    def __init__(self, comm, left, given):
        super().__init__(comm)
        self.left, self.given = left, given

    def Isend(self, buffer, dest, tag=0):  # noqa: N802
        self.left.append(np.array(buffer))
        return self.comm.Isend(self.given.pop(0) if self.given else buffer, dest, tag)


def test_what_was_said_before_a_loss_is_no_handshake_of_those_who_are_left(tmp_path):
    """Nor is what was said as the same ranks agreed on other keys, nor noise."""
    cluster = Cluster(cluster_of(1, 1, 1))
    keys_for(tmp_path, 3)

    def agree(given=(), cluster=cluster, who=2):
        left, given = [], [*given]

        def play(table, rank):
            tiers = tiers_in_process(table, cluster, rank)
            if rank == who:
                tiers = tiers.through(lambda comm, ranks: Said(comm, left, given))
            return agree_on_keys(tiers.cluster, tiers.world, tiers.site, tmp_path / "keys")

        return in_threads(cluster.size, play), left

    keys, said = agree()
    again, _ = agree()
    both = [each[2].key("leaders", 2, 0, 0) for each in (keys, again)]
    assert both == [each[0].key("leaders", 2, 0, 2) for each in (keys, again)]
    assert both[0] != both[1]
    with pytest.raises(SecurityError, match="site 'site2' does not sign with the key"):
        agree(said)
    fewer = cluster.without([1])
    agree(cluster=fewer, who=1)
    with pytest.raises(SecurityError, match="site 'site2' does not sign with the key"):
        agree(said, cluster=fewer, who=1)
    draw = np.random.default_rng(0)
    for number, each in enumerate(said):
        if each.nbytes in (64, 96):  # what is said of a key, and of what it is signed
            noise = draw.integers(0, 256, each.nbytes, np.uint8)
            with pytest.raises(SecurityError):
                agree([*said[:number], noise])


def vouchers(said=b"what both have said", token=TOKEN):
    ends = _JOINS, _LISTENS
    return Voucher(token, "cloud", said, ends), Voucher(token, "edge", said, ends[::-1])


def test_words_of_who_takes_part_are_believed_once_of_their_own_end_and_connection():
    one, other = vouchers()
    first, second = one.signed(b"first"), one.signed(b"second")
    assert other.opened(first) == b"first"
    with pytest.raises(SiteError, match="does not prove what it says"):
        other.opened(first)  # again
    for wrong in (
        second,  # before the first
        first[:-1] + b"!",
        first[:5] + bytes([first[5] ^ 1]) + first[6:],
        b"",
        b"\x20first",
        vouchers(b"at another time")[0].signed(b"first"),
        vouchers(token=Token(b"another secret of some bytes"))[0].signed(b"first"),
        vouchers()[1].signed(b"first"),  # what the other has said itself
    ):
        with pytest.raises(SiteError, match="does not prove what it says"):
            vouchers()[1].opened(wrong)


def test_who_writes_into_a_connection_changes_nothing_but_that_it_ends():
    def met():
        pair = socket.socketpair()
        return [Met.of(end, voucher) for end, voucher in zip(pair, vouchers())]

    near, far = met()
    near.begin({"generation": 7})
    assert far.begun(time.monotonic() + 60) == {"generation": 7}
    for forged in ({"start": {"generation": 7}}, {"start": near.voucher.signed(b"7").hex() + "00"}, {}):
        say(near, forged)
        with pytest.raises(SiteError, match="does not prove|says what is no start"):
            far.begun(time.monotonic() + 60)
    for known in (True, False):
        near, far = met()
        endpoint = Endpoint(0, [(far, "site 'edge'", [1])])
        endpoint.survives = True
        words = dumps({"generation": 0, "points": [[1, 3, True]]}).encode()
        sender = Stream(near, "site 'cloud'", None, None)
        sender.voucher = sender.voucher if known else None
        sender.send(MEMBERS, 0, 1, 1, 0, words)
        heard = endpoint.hear("points", 60)
        assert (heard is not None) == known
        assert bool(endpoint.streams) == known
        if not known:
            with pytest.raises(LostSitesError, match="site 'edge' does not prove what it says of who"):
                endpoint.check(1)


class Few:
    """A circle whose hub is here or not, and of whom it parts."""

    def __init__(self, is_hub, came=()):
        self.is_hub, self.came, self.parted, self.switch = is_hub, [*came], [], "of a first rank"

    def survive(self):
        pass

    def site_of(self, rank):
        return f"site{rank}"

    def part_from(self, sites, seconds):
        self.parted += sites if self.is_hub else []
        return self.is_hub and bool(sites)


def changed_of(source):
    problem = SealError("changed")
    problem.source = source
    return problem


def test_so_many_changed_messages_are_borne_and_the_hub_parts_from_whose_they_are():
    step = 5
    messages = Borne(lambda: step)
    assert not messages.too_many(LostSitesError("gone"))
    borne = [messages.too_many(changed_of(1)) for _ in range(MOST_CHANGED)]
    step += 1  # who is ahead by a step goes back
    assert [*borne, messages.too_many(changed_of(1))] == [False] * MOST_CHANGED + [True]
    for _ in range(3 * MOST_CHANGED):  # steps are made in between
        step += 2
        assert not messages.too_many(changed_of(1))
    for hub, source, ends in ((True, 2, False), (True, None, True), (False, 2, True)):
        membership = SiteMembership(Few(hub), lambda: 5)
        for _ in range(MOST_CHANGED):
            membership.leave_out_the_gone(changed_of(source), [])
        if ends:
            with pytest.raises(SealError):
                membership.leave_out_the_gone(changed_of(source), [])
        else:
            membership.leave_out_the_gone(changed_of(source), [])
        assert membership.circle.parted == ([] if ends else ["site2"])
    membership = Membership(Left([4] * (2 + MOST_CHANGED), False), lambda: 5)
    for _ in range(MOST_CHANGED):
        membership.leave_out_the_gone(changed_of(2), [])
    with pytest.raises(SealError):
        membership.leave_out_the_gone(changed_of(2), [])
    for came in (["site2"], []):
        membership = SiteMembership(Few(True, came), lambda: 5)
        if came:
            membership.leave_out_the_gone(SecurityError("no key"), [])
        else:
            with pytest.raises(SecurityError):
                membership.leave_out_the_gone(SecurityError("no key"), [])
        assert membership.circle.parted == came


def test_a_site_looks_at_its_own_keys_before_others_wait_for_it(tmp_path):
    path = sealed_lab(tmp_path, (1, 1, 1), cluster={"compute": "real"}, plan={"replan": False})
    run = RunSettings.from_toml(path)
    part = SiteJob("site1", None, (("127.0.0.1", 1),))
    part._check(run, run.read_cluster(), 1)
    (tmp_path / "keys/site2.pub").unlink()
    with pytest.raises(SecurityError, match=r"site2.pub: no such file at site 'site1'"):
        part._check(run, run.read_cluster(), 1)
    assert ranks_without_key(MPI.COMM_SELF, "site1", tmp_path / "keys") == []
    (tmp_path / "keys/site1.key").unlink()
    assert ranks_without_key(MPI.COMM_SELF, "site1", tmp_path / "keys") == [0]
