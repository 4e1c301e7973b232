"""Sites as jobs of their own: frames over sockets, who may join, and what bad callers are told."""

import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from patience import until

from isthmus.errors import SecurityError, SiteError
from isthmus.jobs.recovery_settings import RecoverySettings
from isthmus.jobs.sites import SiteJob, is_loopback
from isthmus.json_text import dumps, loads
from isthmus.links.frames import AGAIN, DATA, HEADER_NBYTES, Stream
from isthmus.links.greeting import MARK, Introduction, hear, introduce, say
from isthmus.links.joining import call, join
from isthmus.links.meeting import Listener, address_of
from isthmus.links.socket_comm import LEADERS, Endpoint, LostSitesError, SocketComm
from isthmus.links.switch import Switch
from isthmus.security.admission import SiteKeys, Token, read_token
from isthmus.security.key_files import make_keys, read_public

pytest.importorskip("crc32c")
TOKEN = Token(b"a secret of sixteen bytes or more")


class Flipping(threading.Thread):
    """What lies between two sockets: passes bytes on, and flips a bit at each of some places."""

    def __init__(self, places):
        super().__init__(daemon=True)
        self.near, self._left = socket.socketpair()
        self.far, self._right = socket.socketpair()
        self.places, self.flipped = sorted(places), 0

    def run(self):
        threading.Thread(target=self._carry, args=(self._right, self._left, ()), daemon=True).start()
        self._carry(self._left, self._right, self.places)

    def _carry(self, source, target, places):
        passed, places = 0, list(places)
        while data := bytearray(source.recv(1 << 16)):
            while places and places[0] < passed + len(data):
                data[places.pop(0) - passed] ^= 4
                self.flipped += 1
            passed += len(data)
            target.sendall(data)


def two_ends(near, far):
    """Return a communicator of two ranks, each with one end of a connection."""
    return [
        SocketComm(Endpoint(rank, [(end, f"site {1 - rank}", [1 - rank])]), LEADERS, [0, 1])
        for rank, end in enumerate((near, far))
    ]


def in_thread(act):
    """Start `act()` in a thread; return what waits for it, and gives its result or raises."""
    found = {}

    def run():
        try:
            found["result"] = act()
        except BaseException as problem:
            found["problem"] = problem

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait():
        thread.join(120)
        assert not thread.is_alive(), "no end"
        if "problem" in found:
            raise found["problem"]
        return found["result"]

    return wait


SIZES = (0, 1, 48, 5000, 65_536, 65_537, 300_000, 7, 2_000_000, 64)


def place_of(number):
    """Return where frame `number` of those of SIZES begins, when none is sent twice."""
    return sum(HEADER_NBYTES + size for size in SIZES[:number])


@pytest.mark.parametrize(
    "places",
    [
        (),
        (place_of(3) + HEADER_NBYTES + 4000,),  # in what is sent
        (place_of(6) + HEADER_NBYTES + 200_000,),
        (place_of(2) + 20,),  # in a header: of how many bytes it tells
        (place_of(6) + 21, place_of(6) + HEADER_NBYTES + 10),
        (place_of(1) + 1,),  # in the mark
        (place_of(9) + HEADER_NBYTES + 63,),  # in the last byte
        tuple(range(3000, 2_000_000, 70_001)),
    ],
)
def test_a_flipped_bit_is_found_at_its_message_which_is_sent_again(places):
    between = Flipping(places)
    between.start()
    sender, receiver = two_ends(between.near, between.far)
    draw = np.random.default_rng(1)
    messages = [draw.integers(0, 256, size, np.uint8) for size in SIZES]

    def send():
        requests = [sender.Isend(message, 1, tag=number % 3) for number, message in enumerate(messages)]
        for request in requests:
            request.Wait()
        back = np.empty(8)
        sender.Recv(back, 1)
        return back

    def receive():
        for number, message in enumerate(messages):
            came = np.full(message.size, 77, np.uint8)
            receiver.Recv(came, 0, tag=number % 3)
            assert came.tobytes() == message.tobytes(), number
        receiver.Send(np.arange(8.0), 0)

    sent = in_thread(send)
    in_thread(receive)()
    assert sent().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert between.flipped == len(places)
    closed = in_thread(sender.endpoint.finish)
    receiver.endpoint.finish()
    closed()


