"""Hold every packet of some TUN devices for its link's latency: a stand-in where netem is missing.

    python -m isthmus.testbed.tun_relay NAMESPACE_FILE < PIPES.json

Runs in the namespace of the wires. A packet that leaves through a device is read here, held for the
one-way latency between its two sites, and given back to the same device, which routes it on. It is
never told what a rate is: the queue before the device has kept that. Writes "ready" once all devices
are open, and ends with the namespace: when NAMESPACE_FILE is gone or SIGTERM comes.
"""

import errno
import fcntl
import gc
import json
import os
import struct
import sys
from collections import deque
from contextlib import suppress
from select import select
from time import monotonic

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
HEADER_NBYTES = 10  # what the kernel puts before a packet: how it is cut into segments
SOURCE_SITE, TARGET_SITE = HEADER_NBYTES + 14, HEADER_NBYTES + 18  # third bytes of the addresses
LARGEST_NBYTES = HEADER_NBYTES + 65_536
PACKETS_AT_ONCE = 64
LOOK_AROUND_SECONDS = 1.0  # how often to see whether the namespace is still there


def open_device(name):
    """Return a descriptor of the TUN device `name`: packets with headers, TCP ones uncut."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    )
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return descriptor


class Relay:
    """Packets on their way, one line for each latency; each line is in order of time.

    A pipe that already holds its `held_nbytes` drops what comes on top.
    """

    def __init__(self, pipes):
        self.lines = {}
        self.line_of = {}  # descriptor -> (source site, target site) -> (seconds, line)
        self.room = {}  # descriptor -> bytes that it may still hold
        for pipe in pipes:
            descriptor = open_device(pipe["device"])
            self.room[descriptor] = pipe["held_nbytes"]
            self.line_of[descriptor] = {
                (source, target): (seconds, self.lines.setdefault(seconds, deque()))
                for source, target, seconds in pipe["latencies"]
            }

    def serve(self, is_needed):
        """Pass packets on for as long as `is_needed()`."""
        look = 0.0
        while True:
            now = monotonic()
            if now >= look:
                if not is_needed():
                    return
                look = now + LOOK_AROUND_SECONDS
            due = min((line[0][0] for line in self.lines.values() if line), default=look)
            readable, _, _ = select(self.line_of, (), (), max(0.0, min(due, look) - now))
            for descriptor in readable:
                self._take_in(descriptor)
            self._give_back()

    def _take_in(self, descriptor):
        line_of = self.line_of[descriptor]
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = os.read(descriptor, LARGEST_NBYTES)
            except BlockingIOError:
                return
            ends = tuple(packet[SOURCE_SITE : TARGET_SITE + 1 : TARGET_SITE - SOURCE_SITE])
            if ends in line_of and self.room[descriptor] >= len(packet):
                self.room[descriptor] -= len(packet)
                seconds, line = line_of[ends]
                line.append((monotonic() + seconds, descriptor, packet))

    def _give_back(self):
        now = monotonic()
        for line in self.lines.values():
            while line and line[0][0] <= now:
                _, descriptor, packet = line.popleft()
                self.room[descriptor] += len(packet)
                try:
                    os.write(descriptor, packet)
                except OSError as problem:  # a packet that the kernel will not have is a lost one
                    if problem.errno not in (errno.EINVAL, errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM):
                        raise


def main():
    """Serve the pipes that standard input describes until the namespace is gone."""
    namespace = sys.argv[1]
    identity = os.stat(namespace).st_ino

    def is_needed():
        with suppress(OSError):
            return os.stat(namespace).st_ino == identity
        return False

    relay = Relay(json.load(sys.stdin))
    with suppress(OSError):  # ahead of ranks that keep all cores busy
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    gc.disable()  # nothing here makes cycles
    print("ready", flush=True)
    relay.serve(is_needed)


if __name__ == "__main__":
    main()
