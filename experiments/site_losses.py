"""How long the others stand still where a site dies or freezes, and until it takes part again.

    python experiments/site_losses.py

Four sites of a rank each on this machine, jobs of their own, learn clothes. Seconds are counted from the
signal, or from the start of the process that comes back, to the line in which the hub says so; lines are
printed as JSON, the last one with medians.
"""

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TIMES = 5
SITE = '[[site]]\nname = "{}"\ntier = "{}"\nranks = 1\nsamples_per_second = 20000.0\n'
LINK = '[[link]]\nbetween = ["cloud", "{}"]\nlatency_seconds = 1e-4\nbytes_per_second = 1e8\n'
RUN = """
[cluster]
file = "sites.toml"
[data]
train = "{data}/train"
test = "{data}/test"
[model]
kind = "perceptron"
hidden = [128]
[training]
epochs = 1000
batch_size = 256
[allreduce]
compressor = {{ kind = "int8", block = 256 }}
[recovery]
survive = true
[run]
folder = "runs"
report_every = 50
"""
EDGES = ("north", "south", "east")


class Hub:
    """The site that listens, and what it says."""

    def __init__(self, folder, address):
        self.folder, self.address = folder, address
        self.job = self.start("cloud", "--listen")

    def start(self, site, how="--join"):
        """Start a site; the lines of all but the hub go nowhere."""
        return subprocess.Popen(
            [sys.executable, "-m", "isthmus", "train", "run.toml", "--site", site, how, self.address],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if how == "--listen" else subprocess.DEVNULL,
            text=True,
        )

    def seconds_until(self, words, began):
        """Return the seconds from `began` until the hub says `words`."""
        for line in self.job.stderr:
            if words in line:
                return time.monotonic() - began
        raise SystemExit(f"the hub has ended, and has not said {words!r}")


def main():
    """Have sites die, come back and freeze in turn."""
    seconds = {"death": [], "freeze": [], "return": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sites = [SITE.format("cloud", "cloud"), *(SITE.format(name, "edge") for name in EDGES)]
        (folder / "sites.toml").write_text("".join([*sites, *(LINK.format(name) for name in EDGES)]))
        (folder / "run.toml").write_text(RUN.format(data=ROOT / "data/fashion_mnist"))
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        hub = Hub(folder, address)
        jobs = {name: hub.start(name) for name in EDGES}
        try:
            for number in range(2 * TIMES):
                hub.seconds_until("step ", 0.0)
                hub.seconds_until("step ", 0.0)
                name = EDGES[number % len(EDGES)]
                how = ("death", "freeze")[number % 2]
                began = time.monotonic()
                jobs[name].send_signal(signal.SIGKILL if how == "death" else signal.SIGSTOP)
                seconds[how].append(hub.seconds_until(" gone, ", began))
                jobs[name].kill()
                jobs[name].wait()
                began = time.monotonic()
                jobs[name] = hub.start(name)
                seconds["return"].append(hub.seconds_until(" came back, ", began))
                print(json.dumps({how: seconds[how][-1], "return": seconds["return"][-1]}), flush=True)
        finally:
            for job in (hub.job, *jobs.values()):
                job.kill()
                job.wait()
    print(json.dumps({how: float(np.median(each)) for how, each in seconds.items()}))


if __name__ == "__main__":
    sys.exit(main())