def test_a_lost_word_about_lost_frames_is_no_end_of_them():
    """Whoever is asked while it asks itself answers, and the two do not ask each other for ever."""
    near, far = socket.socketpair()
    ends = two_ends(near, far)
    streams = [end.endpoint.streams[0] for end in ends]
    for stream in streams:
        stream._lost = True
        stream.say(AGAIN)
    for _ in range(20):
        assert [end.endpoint.progress() for end in ends] == [None, None]
    assert not any(stream._lost or stream.writes for stream in streams)


def test_messages_keep_their_order_and_are_taken_by_rank_tag_and_communicator():
    near, far = socket.socketpair()
    one, other = two_ends(near, far)
    twin = SocketComm(other.endpoint, 7, [0, 1])
    requests = [one.Isend(np.array([number]), 1, tag) for number, tag in enumerate((5, 5, 6, 5))] + [
        SocketComm(one.endpoint, 7, [0, 1]).Isend(np.array([9]), 1, 5)
    ]
    for request in requests:
        request.Wait()

    def next_of(comm, tag):
        came = np.empty(1, int)
        comm.Recv(came, 0, tag)
        return int(came[0])

    assert next_of(other, 6) == 2
    assert next_of(twin, 5) == 9
    assert [next_of(other, 5) for _ in range(3)] == [0, 1, 3]
    long = np.arange(100_000)
    sending, room = one.Isend(long, 1), np.empty_like(long)
    assert not sending.Test()  # its memory is needed until it has come
    request = other.Irecv(room, 0)
    while not request.Test():
        one.endpoint.progress()
    assert (room == long).all()
    sending.Wait()
    assert one.overhead_nbytes(5, 1) == HEADER_NBYTES == 48
    with pytest.raises(ValueError, match="contiguous"):
        one.Isend(np.zeros((4, 4))[:, 1], 1)
    near.close()
    with pytest.raises(SiteError, match="site 0 has gone: it closed the connection; .*--resume"):
        other.Recv(room, 0)


@contextmanager
def listening(*others, settings="alike", token=TOKEN, wait_seconds=60.0):
    """Give (the port, what waits for the connections, lines that were told) of a site that listens."""
    told = []
    me = Introduction("cloud", settings, token)
    with Listener(("127.0.0.1", 0), me, others, told.append) as listener:
        port = listener._socket.getsockname()[1]
        yield port, in_thread(lambda: listener.meet(wait_seconds)), told


