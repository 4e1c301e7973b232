"""What a cluster file becomes on one machine: namespaces, pipes, and the `ip` and `tc` lines for them.

Every site is a namespace. All sites hang on one more namespace, the wires. There each pipe of the
cluster (one direction of a link, or what several links share) is one device with one queue, shaped to
the pipe's rate, and packets between two sites are sent through the pipes of their route, one after
another. Ranks of one site stay in their namespace and pass no pipe. A second, unshaped network joins
all sites to the wires, for mpirun's own talk, so that the links carry the job's bytes alone.

Nothing here runs a command.
"""

import ipaddress
import itertools
import re
from dataclasses import dataclass
from functools import cached_property

from isthmus.errors import ClusterError
from isthmus.links.tcp import FIRST_WORDS, tcp_settings

NAME = "testbed"  # of the one testbed that most machines have
RANKS_NETWORK = "198.18.0.0/16"  # addresses that RFC 2544 sets aside for tests
CONTROL_NETWORK = "198.19.0.0/16"
MOST_SITES = 254
MTU_NBYTES = 1500
SEGMENT_NBYTES = 1448  # of a TCP packet of that size, time stamps on
BURST_SECONDS = 0.0005  # the most that passes a pipe at once, in time at its rate
QUEUE_SECONDS = 0.2  # what a pipe's queue holds, in time at its rate
SAME_ADDRESS = "address 02:00:00:00:00:01"  # both ends of a pair, without ARP: each takes all in


@dataclass(frozen=True)
class Pipe:
    """One queue: a device of the wires, its rate, and how long it holds a packet on top of that.

    `seconds_between[source, target]` is the one-way latency for packets between two sites (numbers
    from 1). A `relayed` pipe is a TUN device whose packets the relay holds and gives back; any other
    is a pair of devices, with netem for its latency where there is one.
    """

    number: int
    bytes_per_second: float
    seconds_between: dict
    relayed: bool

    @property
    def device(self):
        return f"pipe{self.number}"

    @property
    def exit(self):
        """The device that its packets come out of."""
        return self.device if self.relayed else f"pipe{self.number}out"

    @property
    def table(self):
        """Number of the routing table that leads into it."""
        return 1000 + self.number

    @property
    def burst_nbytes(self):
        return int(max(2 * MTU_NBYTES, 2 * BURST_SECONDS * self.bytes_per_second))

    @property
    def queue_nbytes(self):
        return int(max(64 * MTU_NBYTES, QUEUE_SECONDS * self.bytes_per_second))

    @property
    def held_nbytes(self):
        """The most bytes that its latency may hold: twice what its rate can fill."""
        return int(2 * max(self.seconds_between.values()) * self.bytes_per_second) + 2**20


