"""A door for requests: the Open Inference Protocol (KServe V2) over HTTP, on one edge rank.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, with its extension
for binary tensors. It is for programs beside the rank, and listens on the loopback unless told
otherwise; what it takes goes through the rank's `Feed`, and never crosses the link by itself.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from isthmus import json_text
from isthmus.inference.feed import Feed, FullError

DATATYPES = {
    "UINT8": "u1",
    "INT8": "i1",
    "INT16": "<i2",
    "UINT16": "<u2",
    "INT32": "<i4",
    "UINT32": "<u4",
    "INT64": "<i8",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
NAMES = {np.dtype(code): name for name, code in DATATYPES.items()}
MOST_NBYTES = 1 << 28
"""Of a body: more is refused before it is read."""
HEADER = "Inference-Header-Content-Length"
PATIENCE_SECONDS = 60.0
"""For which a client's answers are waited for."""


class RefusedError(Exception):
    """A request that is answered with an error: a status of HTTP, and why in one line."""

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status


class Front:
    """The server, in threads of its own, from `with` on.

    feed: where requests go. name: of the model, in its address. host, port: where it listens; port 0 is
    any, and `address` says which. counts: answered, refused, full, gone.
    """

    def __init__(self, feed: Feed, name: str = "model", host: str = "127.0.0.1", port: int = 0):
        self.feed, self.name = feed, name
        self.counts = {"answered": 0, "refused": 0, "full": 0, "gone": 0}
        self.counting = threading.Lock()
        handler = type("Handler", (_Handler,), {"front": self})
        self.server = ThreadingHTTPServer((host, port), handler)
        self.server.daemon_threads = True
        self.address = "{}:{}".format(*self.server.server_address[:2])

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, name="front", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def count(self, what, rows=1):
        """Add to one of the counts."""
        with self.counting:
            self.counts[what] += rows

    def metrics(self):
        """Return the counts and the queue as Prometheus reads them."""
        lines = []
        for name, value in self.counts.items():
            lines += [
                f"# TYPE isthmus_requests_{name}_total counter",
                f"isthmus_requests_{name}_total {value}",
            ]
        lines += [
            "# TYPE isthmus_requests_waiting gauge",
            f"isthmus_requests_waiting {self.feed.waiting}",
        ]
        return "\n".join(lines) + "\n"

    def description(self):
        """Return what the model takes and gives."""
        feed = self.feed
        taken = {"name": "features", "datatype": NAMES[feed.dtype], "shape": [-1, *feed.shape]}
        return {
            "name": self.name,
            "platform": "isthmus",
            "inputs": [taken],
            "outputs": [
                {"name": "classes", "datatype": "INT32", "shape": [-1]},
                {"name": "from_cloud", "datatype": "BOOL", "shape": [-1]},
            ],
        }

    def rows_of(self, head, tail):
        """Return the requests [n, ...] that a body asks for: its JSON, and the bytes behind it."""
        inputs = head.get("inputs") if isinstance(head, dict) else None
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
            raise RefusedError(400, 'give one tensor: "inputs": [{"name", "shape", "datatype", "data"}]')
        tensor, feed = inputs[0], self.feed
        if tensor.get("datatype") != NAMES[feed.dtype]:
            raise RefusedError(400, f'"datatype" must be "{NAMES[feed.dtype]}"')
        shape = tensor.get("shape")
        whole = isinstance(shape, list) and all(type(each) is int and each >= 0 for each in shape)
        flat = (int(np.prod(feed.shape)),)
        if not whole or not shape or tuple(shape[1:]) not in (feed.shape, flat) or shape[0] < 1:
            taken = ", ".join(map(str, feed.shape))
            raise RefusedError(400, f'"shape" must be [n, {taken}], n at least 1')
        if shape[0] > feed.most:
            raise RefusedError(413, f"more than {feed.most} requests at once; send fewer")
        entries = shape[0] * flat[0]
        parameters = tensor.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is not None:
            if size != len(tail) or size != entries * feed.dtype.itemsize:
                raise RefusedError(
                    400, f'"binary_data_size" must be {entries * feed.dtype.itemsize}, all that follows'
                )
            return np.frombuffer(tail, feed.dtype).reshape(shape[0], *feed.shape)
        try:
            given = np.array(tensor.get("data"), np.float64 if feed.dtype.kind == "f" else np.int64)
        except (TypeError, ValueError, OverflowError):
            raise RefusedError(400, f'"data" must be {entries} numbers') from None
        if given.size != entries:
            raise RefusedError(400, f'"data" must be {entries} numbers, not {given.size}')
        made = given.astype(feed.dtype)
        if feed.dtype.kind != "f" and (made != given).any():
            raise RefusedError(400, f'"data" holds what is no {NAMES[feed.dtype]}')
        return made.reshape(shape[0], *feed.shape)