def caller(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def answer_to(port, words):
    """Return what the one who listens says to a caller who says `words` and no more."""
    with caller(port) as connection:
        with suppress(OSError):  # it may have hung up by now, and not have read all
            connection.sendall(words)
            connection.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            return connection.recv(4096)
        return b""


def unlistening():
    """Return the words of a site that does not say whether it listens."""
    hello = loads(Introduction("edge", "alike", TOKEN).hello("leaders"))
    text = dumps({key: value for key, value in hello.items() if key != "listens"}).encode()
    return MARK + struct.pack("!I", len(text)) + text


def joining(port, site="edge", settings="alike", token=TOKEN, wait_seconds=60.0, **more):
    me = Introduction(site, settings, token, **more)
    return join([("127.0.0.1", port)], me, wait_seconds, lambda line: None)[0]


def test_bad_callers_are_told_in_a_line_at_both_ends_and_the_others_go_on(caplog, monkeypatch):
    with listening("edge", "far") as (port, met, told):
        garbage = (
            (b"GET / HTTP/1.1\r\n\r\n", r"is not isthmus: it begins with b'GET "),
            (b"", "closed the connection without a word"),
            (
                MARK + struct.pack("!I", 500) + b'{"site":',
                "closed the connection in the middle of a word",
            ),
            (MARK + struct.pack("!I", 1 << 30), "says 1073741824 bytes at once"),
            (MARK + struct.pack("!I", 3) + b"[1]", "says what is no JSON"),
            (MARK + struct.pack("!I", 2) + b"{}", "says what is no hello of isthmus"),
            (unlistening(), "says what is no hello of isthmus"),
        )
        for words, _ in garbage:
            assert answer_to(port, words) == b""
        with monkeypatch.context() as impatient:
            impatient.setattr("isthmus.links.greeting.SECONDS_TO_GREET", 0.5)
            with caller(port) as silent, caller(port) as slow:
                with suppress(OSError):  # it is hung up on
                    for letter in MARK:  # a byte now and then is no sign of life
                        slow.send(bytes([letter]))
                        time.sleep(0.15)
                assert silent.recv(100) == b""
                until(lambda: len(caplog.records) >= len(garbage) + 2)
        refused = (
            ({"token": Token(b"another secret of some bytes")}, "another token, or is not known"),
            ({"settings": "others"}, "settings or cluster file are not those of this run"),
            ({"site": "nowhere"}, "the cluster file has no site 'nowhere'"),
            ({"site": "cloud"}, "two sites of one name, 'cloud'"),
            ({"version": "0.0.1"}, "install one version on both"),
        )
        for wrong, why in refused:
            with pytest.raises(SiteError, match=why) as problem:
                joining(port, **wrong)
            assert str(problem.value).startswith(f"127.0.0.1:{port}: ")
            assert "\n" not in str(problem.value)
        first = in_thread(lambda: joining(port))
        until(lambda: any("site edge: joined from" in line for line in told))
        until(lambda: len(caplog.records) >= len(garbage) + 2 + len(refused))
        with pytest.raises(SiteError, match="two sites of one name, 'edge': one has joined from 127"):
            joining(port, wait_seconds=0.6)
        in_thread(lambda: joining(port, "far"))
        assert {name: sorted(parts) for name, parts in met().items()} == {
            "edge": ["leaders", "switch"],
            "far": ["leaders", "switch"],
        }
        assert sorted(first()["cloud"]) == ["leaders", "switch"]
    until(lambda: len(caplog.records) > len(garbage) + 2 + len(refused))
    lines = [record.getMessage() for record in caplog.records]
    for _, why in (*garbage, *refused):
        assert any(why.replace("b'GET ", "b'GET") in line for line in lines), (why, lines)
    assert sum("stops in the middle of a word for" in line for line in lines) == 1
    assert sum("says nothing for" in line for line in lines) == 1
    assert sum("two sites of one name, 'edge'" in line for line in lines) == 1
    assert len(lines) == len(garbage) + 2 + len(refused) + 1  # each once
    assert all("\n" not in line and "secret" not in line for line in lines)


@pytest.mark.alone
def test_those_who_may_begin_do_without_a_site_that_is_late_which_may_come_later():
    told, asked = [], []
    me = Introduction("cloud", "alike", TOKEN, calls=1)

    def may_begin(sites):
        asked.append(sites)
        return True

    with Listener(("127.0.0.1", 0), me, ["edge", "far"], told.append) as listener:
        port = listener._socket.getsockname()[1]
        met = in_thread(lambda: listener.meet(3.0, survives=True, may_begin=may_begin))
        other = Introduction("edge", "alike", TOKEN)
        joined = join([("127.0.0.1", port)], other, 20.0, lambda line: None)
        assert [*met()] == ["edge"]
        assert asked == [["cloud", "edge"]]
        # far may listen, as this one's --join says: then the majority decides from the start
        assert joined.words == {"quorum": True, "late": ["far"]}
        listener.attend()
        listener.words = {"quorum": True}
        late = in_thread(lambda: join([("127.0.0.1", port)], replace(other, site="far"), 20.0, print))
        until(lambda: listener.ready == ["far"])
        listener.take("far", 3)
        assert late().words == {"quorum": True, "generation": 3}


@pytest.mark.alone
def test_who_has_called_for_long_waits_for_others_as_long_as_the_hub_does(monkeypatch):
    monkeypatch.setattr("isthmus.links.joining.SECONDS_TO_GREET", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = server.getsockname()
    called = in_thread(lambda: join([where], Introduction("edge", "", TOKEN), 6.0, lambda line: None))
    time.sleep(4.0)
    with Listener(
        where, Introduction("cloud", "", TOKEN), ["edge", "far"], lambda line: None
    ) as listener:
        assert [*listener.meet(4.0, survives=True, may_begin=lambda sites: True)] == ["edge"]
        assert called().words["late"] == ["far"]


def test_who_comes_late_or_leaves_again_is_told_of_and_a_port_in_use(caplog, monkeypatch):
    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr("isthmus.links.meeting.time", clock)
    with listening("edge", "far", wait_seconds=900.0) as (port, met, told):
        waiting = in_thread(lambda: joining(port))
        until(lambda: any("site edge: joined from" in line for line in told))
        passed[0] = 1000.0
        with pytest.raises(SiteError, match=r"site 'far' did not join within 900 s; .*wait_seconds"):
            met()
        with pytest.raises(SiteError, match="refuses this one: site 'far' did not join within 900 s"):
            waiting()
        with pytest.raises(SiteError, match=f"127.0.0.1:{port}: cannot listen there: Address already"):
            Listener(("127.0.0.1", port), Introduction("cloud", "", TOKEN), ["edge"], print)
    with listening("edge", "far") as (port, met, _):
        me = Introduction("edge", "alike", TOKEN)
        connection = caller(port)
        introduce(connection, me, "leaders")[1].close()
        until(lambda: any("has gone again before" in each.getMessage() for each in caplog.records))
        ends = [in_thread(lambda: joining(port)), in_thread(lambda: joining(port, "far"))]
        assert sorted(met()) == ["edge", "far"]
        assert [list(end()) for end in ends] == [["cloud"], ["cloud"]]
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
    me = Introduction("edge", "alike", TOKEN)
    with pytest.raises(SiteError, match=f"127.0.0.1:{port}: nobody answers there for 0.1 s"):
        join([("127.0.0.1", port)], me, 0.1, lambda line: None)


def test_who_is_started_anew_before_its_end_is_noticed_takes_part_once_it_is(caplog):
    me = Introduction("cloud", "alike", TOKEN)
    with Listener(("127.0.0.1", 0), me, ["edge"], lambda line: None) as listener:
        port = listener._socket.getsockname()[1]
        met = in_thread(lambda: listener.meet(20.0, survives=True))
        first = Introduction("edge", "alike", TOKEN)
        living = in_thread(lambda: join([("127.0.0.1", port)], first, 20.0, lambda line: None))
        connections = met()["edge"]  # nobody closes them there: its host has lost its power
        assert living().site == "cloud"
        listener.attend()
        told = []
        again = Introduction("edge", "alike", TOKEN)
        second = in_thread(lambda: join([("127.0.0.1", port)], again, 20.0, told.append))
        until(lambda: told)
        time.sleep(0.5)
        assert listener.ready == []
        for each in connections.values():  # it gives no sign of life
            each.close()
        until(lambda: listener.ready == ["edge"])
        assert listener.hello_of("edge")["session"] == first.session  # until it is taken
        assert sorted(listener.take("edge", 1)) == ["leaders", "switch"]
        assert listener.hello_of("edge")["session"] == again.session
        assert second()[1]["generation"] == 1
        assert listener.take("edge", 2) is None
    lines = [record.getMessage() for record in caplog.records]
    assert sum("two sites of one name, 'edge'" in line for line in lines) == 1


def test_who_is_ready_and_goes_before_it_is_taken_is_left_out():
    me = Introduction("cloud", "alike", TOKEN)
    with Listener(("127.0.0.1", 0), me, ["edge"], lambda line: None) as listener:
        port = listener._socket.getsockname()[1]
        listener.attend()
        whole, half = (Introduction("edge", "alike", TOKEN) for _ in range(2))
        _, connections = call(("127.0.0.1", port), whole, 5.0)
        until(lambda: listener.ready == ["edge"])
        for each in connections.values():
            each.close()
        assert listener.take("edge", 1) is None
        connection = caller(port)
        introduce(connection, half, "leaders")
        assert listener.take("edge", 1) is None  # one of two connections is none


def test_silent_callers_keep_no_place_and_who_is_hung_up_on_calls_again(monkeypatch):
    monkeypatch.setattr("isthmus.links.meeting.MOST_AT_ONCE", 4)
    monkeypatch.setattr("isthmus.links.greeting.SECONDS_TO_GREET", 60.0)
    with listening("edge") as (port, met, _):
        silent = [caller(port) for _ in range(12)]
        end = in_thread(lambda: joining(port))
        assert sorted(met()) == ["edge"]
        end()
        assert silent[0].recv(100) == b""  # it was the first to give way
        for each in silent:
            each.close()
    began, ends = time.monotonic(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.05)

        def hang_up():
            while not ends.is_set():
                with suppress(TimeoutError):
                    server.accept()[0].close()

        hung_up = in_thread(hang_up)
        me = Introduction("edge", "alike", TOKEN)
        with pytest.raises(SiteError, match=r"nobody answers there for 0.6 s \((closed|Conn|Broken)"):
            join([("127.0.0.1", port)], me, 0.6, lambda line: None)
        ends.set()
        hung_up()
    assert time.monotonic() - began > 0.6  # it was not the last word


@pytest.mark.parametrize("listen", [("north", "south"), ("cloud", "south"), ("cloud", "north", "south")])
def test_the_first_in_the_file_of_those_that_listen_is_the_hub_whoever_is_late(listen):
    """Sites start in each order, and all that listen call one another, too."""
    names = ["cloud", "north", "south"]
    for order in permutations(names):
        with ExitStack() as stack:
            doors, addresses, hubs = {}, {}, {}
            for name in listen:
                before, others = names[: names.index(name)], [each for each in names if each != name]
                me = Introduction(name, "alike", TOKEN, listens=True, calls=len(listen) - 1)
                door = Listener(("127.0.0.1", 0), me, others, print, before, len(listen) == 1)
                doors[name] = stack.enter_context(door)
                addresses[name] = "127.0.0.1", door._socket.getsockname()[1]
            for name in order:
                job = SiteJob(
                    name, addresses.get(name), tuple(addresses[each] for each in listen if each != name)
                )
                hubs[name] = in_thread(partial(hub_of, job, doors.get(name)))
                time.sleep(0.05)
            assert {hub() for hub in hubs.values()} == {listen[0]}, order


def hub_of(job, door, wait_seconds=20.0):
    """Return the hub that a site finds, or is itself; door: where it listens."""
    recovery = RecoverySettings(wait_seconds=wait_seconds)
    if door is None:
        me = Introduction(job.site, "alike", TOKEN, calls=len(job.join))
        return join(job.join, me, wait_seconds, print).site
    if job.join:
        door.attend()
    connections, joined = job._met(door, door.me, recovery, None, print)
    if joined is not None:
        return joined.site
    assert len(connections) == 2
    return job.site


@pytest.mark.ranks(2)
def test_strangers_at_a_site_s_first_rank_cost_nothing_but_themselves(comm):
    from isthmus.links.sites import _WORD, _those_who_call  # which starts MPI

    if comm.rank:
        return
    word = bytes(range(32))
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server, ExitStack() as stack:
        strangers, ranks = (
            [stack.enter_context(caller(server.getsockname()[1])) for _ in range(count)]
            for count in (80, 2)
        )
        strangers[1].sendall(b"GET")
        strangers[2].sendall(_WORD.pack(bytes(32), 1))
        for rank, each in enumerate(ranks, 1):
            each.sendall(_WORD.pack(word, rank))
        began = time.monotonic()
        found = _those_who_call(server, 2, word.hex(), began + 20)
        assert time.monotonic() < began + 10
        assert sorted(found) == [1, 2]
        found[2].sendall(b"well")
        assert ranks[1].recv(4) == b"well"
        silent = stack.enter_context(caller(server.getsockname()[1]))
        with pytest.raises(SiteError, match="1 ranks of this site did not reach their first rank"):
            _those_who_call(server, 1, word.hex(), time.monotonic() + 0.2)
        for each in (*strangers, silent):
            with suppress(ConnectionResetError):
                assert each.recv(1) == b""
        for each in found.values():
            each.close()


def test_the_words_of_who_waited_tell_how_long():
    near, far = socket.socketpair()
    with near, far:
        for seconds in (0.2, 0.4):
            with pytest.raises(SiteError, match=f"says nothing for {seconds} s"):
                hear(near, time.monotonic() + seconds)


def test_who_may_be_the_hub_waits_to_hear_from_those_before_it():
    door = Listener(
        ("127.0.0.1", 0),
        Introduction("north", "alike", TOKEN, listens=True),
        ["cloud", "south"],
        print,
        ["cloud"],
        False,
    )
    where = "127.0.0.1", door._socket.getsockname()[1]
    with door:
        door.attend()
        with pytest.raises(
            SiteError,
            match="'north' is not the hub, and has not heard from cloud, .*for 0.1 s; start all sites",
        ):
            join([where], Introduction("south", "alike", TOKEN), 0.1, print)


def test_who_calls_is_not_fooled_by_one_who_listens_without_the_token():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        end = in_thread(lambda: joining(port))
        connection, _ = server.accept()
        mine = Introduction("cloud", "alike", Token(b"")).hello("leaders")
        _, hello = hear(connection, time.monotonic() + 60)
        say(connection, mine)
        _, answer = hear(connection, time.monotonic() + 60)
        assert sorted(answer) == ["proof"]  # and the token is nowhere in it
        say(connection, answer)  # sent back as its own
        with pytest.raises(SiteError, match="site 'cloud' cannot prove itself"):
            end()
        assert hello["site"] == "edge"


def test_keys_of_sites_decide_who_may_join(tmp_path):
    for site in ("cloud", "edge", "thief"):
        make_keys(tmp_path / site, site)
    for site, other in (("cloud", "edge"), ("edge", "cloud"), ("thief", "cloud")):
        public = tmp_path / other / f"{other}.pub"
        (tmp_path / site / f"{other}.pub").write_bytes(public.read_bytes())
    assert read_public(tmp_path / "cloud", "edge")
    with listening("edge", "thief", token=SiteKeys(tmp_path / "cloud", "cloud")) as (port, met, _):
        with pytest.raises(SiteError, match="is not known by its key"):
            joining(port, "thief", token=SiteKeys(tmp_path / "thief", "thief"))
        with pytest.raises(SiteError, match="is not known by its key"):
            joining(port, "edge", token=SiteKeys(tmp_path / "thief", "thief"))
        in_thread(lambda: joining(port, "edge", token=SiteKeys(tmp_path / "edge", "edge")))
        (tmp_path / "cloud/thief.pub").write_bytes((tmp_path / "thief/thief.pub").read_bytes())
        in_thread(lambda: joining(port, "thief", token=SiteKeys(tmp_path / "thief", "thief")))
        assert sorted(met()) == ["edge", "thief"]


def test_tokens_are_their_owners_alone(tmp_path):
    path = tmp_path / "token"
    with pytest.raises(SecurityError, match="token: .*umask 077"):
        read_token(path)
    path.write_text("0123456789abcdef\n")
    path.chmod(0o640)
    with pytest.raises(SecurityError, match=r"mode 0o640 lets others in; chmod 600"):
        read_token(path)
    path.chmod(0o600)
    said = b"what both have said"
    token = read_token(path)
    assert token.holds("edge", said, Token(b"0123456789abcdef").prove(said))
    assert not token.holds("edge", said, Token(b"0123456789abcdeg").prove(said))
    path.write_text("short")
    with pytest.raises(SecurityError, match="holds 5 bytes, a token has 16 or more") as problem:
        read_token(path)
    assert "short" not in str(problem.value).replace("shorter", "")


def test_addresses():
    assert address_of("cloud.example.org:7000") == ("cloud.example.org", 7000)
    assert address_of("[::1]:80") == ("::1", 80)
    for wrong in ("cloud", "cloud:", "cloud:x", "cloud:0", "cloud:70000", "a..b:7000"):
        with pytest.raises(ValueError, match="is no HOST:PORT"):
            address_of(wrong)
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("")


def switched(deadline_seconds):
    """Return two leaders joined by sockets and switches, a rank beside each, and the switches.

    Ranks 0 and 1 are of one site, 2 and 3 of the other.
    """
    leaders, links = socket.socketpair(), socket.socketpair()
    ends, switches = [], []
    for site in range(2):
        own = [2 * site, 2 * site + 1]
        others = [rank for rank in range(4) if rank not in own]
        near = {rank: socket.socketpair() for rank in own}
        endpoints = [
            Endpoint(
                rank,
                [(leaders[site], "the other site", others[:1])] * (rank == own[0])
                + [(near[rank][0], "the switch", others)],
            )
            for rank in own
        ]
        switch = Switch(
            {rank: pair[1] for rank, pair in near.items()},
            {f"site{1 - site}": (links[site], others)},
            endpoints[0].streams[:1],
            deadline_seconds,
        )
        ends += [SocketComm(each, 0, range(4)) for each in endpoints]
        switches.append(switch)
    return ends, switches


def test_a_switch_passes_on_and_a_silent_site_wakes_all_who_wait_for_it():
    ends, switches = switched(deadline_seconds=60.0)
    switches[0].start()
    switches[1].start()
    for source, dest in ((1, 3), (3, 0), (2, 1), (0, 2)):
        sent = in_thread(lambda s=source, d=dest: ends[s].Send(np.full(50_000, s, float), d, 4))
        came = np.empty(50_000)
        in_thread(lambda s=source, d=dest, c=came: ends[d].Recv(c, s, 4))()
        assert (came == source).all()
        sent()
    closed = [in_thread(end.endpoint.finish) for end in ends]
    for each in closed:
        each()
    closed = [in_thread(switch.close) for switch in switches]
    for each in closed:
        each()
    assert not any(switch.is_alive() for switch in switches)

    ends, switches = switched(deadline_seconds=1.5)
    switches[0].start()  # the other site's gives no sign of life, as if it were frozen
    for rank, source in ((0, 2), (1, 3)):  # or there would be no end
        with pytest.raises(SiteError, match=r"site 'site1' has gone: no sign of life for \d+ s"):
            in_thread(lambda r=rank, s=source: ends[r].Recv(came, s))()
    switches[0].join(60)
    assert not switches[0].is_alive()


def test_that_a_site_was_gone_is_no_news_of_it_once_it_is_back():
    """However late a rank reads it: one that waits in MPI reads nothing."""
    ends, (switch, _) = switched(deadline_seconds=30.0)
    switch.survives = True
    switch.start()
    late, far = ends[1].endpoint, []
    late.survives = True

    def change(act, *args):
        """Have the switch do something, and all be said of it."""
        number, done = act(*args), threading.Event()
        switch._ask(done.set)
        assert done.wait(10)
        return number

    def comes_back():
        far.append((socket.socketpair(), socket.socketpair()))
        direct = Stream(far[-1][0][0], "site1", None, None)
        return change(switch.add, "site1", far[-1][1][0], [2, 3], direct)

    def goes_on(generation, connections):
        late.connections = connections
        late.renew(generation)
        for _ in range(3):
            late.progress(0.05)

    change(switch.forget, "site1")
    assert comes_back() == 1
    change(switch.forget, "site1")
    assert comes_back() == 2
    goes_on(2, {"site1": 2})  # and only now it reads of 0 and 1
    goes_on(3, {"site1": 2})  # another site has gone or come
    change(switch.forget, "site1")
    with pytest.raises(LostSitesError, match="another site has gone"):
        late.progress(5.0)
    goes_on(4, {})
    assert comes_back() == 3
    change(switch.forget, "site1")
    goes_on(4, {})  # it does not know of the third yet
    with pytest.raises(LostSitesError):
        goes_on(5, {"site1": 3})
    for end in ends:
        for stream in end.endpoint.streams:
            stream.close()
    switch.close()


def test_what_a_stream_hands_on_is_whole_or_nothing():
    """A frame that nobody finishes is not taken for one."""
    near, far = socket.socketpair()
    taken = []
    stream = Stream(far, "site 0", lambda header: memoryview(bytearray(header.nbytes)), taken.append)
    sender = Stream(near, "site 1", None, None)
    frame = sender.send(DATA, 0, 0, 1, 0, b"")
    assert frame.number == 0
    with socket.socket() as other:
        del other
    near.sendall(b"\xa7")
    with pytest.raises(TypeError):  # take gets the header and what came with it
        stream.read()
    near.close()
    with pytest.raises(SiteError, match="site 0 has gone"):
        stream.read()
    assert not taken
