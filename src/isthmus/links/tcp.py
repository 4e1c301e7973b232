"""What TCP and Open MPI must be told for the links of a cluster: what a long link needs to be full.

Measured with 60 KiB messages on a testbed of 1 Gbit/s and 100 ms round trip, of which 12.5 MB are
under way when it is full, with the kernel's usual 4 MB at most for a sender's buffer:

    as it is                                          30 MB/s
    btl_tcp_links = 4                                 30 MB/s  Open MPI 5 still opens one connection
    btl_tcp_sndbuf = 25 MB                            56 MB/s  net.core.wmem_max, 4 MB, caps it
    btl_tcp_sndbuf = btl_tcp_rcvbuf = 25 MB           52 MB/s  also where tcp_wmem allows 64 MB
    tcp_wmem, tcp_rmem of 64 MB at most              107 MB/s  and 120 once it is up to speed

Both ways at once, data of one way wait in the queue before the other way's acknowledgements, and a way
whose window is the smaller stands still meanwhile (Zhang, Shenker and Clark 1991, "Observations on the
dynamics of a congestion control algorithm: the effects of two-way traffic"). So windows should be
alike, and several times what the link holds, but no more than its queue. Those that buffers limit are
unlike, for how much fits in depends on how packets came: of 3.9 MB each way over 100 Mbit/s and 10 ms
round trip one took 333 ms and the other 478 (`isthmus calibrate` of the last cluster in
experiments/prediction.toml); with the route's `window` 343 and 345. A sum of 16 MB over two sites,
100 Mbit/s and 20 ms round trip (1.29 s are n / B), took 1.55 s with buffers for 4 times what the link
holds, 1.45 for 8, 1.44 for 12, 1.54 for 16, where queues overflow, and 1.41 with `window`:

    isthmus testbed run experiments/two_sites.toml -- \
        isthmus bench collectives experiments/two_sites.toml --algorithm hierarchical --compressor none \
        --smallest 16000000 --largest 16000000 --seconds 9

So the kernel's own limits are what to change; Open MPI must leave the buffers alone then, for a fixed
size ends their growth.

Short vectors: an allreduce of 64 KiB over three sites (a star, two crossings), 100 Mbit/s and 100 ms
round trip, took 209 ms with bbr and 426 ms with reno as Linux sets them, which send 14 KB and wait,
again after each pause; 117 ms with reno, no slow start after a pause and 64 segments to begin with.

Messages of more than 64 KiB: Open MPI asks before it sends them, which costs a round trip each.
`calibrate` fitted 6.8 to 9.5 MB/s to a link of 12.5 MB/s; with the limit at 2 MiB, 11.8 to 16.8 on
the same busy machine.
"""

import math
from dataclasses import dataclass

WINDOWS_OPEN = 8  # what a receiver lets come, of what is under way when the link is full;
QUEUED_SECONDS = 0.16  # or what a queue may hold beside it, in time at the link's rate
LEAST_SECONDS = 0.05  # and what it lets come where there is no latency, in time at that rate,
LEAST_OPEN_NBYTES = 512 * 1024  # at most
BUFFERS_OF_OPEN = 3  # a buffer also counts what is around the data
USUAL_OPEN_NBYTES = 2 * 1024 * 1024  # for which the buffers do that Linux allows a sender: 4 MB
FIRST_SEGMENTS = 64  # more than 64 KiB
FIRST_WORDS = f"initcwnd {FIRST_SEGMENTS} initrwnd {FIRST_SEGMENTS}"
USUAL_EAGER_NBYTES = 64 * 1024  # Open MPI's for TCP: longer messages ask first
EAGER_NBYTES = 2 * 1024 * 1024
EAGER_LIMITS = ("eager_limit", "rndv_eager_limit", "max_send_size")  # only together do they help


@dataclass(frozen=True)
class TcpSettings:
    """What the links of a cluster want.

    window_nbytes: under way when the fullest link is full: its rate by the round trip. buffer_nbytes:
    what a connection's buffers need. kernel: sysctl -> value, for root on every host where the usual
    does not do. routes: (site, other site) -> words for the route of the one's hosts to the other's,
    which say how much may come from there. mca: Open MPI's parameter -> value. mca_without_root: those
    to add where the kernel's settings cannot be changed; where they are, these make it slower.
    """

    window_nbytes: int
    buffer_nbytes: int
    kernel: dict
    routes: dict
    mca: dict
    mca_without_root: dict


def tcp_settings(cluster):
    """Return the TcpSettings of the links between sites that exchange, in the tree or with the hub.

    As much may come as a link holds, several times, and buffers have room for it. A connection that
    has been idle, while ranks computed, does not start slowly again, nor does a new one. Where asking
    first would take longer than the message, Open MPI does not ask.
    """
    names, tree, opened = cluster.names, cluster.tree, {}
    window = 0
    for other, name in enumerate(names):
        above = {tree.above(other), tree.hub} - {None, other}
        for site, source in (pair for end in above for pair in ((names[end], name), (name, names[end]))):
            held, rate = _held_nbytes(cluster, source, site)
            window = max(window, round(held))
            opened[site, source] = _announced_nbytes(
                max(
                    min(WINDOWS_OPEN * held, held + QUEUED_SECONDS * rate),
                    min(LEAST_SECONDS * rate, LEAST_OPEN_NBYTES),
                )
            )
    most = max(opened.values(), default=_announced_nbytes(LEAST_OPEN_NBYTES))
    kernel, mca, without_root = {"net.ipv4.tcp_slow_start_after_idle": "0"}, {}, {}
    if most > USUAL_OPEN_NBYTES:
        kernel |= buffer_limits(BUFFERS_OF_OPEN * most)
        without_root = {"btl_tcp_sndbuf": str(2 * window)}
    if window > USUAL_EAGER_NBYTES:
        mca = {f"btl_tcp_{name}": str(EAGER_NBYTES) for name in EAGER_LIMITS}
    routes = {ends: f"{FIRST_WORDS} window {nbytes}" for ends, nbytes in opened.items()}
    return TcpSettings(window, BUFFERS_OF_OPEN * most, kernel, routes, mca, without_root)


def buffer_limits(nbytes):
    """Return sysctl -> value with which buffers hold `nbytes` from the first: as they grow, so do
    windows."""
    return dict.fromkeys(("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"), f"4096 {nbytes} {nbytes}")


def _held_nbytes(cluster, source, target):
    """Return the bytes that leave `source` before the first of them is acknowledged, and their rate."""
    way = cluster.route(source, target)
    rate = min(link.bytes_per_second for link in way)
    round_trip = sum(link.latency_seconds for link in (*way, *cluster.route(target, source)))
    return round_trip * rate, rate


def _announced_nbytes(nbytes):
    """Return the window of about `nbytes` that the kernel announces as it is: 65535 x 2^k."""
    return 65535 << max(1, round(math.log2(nbytes / 65535)))  # the first segments must fit in