class _Handler(BaseHTTPRequestHandler):
    """One connection, kept open; an error is {"error": why} and its status."""

    front: Front
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_version, sys_version = "isthmus", ""
    timeout = PATIENCE_SECONDS

    def log_message(self, format, *arguments):
        """Say nothing: requests are counted."""

    def do_GET(self):
        """Tell health, what the model is, and counts."""
        front, model = self.front, f"/v2/models/{self.front.name}"
        if self.path in ("/v2/health/live", "/v2/health/ready", f"{model}/ready"):
            open_ = self.path.endswith("live") or not front.feed.closed
            self._send(200 if open_ else 503, b"")
        elif self.path == "/v2":
            self._json(200, {"name": "isthmus", "extensions": ["binary_tensor_data"]})
        elif self.path == model:
            self._json(200, front.description())
        elif self.path == "/metrics":
            self._send(200, front.metrics().encode(), "text/plain; version=0.0.4")
        else:
            self._json(404, {"error": f"nothing is here; the model is {model}"})

    def do_POST(self):
        """Answer a batch of requests."""
        front = self.front
        try:
            if self.path != f"/v2/models/{front.name}/infer":
                raise RefusedError(404, f"post to /v2/models/{front.name}/infer")
            head, tail = self._body()
            rows = front.rows_of(head, tail)
            ticket = front.feed.put(rows)
            if not ticket.wait(PATIENCE_SECONDS):
                raise RefusedError(503, f"no answer within {PATIENCE_SECONDS:g} s")
            outputs = front.description()["outputs"]
            for told, data in zip(outputs, (ticket.answers, ticket.from_cloud.tolist())):
                told |= {"shape": [len(rows)], "data": [int(each) for each in data]}
            outputs[1]["data"] = ticket.from_cloud.tolist()
            answer = {"model_name": front.name, "outputs": outputs}
            if isinstance(head.get("id"), str):
                answer["id"] = head["id"]
            self._json(200, answer)
            front.count("answered", len(rows))
        except FullError:
            front.count("full")
            full = "503" if front.feed.closed else "429"
            self._json(int(full), {"error": "the queue is full; ask again later"}, retry=True)
        except RefusedError as problem:
            front.count("refused")
            self._json(problem.status, {"error": str(problem)})

    def _body(self):
        """Return (JSON, bytes behind it) of what was posted."""
        try:
            length = int(self.headers.get("Content-Length", ""))
            first = int(self.headers.get(HEADER, length))
        except ValueError:
            self.close_connection = True
            raise RefusedError(411, "say Content-Length") from None
        if not 0 <= first <= length or length > MOST_NBYTES:
            self.close_connection = True  # what follows is not read
            raise RefusedError(413, f"a body has {MOST_NBYTES} bytes at most, its JSON no more than all")
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionResetError
        try:
            return json_text.loads(body[:first]), body[first:]
        except ValueError:
            raise RefusedError(400, "the body is no JSON") from None

    def _json(self, status, table, retry=False):
        self._send(status, json_text.dumps(table).encode(), retry=retry)

    def _send(self, status, content, kind="application/json", retry=False):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if retry:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    def handle(self):
        """Handle the connection until it ends; a client that went away is counted, and nothing else."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.front.count("gone")
