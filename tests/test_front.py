"""Requests over HTTP: the protocol's words, what is refused and with what, and nothing lost or twice."""

import http.client
import json
import socket
import struct
import threading
import time

import numpy as np
import pytest
from patience import until

from isthmus.inference.feed import Feed, FullError
from isthmus.inference.front import HEADER, Front

SHAPE = (2, 3)


@pytest.fixture
def front():
    """A front whose requests are answered with the sum of their numbers, from another thread."""
    feed = Feed(SHAPE, "u1", 50, time.monotonic)

    def answer():
        while not feed.closed or feed.waiting:
            for row, _, ticket, place in feed.take(8):
                ticket.give(place, int(row.sum()), bool(row[0, 0] % 2))
            time.sleep(1e-3)

    answering = threading.Thread(target=answer)
    answering.start()
    with Front(feed) as made:
        yield made
    feed.close()
    answering.join()


def ask(front, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(front.address, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer


def tensor(rows, **changes):
    table = {"name": "x", "shape": list(rows.shape), "datatype": "UINT8", "data": rows.ravel().tolist()}
    return json.dumps({"id": "mine", "inputs": [table | changes]})


def test_answers_come_as_the_protocol_has_them_as_text_and_as_bytes(front):
    rows = np.arange(24, dtype=np.uint8).reshape(4, *SHAPE)
    head = tensor(rows, data=None, parameters={"binary_data_size": 24}).encode()
    for body, headers in (
        (tensor(rows), {}),
        (tensor(rows.reshape(4, 6)), {}),
        (head + rows.tobytes(), {HEADER: str(len(head))}),
    ):
        status, content, _ = ask(front, "POST", "/v2/models/model/infer", body, headers)
        told = json.loads(content)
        assert (status, told["id"]) == (200, "mine")
        classes, cloud = told["outputs"]
        assert classes["data"] == rows.reshape(4, -1).sum(1).tolist()
        assert cloud["data"] == [False] * 4
    until(lambda: front.counts["answered"] >= 12)  # an answer is counted once it has gone out
    assert front.counts == {"answered": 12, "refused": 0, "full": 0, "gone": 0}
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/model/ready"):
        assert ask(front, "GET", path)[0] == 200
    described = json.loads(ask(front, "GET", "/v2/models/model")[1])
    assert described["inputs"] == [{"name": "features", "datatype": "UINT8", "shape": [-1, *SHAPE]}]
    assert b"isthmus_requests_answered_total 12" in ask(front, "GET", "/metrics")[1]
    front.feed.close()
    assert ask(front, "GET", "/v2/health/ready")[0] == 503
    assert ask(front, "POST", "/v2/models/model/infer", tensor(rows))[0] == 503


ROWS = np.zeros((2, *SHAPE), np.uint8)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "told"),
    [
        ("/v2/models/other/infer", tensor(ROWS), {}, 404, "post to"),
        ("/v2/models/model/infer", "no JSON", {}, 400, "no JSON"),
        ("/v2/models/model/infer", "[" * 100_000, {}, 400, "no JSON"),
        ("/v2/models/model/infer", "[]", {}, 400, "one tensor"),
        ("/v2/models/model/infer", '{"inputs": []}', {}, 400, "one tensor"),
        ("/v2/models/model/infer", tensor(ROWS, datatype="FP32"), {}, 400, "UINT8"),
        ("/v2/models/model/infer", tensor(ROWS, shape=[2, 5]), {}, 400, "shape"),
        ("/v2/models/model/infer", tensor(ROWS, shape=[True, 6]), {}, 400, "shape"),
        ("/v2/models/model/infer", tensor(ROWS, shape=[0, 2, 3]), {}, 400, "shape"),
        ("/v2/models/model/infer", tensor(ROWS, shape=[-1, 2, 3]), {}, 400, "shape"),
        ("/v2/models/model/infer", tensor(ROWS, data=[1, 2]), {}, 400, "12 numbers"),
        ("/v2/models/model/infer", tensor(ROWS, data="x"), {}, 400, "12 numbers"),
        ("/v2/models/model/infer", tensor(ROWS, data=[300] * 12), {}, 400, "no UINT8"),
        ("/v2/models/model/infer", tensor(ROWS, data=[10**30] * 12), {}, 400, "12 numbers"),
        ("/v2/models/model/infer", tensor(ROWS, parameters={"binary_data_size": 5}), {}, 400, "binary"),
        ("/v2/models/model/infer", tensor(ROWS), {HEADER: "999999"}, 413, "bytes"),
        ("/v2/models/model/infer", tensor(ROWS), {HEADER: "-1"}, 413, "bytes"),
        ("/v2/models/model/infer", tensor(ROWS), {HEADER: "many"}, 411, "Content-Length"),
        ("/v2/models/model/infer", tensor(np.zeros((51, *SHAPE), "u1")), {}, 413, "send fewer"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_and_the_next_request_is_answered(
    front, path, body, headers, status, told
):
    found, content, _ = ask(front, "POST", path, body, headers)
    assert found == status
    assert told in json.loads(content)["error"]
    assert ask(front, "POST", "/v2/models/model/infer", tensor(ROWS))[0] == 200
    assert front.counts["refused"] == 1


def test_a_full_queue_says_when_to_come_again_and_a_client_that_goes_away_harms_nobody():
    feed = Feed(SHAPE, "u1", 3, time.monotonic)
    with Front(feed) as front:
        ticket = feed.put(np.zeros((2, *SHAPE), np.uint8))
        status, content, answer = ask(front, "POST", "/v2/models/model/infer", tensor(ROWS))
        assert (status, answer.getheader("Retry-After")) == (429, "1")
        assert "full" in json.loads(content)["error"]
        assert (front.counts["full"], feed.waiting) == (1, 2)
        host, port = front.address.split(":")
        for sent in (
            b"POST /v2/models/model/infer HTTP/1.1\r\nContent-Length: 99\r\n\r\n{",
            b"\x00\xff\r\n\r\n",
        ):
            with socket.create_connection((host, int(port))) as gone:
                linger = struct.pack("ii", 1, 0)  # so that the end is a reset
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                gone.sendall(sent)
        for _, _, own, place in feed.take(9):
            own.give(place, 1, False)
        assert ticket.wait(0)
        assert ask(front, "GET", "/v2/health/live")[0] == 200


def test_what_is_put_is_taken_once_in_order_and_nothing_after_closing():
    feed = Feed((1,), "i4", 1000, time.monotonic)
    givers = [
        threading.Thread(
            target=lambda k=k: [feed.put(np.array([[100 * k + i]], "i4")) for i in range(100)]
        )
        for k in range(4)
    ]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join()
    taken = feed.take(300) + feed.take(300)
    assert sorted(int(row[0]) for row, *_ in taken) == list(range(400))
    assert [came for _, came, *_ in taken] == sorted(came for _, came, *_ in taken)
    feed.close()
    with pytest.raises(FullError):
        feed.put(np.zeros((1, 1), "i4"))
