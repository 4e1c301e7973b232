"""What TCP and Open MPI must be told for the links of a cluster: what a long link needs to be full.

Measured with 60 KiB messages on a testbed of 1 Gbit/s and 100 ms round trip, of which 12.5 MB are
under way when it is full, with the kernel's usual 4 MB at most for a sender's buffer:

    as it is                                          30 MB/s
    btl_tcp_links = 4                                 30 MB/s  Open MPI 5 still opens one connection
    btl_tcp_sndbuf = 25 MB                            56 MB/s  net.core.wmem_max, 4 MB, caps it
    btl_tcp_sndbuf = btl_tcp_rcvbuf = 25 MB           52 MB/s  also where tcp_wmem allows 64 MB
    tcp_wmem, tcp_rmem of 64 MB at most              107 MB/s  and 120 once it is up to speed

A sum of 16 MB over two sites, 100 Mbit/s and 20 ms round trip, both ways at once, by how many windows
a buffer may grow to: 2 of them 1.66 s, 4 1.55 to 1.57, 6 1.47, 8 1.46, 12 1.43, and 16 1.58, where
queues overflow; 1.29 is n / B.

So the kernel's own limits are what to change; Open MPI must leave the buffers alone then, for a fixed
size ends their growth.

Short vectors: an allreduce of 64 KiB over three sites (a star, two crossings), 100 Mbit/s and 100 ms
round trip, took 209 ms with bbr and 426 ms with reno as Linux sets them, which send 14 KB and wait,
again after each pause; 117 ms with reno, no slow start after a pause and 64 segments to begin with.

Messages of more than 64 KiB: Open MPI asks before it sends them, which costs a round trip each.
`calibrate` fitted 6.8 to 9.5 MB/s to a link of 12.5 MB/s; with the limit at 2 MiB, 11.8 to 16.8 on
the same busy machine.
"""

from dataclasses import dataclass

WINDOWS_HELD = 8              # a buffer's memory, in windows: it also counts what is around the data
LEAST_BUFFER_NBYTES = 512 * 1024
USUAL_BUFFER_NBYTES = 4 * 1024 * 1024  # what Linux allows a sender where nobody has changed it
FIRST_SEGMENTS = 64           # more than 64 KiB
USUAL_EAGER_NBYTES = 64 * 1024  # Open MPI's for TCP: longer messages ask first
EAGER_NBYTES = 2 * 1024 * 1024
EAGER_LIMITS = ("eager_limit", "rndv_eager_limit", "max_send_size")  # only together do they help


@dataclass(frozen=True)
class TcpSettings:
    """What the links of a cluster want.

    window_nbytes: under way when the fullest link is full: its rate by the round trip. buffer_nbytes:
    what a connection's buffer needs at most; far beyond it, a fast start fills queues until packets
    are lost. kernel: sysctl -> value, for root on every host where the usual does not do.
    first_segments: `initcwnd` and `initrwnd` of the route to other sites. mca: Open MPI's parameter
    -> value. mca_without_root: those to add where the kernel's settings cannot be changed; where they
    are, these make it slower.
    """

    window_nbytes: int
    buffer_nbytes: int
    kernel: dict
    first_segments: int
    mca: dict
    mca_without_root: dict


def tcp_settings(cluster):
    """Return the TcpSettings of the cluster's links between its hub and its other sites.

    Buffers may grow to what the longest link holds. A connection that has been idle, while ranks
    computed, does not start slowly again, nor does a new one. Where asking first would take longer
    than the message, Open MPI does not ask.
    """
    window = round(max(map(_window_nbytes, _ways(cluster)), default=0))
    most = max(WINDOWS_HELD * window, LEAST_BUFFER_NBYTES)
    kernel, mca, without_root = {"net.ipv4.tcp_slow_start_after_idle": "0"}, {}, {}
    if most > USUAL_BUFFER_NBYTES:
        kernel |= buffer_limits(most)
        without_root = {"btl_tcp_sndbuf": str(2 * window)}
    if window > USUAL_EAGER_NBYTES:
        mca = {f"btl_tcp_{name}": str(EAGER_NBYTES) for name in EAGER_LIMITS}
    return TcpSettings(window, most, kernel, FIRST_SEGMENTS, mca, without_root)


def buffer_limits(nbytes):
    """Return sysctl -> value that lets buffers grow from Linux's first sizes to `nbytes`."""
    return {"net.ipv4.tcp_rmem": f"4096 131072 {nbytes}", "net.ipv4.tcp_wmem": f"4096 16384 {nbytes}"}


def _ways(cluster):
    """Yield the routes (there, back) between the hub and each other site."""
    hub = cluster.names[cluster.hub]
    for name in cluster.names:
        if name != hub:
            yield cluster.route(hub, name), cluster.route(name, hub)


def _window_nbytes(ways):
    """Return the bytes that leave on the faster way before the first of them is acknowledged."""
    round_trip = sum(link.latency_seconds for way in ways for link in way)
    return round_trip * max(min(link.bytes_per_second for link in way) for way in ways)
