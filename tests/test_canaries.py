"""A whole run on the testbed, and somebody who notes every packet between its sites."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from clusters import cluster_of
from test_testbed import OURS, bed, machine  # noqa: F401

import isthmus
from isthmus import testbed
from isthmus.security.key_files import make_keys
from isthmus.testbed import commands

pytestmark = pytest.mark.slow

OF_DATA = b"can>ary=min?ers>"  # four float32 between 0.06 and 1
OF_SETTINGS = b"the-canary-of-settings"
INPUTS, HIDDEN = 24, 8
UNTOUCHED = range(4, 8)  # features that are 0, whose weights stay as they were drawn


def capture(path):
    """Write every packet that enters or leaves the site of this process to `path`, until SIGTERM."""
    ends = []
    signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
    everything = socket.ntohs(0x0003)  # ETH_P_ALL
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, everything) as link, open(path, "wb") as file:
        link.setsockopt(socket.SOL_SOCKET, 33, 2**28)  # SO_RCVBUFFORCE
        link.bind(("uplink", 0))
        link.settimeout(0.1)
        print("ready", flush=True)
        while True:
            try:
                file.write(link.recv(2**17))
            except TimeoutError:
                if ends:
                    break
        seen, lost = np.frombuffer(link.getsockopt(263, 6, 8), "u4")  # SOL_PACKET, PACKET_STATISTICS
    print(json.dumps({"packets": int(seen), "lost": int(lost)}), flush=True)


def ranks_main():
    """Be a rank of `isthmus train`; at the edge nobody sees the folders of shards."""
    from isthmus.cli import main

    if os.environ["OMPI_COMM_WORLD_RANK"] != "0":
        there = Path.is_dir
        Path.is_dir = lambda path, **more: "of-cloud" not in str(path) and there(path, **more)
    main.main()


@contextmanager
def captured(path):
    """Note what crosses the edge's link meanwhile; in `path` afterwards."""
    namespace = testbed.describe(OURS)["sites"]["site1"]["namespace"]
    line = [commands.program_path("ip"), "netns", "exec", namespace, sys.executable, __file__]
    with subprocess.Popen([*line, "capture", path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.terminate()
        told = json.loads(process.stdout.readline())
    assert told["lost"] == 0
    assert told["packets"] > 1000


def prepared(folder):
    """Write a cluster, shards that the cloud alone sees, keys, and settings with and without a seal."""
    draw, rows = np.random.default_rng(0), 6000
    targets = draw.integers(0, 3, rows + 300, dtype="u1")
    features = draw.normal(size=(rows + 300, INPUTS)).astype("f4") + targets[:, None]
    features[:, :4] = np.frombuffer(OF_DATA, "f4")
    features[:, UNTOUCHED] = 0
    shards = folder / "shards-of-cloud"
    for part, chosen in (("train", slice(0, rows)), ("test", slice(rows, None))):
        isthmus.pack_shards(
            {"features": features[chosen], "targets": targets[chosen]}, shards / part, 30
        )
    cluster = cluster_of(1, 1, bytes_per_second=1.25e7)
    (folder / "cluster.toml").write_text(tomli_w.dumps(cluster))
    for site in ("site0", "site1"):
        make_keys(folder / "keys", site)
    for link in ("clear", "sealed"):
        run = {
            "cluster": {"file": "cluster.toml"},
            "data": {"train": str(shards / "train"), "test": str(shards / "test"), "scale": "none"},
            "model": {"kind": "perceptron", "inputs": INPUTS, "hidden": [HIDDEN], "classes": 3},
            "training": {"epochs": 2, "batch_size": 600, "seed": 3},
            "allreduce": {"compressor": {"kind": "int8", "block": 64}},
            "run": {"folder": f"{OF_SETTINGS.decode()}/{link}", "checkpoint_every": 15, "trace": True},
            "security": {"link": link, "keys": "keys"},
        }
        (folder / f"{link}.toml").write_text(tomli_w.dumps(run))
    return isthmus.Cluster.from_toml(folder / "cluster.toml")


def test_who_reads_the_link_finds_no_canary_of_a_sealed_run_and_thousands_of_a_clear_one(
    bed,  # noqa: F811
    tmp_path,
):
    """In scattering, steps, evaluation, checkpoints, the report, and when the run goes on."""
    cluster = prepared(tmp_path)
    testbed.up(cluster, OURS)
    counts, hashes = {}, {}
    for link in ("clear", "sealed"):
        runs = tmp_path / OF_SETTINGS.decode() / link
        pcap = tmp_path / f"{link}.packets"
        train = [sys.executable, __file__, "ranks", "train", str(tmp_path / f"{link}.toml")]
        with captured(pcap):
            for more in (["--name", "run"], ["--resume", str(runs / "run")]):
                with open(tmp_path / "out", "a") as out:
                    code, _ = testbed.run(cluster, [*train, *more], stdout=out, name=OURS)
                assert code == 0, (tmp_path / "out").read_text()
        summary = json.loads((runs / "run/summary.json").read_text())
        hashes[link] = summary["parameter_hash"]
        assert {each["sent_nbytes"] - each["predicted_nbytes"] for each in summary["links"]} == {0}
        assert summary["received_nbytes"]["train"] > 1000 * len(OF_DATA)  # what the edge does not see
        _, parameters = isthmus.load_model(runs / "run")
        of_inputs = parameters[: INPUTS * HIDDEN].reshape(INPUTS, HIDDEN)
        packets = pcap.read_bytes()
        counts[link] = {
            "data": packets.count(OF_DATA),
            "settings": packets.count(OF_SETTINGS),
            "parameters": sum(packets.count(of_inputs[row].tobytes()) for row in UNTOUCHED),
        }
    assert hashes["clear"] == hashes["sealed"]
    assert counts["sealed"] == {"data": 0, "settings": 0, "parameters": 0}, counts
    assert counts["clear"]["data"] > 1000, counts
    assert counts["clear"]["settings"] > 0, counts
    assert counts["clear"]["parameters"] > 0, counts


if __name__ == "__main__":
    {"capture": lambda: capture(sys.argv[2]), "ranks": lambda: (sys.argv.pop(1), ranks_main())}[
        sys.argv[1]
    ]()
