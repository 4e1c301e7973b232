"""Bring a cluster's namespaces and links up on this machine, count their bytes, take them down."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from isthmus.errors import EmulationError
from isthmus.json_text import dumps, loads
from isthmus.links.tcp import buffer_limits, tcp_settings
from isthmus.testbed.commands import program_path, require_tools, require_tun, run
from isthmus.testbed.state import (
    NAMESPACES,
    NOBODYS,
    end_processes,
    identity,
    is_whole,
    only_one,
    process_started,
    read_state,
    refuse_others,
    take_down,
    write_state,
)
from isthmus.testbed.wiring import NAME, Wiring, site_address

ZERO = [
    f"/proc/sys/net/ipv4/conf/{which}/{name}"
    for which in ("all", "default")
    for name in ("rp_filter", "send_redirects")
]
CONTROL = "/proc/sys/net/ipv4/tcp_congestion_control"
NO_IPV6 = [f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6" for which in ("all", "default")]


def up(cluster, name=NAME, tuned=None):
    """Make the sites and links of `cluster` on this machine; nothing to do if they are there.

    name: of the testbed; those of other names live beside it and know nothing of each other. tuned:
    whether TCP is set as the links want it, or is as the machine has it; None: it is, or as it is there.

    Returns whether it made them. What a crash has left is removed first. Needs root. Raises
    EmulationError for what is missing, for a namespace that is somebody else's, and if the testbed
    of another cluster is up.
    """
    require_tools()
    with only_one(name):
        state = read_state(name)
        if state and is_whole(state):
            if state["cluster"] == cluster.to_table():
                if tuned in (None, state["tuned"]):
                    return False
                raise EmulationError(
                    "testbed: it is up with TCP set otherwise; end it with `isthmus testbed down`"
                )
            raise EmulationError(
                f"testbed: that of {state['source']} is up, not that of "
                f"{cluster.source} as it is now; end it with `isthmus testbed down`"
            )
        wiring = Wiring(cluster, name=name)  # a cluster that cannot be emulated changes nothing
        if state:
            take_down(state)
        names = [wiring.wires, *wiring.namespaces]
        refuse_others(dict.fromkeys(names, NOBODYS))
        state = {
            "name": name,
            "cluster": cluster.to_table(),
            "source": cluster.source,
            "relay": None,
            "hosts": wiring.hosts,
            "wires": wiring.wires,
            "sites": dict(zip(cluster.names, wiring.namespaces)),
            "namespaces": dict.fromkeys(names),
            "latency": None,
            "tuned": tuned is not False,
        }
        write_state(state)
        try:
            _make(cluster, state)
        except BaseException:
            take_down(state | {"namespaces": dict.fromkeys(names)})
            raise
        write_state(state)
        return True


def down(name=NAME):
    """End the testbed and everything that runs in it; returns whether there was one."""
    require_tools()
    with only_one(name):
        state = read_state(name)
        if state:
            take_down(state)
        return state is not None


def describe(name=NAME):
    """Return what is up: sites' namespaces and addresses, what makes latencies, and TCP's control."""
    state = _state_of_what_is_up(name)
    control = run("ip", "netns", "exec", next(iter(state["sites"].values())), "cat", CONTROL).strip()
    return {
        "source": state["source"],
        "emulated": True,
        "latency": state["latency"],
        "congestion_control": control,
        "tuned": state["tuned"],
        "sites": {
            site: {"namespace": namespace, "address": site_address(number)}
            for number, (site, namespace) in enumerate(state["sites"].items(), 1)
        },
    }


def counters(name=NAME):
    """Return the bytes that each site has sent to and received from the links since `up`.

    Site -> {"sent_nbytes": ..., "received_nbytes": ...}, as its network interface counts them, with
    the headers of Ethernet, IP and TCP; what ranks of one site say to each other is not in it. TCP
    segments that leave as one packet (on links beyond 50 Mbit/s) count one header.
    """
    return {
        site: _interface_nbytes(namespace)
        for site, namespace in _state_of_what_is_up(name)["sites"].items()
    }


def _state_of_what_is_up(name):
    state = read_state(name)
    if state is None or not is_whole(state):
        raise EmulationError(
            "testbed: none is up, or not all of it; start it with `isthmus testbed up CLUSTER.toml`"
        )
    return state


def _interface_nbytes(namespace):
    (table,) = loads(run("ip", "-n", namespace, "-json", "-stats", "link", "show", "uplink"))
    return {
        "sent_nbytes": table["stats64"]["tx"]["bytes"],
        "received_nbytes": table["stats64"]["rx"]["bytes"],
    }


def _make(cluster, state):
    """Make what `state` names, and write into it what tells it from others."""
    for name in state["namespaces"]:
        run("ip", "netns", "add", name)
        state["namespaces"][name] = identity(name)
        _set(name, "0", ZERO)
        if os.path.exists(NO_IPV6[0]):
            _set(name, "1", NO_IPV6)
    _set(state["wires"], "1", ["/proc/sys/net/ipv4/ip_forward"])
    wiring = Wiring(cluster, _has_netem(state["wires"]), state["name"], state["tuned"])
    state["latency"] = wiring.latency
    if wiring.latency == "relay":
        require_tun()
    run("ip", "-n", wiring.wires, "-batch", "-", lines=wiring.wires_lines())
    for number, namespace in zip(wiring.numbers, wiring.namespaces):
        run("ip", "-n", namespace, "-batch", "-", lines=wiring.site_lines(number))
        if state["tuned"]:
            _tune(namespace, tcp_settings(cluster))
    run("tc", "-n", wiring.wires, "-batch", "-", lines=wiring.queue_lines())
    if wiring.latency == "relay":
        state["relay"] = _start_relay(wiring.wires, wiring.relay_table())


def _tune(namespace, settings):
    """Let TCP fill the links, each of which is the job's own here.

    The control is the machine's if it is cubic or reno, else reno: bbr spreads even short messages
    out in time, as if others were on the link.
    """
    for key, value in (settings.kernel | buffer_limits(settings.buffer_nbytes)).items():
        _set(namespace, value, ["/proc/sys/" + key.replace(".", "/")])
    if Path(CONTROL).read_text().strip() not in ("cubic", "reno"):
        _set(namespace, "reno", [CONTROL])


def _set(namespace, value, paths):
    """Write `value` into settings of a namespace's network."""
    run("ip", "netns", "exec", namespace, "tee", *paths, lines=[value])


def _has_netem(wires):
    """Whether the kernel can delay packets itself; tried out on the wires."""
    with suppress(EmulationError):
        run("tc", "-n", wires, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
        run("tc", "-n", wires, "qdisc", "del", "dev", "lo", "root")
        return True
    return False


def _start_relay(wires, table):
    """Start the relay in the wires and wait until it serves; return how to know it again."""
    relay = subprocess.Popen(
        [
            program_path("ip"),
            "netns",
            "exec",
            wires,
            sys.executable,
            "-m",
            "isthmus.testbed.tun_relay",
            str(NAMESPACES / wires),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd="/",
    )
    with suppress(BrokenPipeError):
        relay.stdin.write(dumps(table))
        relay.stdin.close()
    if relay.stdout.readline() != "ready\n":
        end_processes({relay.pid})
        last = (relay.stderr.read().splitlines() or ["no word"])[-1]
        raise EmulationError(f"testbed: the relay that makes latencies did not start: {last}")
    relay.stdout.close()
    relay.stderr.close()
    return {"pid": relay.pid, "started": process_started(relay.pid)}