class Wiring:
    """The namespaces, pipes and routes of a cluster on one machine.

    netem: whether the kernel has it; without it the relay makes latencies. name: of the testbed; all
    its namespaces begin with `isthmus-NAME-`. tuned: whether routes say what `tcp_settings` wants.
    Raises ClusterError for what one machine cannot stand in for.
    """

    def __init__(self, cluster, netem=False, name=NAME, tuned=True):
        if len(cluster.sites) > MOST_SITES:
            raise ClusterError(
                f"{cluster.source}: has {len(cluster.sites)} sites; the testbed takes "
                f"at most {MOST_SITES}"
            )
        self.cluster, self.tuned = cluster, tuned
        self.names = _host_names(cluster.sites)
        self.wires = f"isthmus-{name}-wires"
        self.namespaces = [f"isthmus-{name}-site-{site}" for site in self.names]
        self.routes = {
            (source, target): cluster.route(cluster.names[source - 1], cluster.names[target - 1])
            for source in self.numbers
            for target in self.numbers
            if source != target
        }
        self.pipes = self._pipes(netem)

    @property
    def numbers(self):
        return range(1, len(self.names) + 1)

    @cached_property
    def hosts(self):
        """Host name -> namespace: the cluster file's hosts, or one of the site's own name."""
        return {
            host: namespace
            for site, name, namespace in zip(self.cluster.sites, self.names, self.namespaces)
            for host in (site.hosts or (name,))
        }

    @property
    def latency(self):
        """What makes the latencies: "relay", "netem" or "none"."""
        if any(pipe.relayed for pipe in self.pipes.values()):
            return "relay"
        return (
            "netem"
            if any(any(pipe.seconds_between.values()) for pipe in self.pipes.values())
            else "none"
        )

    def wires_lines(self):
        """Return the lines of `ip -batch` for the wires, pairs to the sites included."""
        yield "link set lo up"
        yield "link add control type bridge"
        yield f"address add {control_address(0)}/16 dev control"
        yield "link set control up"
        for number, namespace in zip(self.numbers, self.namespaces):
            yield (
                f"link add site{number} {SAME_ADDRESS} type veth "
                f"peer name uplink {SAME_ADDRESS} netns {namespace}"
            )
            yield f"link set site{number} arp off up"
            yield f"address add 198.18.{number}.1/24 dev site{number}"
            yield f"link add control{number} type veth peer name control netns {namespace}"
            yield f"link set control{number} master control up"
        for pipe in self.pipes.values():
            if pipe.relayed:
                yield f"tuntap add dev {pipe.device} mode tun vnet_hdr"
            else:
                yield (
                    f"link add {pipe.device} {SAME_ADDRESS} type veth "
                    f"peer name {pipe.exit} {SAME_ADDRESS}"
                )
                yield f"link set {pipe.exit} up"
            yield f"link set {pipe.device} txqueuelen 10000 arp off up"
            yield f"route add default dev {pipe.device} table {pipe.table}"
        for (source, target), links in self.routes.items():
            came_from = f"site{source}"
            for link in links:
                pipe = self.pipes[link.pipe]
                yield (
                    f"rule add pref 100 iif {came_from} from 198.18.{source}.0/24 "
                    f"to 198.18.{target}.0/24 lookup {pipe.table}"
                )
                came_from = pipe.exit

    def site_lines(self, number):
        """Return the lines of `ip -batch` for the namespace of site `number`."""
        yield "link set lo up"
        yield f"link set uplink arp off gso_max_segs {self._segments(number)} up"
        yield f"address add {site_address(number)}/24 dev uplink"
        gateway = f"via 198.18.{number}.1"
        yield f"route add default {gateway}{' ' + FIRST_WORDS if self.tuned else ''}"
        settings = tcp_settings(self.cluster)
        for other in self.numbers if self.tuned else ():
            ends = self.cluster.names[number - 1], self.cluster.names[other - 1]
            if ends in settings.routes:
                yield f"route add 198.18.{other}.0/24 {gateway} {settings.routes[ends]}"
        yield f"address add {control_address(number)}/16 dev control"
        yield "link set control up"

    def queue_lines(self):
        """Return the lines of `tc -batch` for the wires: each pipe's rate, and netem's latencies."""
        for pipe in self.pipes.values():
            place = "root handle 1:"
            seconds = max(pipe.seconds_between.values())
            if seconds and not pipe.relayed:
                packets = (pipe.held_nbytes + pipe.queue_nbytes) // SEGMENT_NBYTES
                yield (
                    f"qdisc add dev {pipe.device} root handle 2: netem delay "
                    f"{1e6 * seconds:.0f}us limit {packets}"
                )
                place = "parent 2:1 handle 1:"
            yield (
                f"qdisc add dev {pipe.device} {place} tbf rate {_bits(pipe.bytes_per_second)}bit "
                f"burst {pipe.burst_nbytes} limit {pipe.queue_nbytes}"
            )

    def relay_table(self):
        """Return what the relay is told of each pipe that it serves."""
        return [
            {
                "device": pipe.device,
                "held_nbytes": pipe.held_nbytes,
                "latencies": [[*ends, seconds] for ends, seconds in pipe.seconds_between.items()],
            }
            for pipe in self.pipes.values()
            if pipe.relayed
        ]

    def _pipes(self, netem):
        """Return the pipes that some route passes, by their names in the cluster."""
        rates, seconds_between = {}, {}
        for ends, links in self.routes.items():
            for link in links:
                rates[link.pipe] = link.bytes_per_second
                passing = seconds_between.setdefault(link.pipe, {})
                if ends in passing:
                    source, target = (self.cluster.names[number - 1] for number in ends)
                    raise ClusterError(
                        f"{self.cluster.source}: the way from {source!r} to {target!r} passes the "
                        f"shared link {link.pipe!r} twice, which the testbed cannot do; give one of its "
                        "[[link]] tables another `shared` name"
                    )
                passing[ends] = link.latency_seconds

        def relayed(seconds):
            """netem holds all packets of a queue alike; the relay each its own time."""
            return any(seconds) and not (netem and len(set(seconds)) == 1)

        return {
            name: Pipe(number, rates[name], passing, relayed(passing.values()))
            for number, (name, passing) in enumerate(seconds_between.items(), 1)
        }

    def _segments(self, number):
        """Return how many TCP segments a site may send as one packet: a pipe's burst must hold it."""
        rates = [
            link.bytes_per_second
            for (source, _), links in self.routes.items()
            if source == number
            for link in links
        ]
        most = BURST_SECONDS * min(rates, default=float("inf")) / SEGMENT_NBYTES
        return int(max(1, min(most, 44)))


def site_address(number):
    """Return the address of site `number` (from 1) on the links."""
    return f"198.18.{number}.2"


def control_address(number):
    """Return the address of site `number` on the control network; 0 is the wires."""
    return str(ipaddress.ip_network(CONTROL_NETWORK)[number + 1])


def _host_names(sites):
    """Return a host name for each site: its own where it can be one, else one that nobody else has."""
    names, given = [], {host for site in sites for host in site.hosts}
    for number, site in enumerate(sites, 1):
        fits = re.fullmatch(r"[A-Za-z]([A-Za-z0-9-]{0,28}[A-Za-z0-9])?", site.name)
        others = given.difference(site.hosts).union(
            names, (other.name for other in sites if other is not site)
        )
        names.append(
            site.name
            if fits and site.name not in others
            else next(name for free in itertools.count(number) if (name := f"site-{free}") not in others)
        )
    return names


def _bits(bytes_per_second):
    return max(8, round(8 * bytes_per_second))
