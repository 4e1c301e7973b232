"""One end of a connection, for tests of the testbed: serve A, ping A COUNT, send A NBYTES."""

import json
import socket
import statistics
import sys
import time

PORT = 5000


def receive(connection, nbytes):
    while nbytes:
        part = connection.recv(min(nbytes, 2**20))
        if not part:
            raise EOFError
        nbytes -= len(part)


def serve(address):
    """Answer each connection's first eight bytes: 0 to give every byte back, else how many to take."""
    listener = socket.create_server((address, PORT))
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nbytes = int.from_bytes(connection.recv(8), "big")
        if nbytes == 0:
            while part := connection.recv(100):
                connection.sendall(part)
        else:
            receive(connection, nbytes)
            connection.sendall(b".")
        connection.close()


def ping(connection, count):
    connection.sendall(bytes(8))
    seconds = []
    for _ in range(count):
        start = time.monotonic()
        connection.sendall(b".")
        receive(connection, 1)
        seconds.append(time.monotonic() - start)
    return {"least_seconds": min(seconds), "median_seconds": statistics.median(seconds)}


def send(connection, nbytes):
    connection.sendall(nbytes.to_bytes(8, "big"))
    start = time.monotonic()
    connection.sendall(bytes(nbytes))
    receive(connection, 1)
    end = time.monotonic()
    return {"bytes_per_second": nbytes / (end - start), "start": start, "end": end}


if __name__ == "__main__":
    verb, address = sys.argv[1:3]
    if verb == "serve":
        serve(address)
    with socket.create_connection((address, PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        act = {"ping": ping, "send": send}[verb]
        print(json.dumps(act(connection, int(sys.argv[3]))))
