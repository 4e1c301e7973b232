"""How long the others stand still where a site dies or freezes, and until it takes part again.

    python experiments/site_losses.py [--real]

Four sites of a rank each on this machine, jobs of their own, learn clothes; two may be the hub, and in
the end each of them in turn is killed as it is. Computing is paced, so that the one that comes back has
a core, as on a machine of its own; with --real the other three want all there are. Seconds are counted
from the signal, or from the start of the process that comes back, to the line in which the hub says so;
lines are printed as JSON, the last one with medians.
"""

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TIMES = 5
SITE = '[[site]]\nname = "{}"\ntier = "{}"\nranks = 1\nsamples_per_second = 2000.0\n'
LINK = '[[link]]\nbetween = ["{}", "{}"]\nlatency_seconds = 1e-4\nbytes_per_second = 1e8\n'
RUN = """
[cluster]
file = "sites.toml"
compute = "{compute}"
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
HUBS, EDGES = ("cloud", "north"), ("north", "south", "east")


class Sites:
    """The jobs, the name of the present hub, and what it says."""

    def __init__(self, folder):
        self.folder, self.hub = folder, HUBS[0]
        with ExitStack() as stack:
            servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in HUBS]
            self.addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
        self.jobs = {name: self.start(name) for name in (HUBS[0], *EDGES)}

    def start(self, site):
        """Start a site; the lines of those that are never the hub go nowhere."""
        how = []
        for name, address in zip(HUBS, self.addresses):
            how += ["--listen" if name == site else "--join", address]
        return subprocess.Popen(
            [sys.executable, "-m", "isthmus", "train", "run.toml", "--site", site, *how],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if site in HUBS else subprocess.DEVNULL,
            text=True,
        )

    def seconds_until(self, words, began=0.0):
        """Return the seconds from `began` until the hub says `words`."""
        for line in self.jobs[self.hub].stderr:
            if words in line:
                return time.monotonic() - began
        raise SystemExit(f"the hub has ended, and has not said {words!r}")

    def lose(self, name, how):
        """Return the seconds until the others go on without a site, and until it takes part again."""
        self.seconds_until("step ")
        self.seconds_until("step ")
        if name == self.hub:
            self.hub = next(each for each in HUBS if each != name)
        began = time.monotonic()
        self.jobs[name].send_signal(how)
        seconds = [self.seconds_until(" gone, ", began)]
        self.jobs[name].kill()
        self.jobs[name].wait()
        began = time.monotonic()
        self.jobs[name] = self.start(name)
        return [*seconds, self.seconds_until(" came back, ", began)]


def main():
    """Have sites die, come back and freeze in turn, and then hubs die."""
    seconds = {"death": [], "freeze": [], "hub's death": [], "return": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pairs = [(hub, name) for hub in HUBS for name in EDGES if hub != name]
        tables = [SITE.format("cloud", "cloud"), *(SITE.format(name, "edge") for name in EDGES)]
        (folder / "sites.toml").write_text("".join([*tables, *(LINK.format(*pair) for pair in pairs)]))
        compute = "real" if "--real" in sys.argv[1:] else "paced"
        (folder / "run.toml").write_text(RUN.format(data=ROOT / "data/fashion_mnist", compute=compute))
        sites = Sites(folder)
        try:
            for number in range(3 * TIMES):
                if number < 2 * TIMES:
                    how, name = ("death", "freeze")[number % 2], EDGES[number % len(EDGES)]
                else:
                    how, name = "hub's death", sites.hub
                kind = signal.SIGSTOP if how == "freeze" else signal.SIGKILL
                gone, back = sites.lose(name, kind)
                seconds[how].append(gone)
                seconds["return"].append(back)
                print(json.dumps({how: gone, "return": back}), flush=True)
        finally:
            for job in sites.jobs.values():
                job.kill()
                job.wait()
    print(json.dumps({how: float(np.median(each)) for how, each in seconds.items()}))


if __name__ == "__main__":
    sys.exit(main())
