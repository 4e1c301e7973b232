"""Flows in SimGrid's plain fluid model: JSON in, the seconds at which each is through as JSON out.

Needs no more than SimGrid and the standard library, because it is the system's Python that has it.
"""

import json
import sys


def main():
    from simgrid import Actor, Comm, Engine, LinkInRoute, NetZone, this_actor

    case = json.load(sys.stdin)
    engine = Engine(
        [
            "flows",
            "--cfg=network/model:CM02",
            "--cfg=network/TCP-gamma:0",
            "--cfg=network/crosstraffic:0",
            "--cfg=network/optim:Full",
            "--cfg=network/bandwidth-factor:1",
            "--cfg=network/latency-factor:1",
            "--cfg=maxmin/precision:1e-9",
            "--cfg=surf/precision:1e-9",
            "--log=root.thres:critical",
        ]
    )
    zone = NetZone.create_full_zone("zone")
    pipes = [
        zone.create_link(f"pipe{number}", rate).seal() for number, rate in enumerate(case["capacities"])
    ]
    hosts = []
    for number, route in enumerate(case["routes"]):
        ends = [zone.create_host(f"{end}{number}", 1e9).seal() for end in ("from", "to")]
        zone.add_route(
            ends[0].netpoint,
            ends[1].netpoint,
            None,
            None,
            [LinkInRoute(pipes[pipe]) for pipe in route],
            False,
        )
        hosts.append(ends)
    zone.seal()
    finish = [None] * len(hosts)

    def flow(number):
        this_actor.sleep_until(case["starts"][number])
        Comm.sendto_async(*hosts[number], case["nbytes"][number]).wait()
        finish[number] = Engine.clock

    for number, ends in enumerate(hosts):
        Actor.create(f"flow{number}", ends[0], flow, number)
    engine.run()
    print(json.dumps(finish))


if __name__ == "__main__":
    main()
