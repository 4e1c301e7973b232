"""What messages take between two sites: over sockets that join jobs of their own, and over MPI's TCP.

    isthmus testbed run CLUSTER.toml -- python experiments/socket_link.py

In two ranks, one a site, with nothing else on the machine. MPI and sockets take turns; medians are told,
and the lines are printed as JSON.
"""

import json
import socket
import subprocess
import sys
import time

import numpy as np
from mpi4py import MPI

from isthmus.links.agreement import broadcast_json
from isthmus.links.socket_comm import LEADERS, Endpoint, SocketComm

CASES = ((64, 200, 5), (1 << 16, 50, 5), (16 << 20, 1, 5))
"""Bytes, round trips at a time, and times."""


def joined(world):
    """Return the communicator of both ranks over a socket."""
    server = told = None
    if world.rank == 0:
        server = socket.create_server(("", 0))
        lines = subprocess.run(
            ["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        hosts = [line.split()[3].partition("/")[0] for line in lines if " lo " not in line]
        told = [hosts or ["127.0.0.1"], server.getsockname()[1]]
    hosts, port = broadcast_json(world, told)
    if server is not None:
        connection, _ = server.accept()
    else:
        for host in hosts:
            try:
                connection = socket.create_connection((host, port), timeout=2)
                break
            except OSError:
                continue
    peers = [(connection, f"rank {1 - world.rank}", [1 - world.rank])]
    return SocketComm(Endpoint(world.rank, peers), LEADERS, [0, 1])


def round_trip_seconds(comm, buffer, trips):
    """Return how long a message takes there and one of as many bytes back."""
    other, begun = 1 - comm.rank, time.perf_counter()
    for _ in range(trips):
        for sends in (True, False) if comm.rank == 0 else (False, True):
            (comm.Send if sends else comm.Recv)(buffer, other)
    return (time.perf_counter() - begun) / trips


def main():
    """Print a line a size: seconds of a round trip over each, and their ratio."""
    world = MPI.COMM_WORLD
    sockets = joined(world)
    for nbytes, trips, times in CASES:
        buffer = np.zeros(nbytes, np.uint8)
        seconds = {"mpi": [], "sockets": []}
        for number in range(times + 1):
            for name, comm in (("mpi", world), ("sockets", sockets)):
                took = round_trip_seconds(comm, buffer, trips)
                if number:  # the first opens windows
                    seconds[name].append(took)
        mpi, ours = (float(np.median(seconds[name])) for name in ("mpi", "sockets"))
        if world.rank == 0:
            line = {"nbytes": nbytes, "mpi_seconds": mpi, "sockets_seconds": ours, "ratio": ours / mpi}
            print(json.dumps(line), flush=True)
    sockets.endpoint.finish()


if __name__ == "__main__":
    sys.exit(main())
