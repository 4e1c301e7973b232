"""What a testbed is made of: one file for each, so that any process can use it or clean it up.

The file is written before the first namespace is made and again once all are: whatever it names and
does not identify yet was left by a crash in between, and is the testbed's own.
"""

import fcntl
import os
import re
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from isthmus.cures import explained
from isthmus.errors import EmulationError
from isthmus.files import write_text
from isthmus.json_text import dumps, loads
from isthmus.testbed.commands import run

FOLDER = Path("/run/isthmus")
NAMESPACES = Path("/run/netns")
NOBODYS = [0, 0]  # the identity of no namespace
PATIENCE_SECONDS = 3.0


def state_path(name):
    """Return where the state of the testbed called `name` is written."""
    if not re.fullmatch("[a-z0-9]{1,16}", name):
        raise EmulationError(f"testbed: a name is 1 to 16 letters a-z and digits, not {name!r}")
    return FOLDER / f"{name}.json"


@contextmanager
def only_one(name):
    """Keep other processes from making or removing the testbed `name` meanwhile."""
    path = state_path(name)
    try:
        FOLDER.mkdir(mode=0o755, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115
    except OSError as problem:
        otherwise = "make it a folder that root may write in"
        raise EmulationError(
            f"testbed: {FOLDER}: cannot be written: {explained(problem, otherwise)}"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_state(name):
    """Return the state of the testbed `name` that was written last, or None."""
    path = state_path(name)
    try:
        state = loads(path.read_bytes())
        if not isinstance(state, dict):
            raise ValueError("it holds no table")
        return {"tuned": True} | state | {"name": name}
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        otherwise = f"remove it, and each namespace isthmus-{name}-* with `ip netns del`"
        raise EmulationError(
            f"testbed: {path}: cannot be read: {explained(problem, otherwise)}"
        ) from None


def write_state(state):
    """Write the state, whole or not at all."""
    write_text(state_path(state["name"]), dumps(state, indent=1) + "\n")


def identity(namespace):
    """Return what tells a namespace from another of its name, or None if there is none."""
    with suppress(FileNotFoundError):
        found = os.stat(NAMESPACES / namespace)
        return [found.st_dev, found.st_ino]


def process_started(pid):
    """Return when a process was started, in the kernel's ticks: it tells apart two of one number."""
    with suppress(OSError, IndexError):
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text[text.rindex(")") + 2 :].split()
        return None if fields[0] == "Z" else int(fields[19])


def is_whole(state):
    """Whether all that the state names is there and is what was made."""
    relay = state["relay"]
    return all(made and identity(name) == made for name, made in state["namespaces"].items()) and (
        relay is None or process_started(relay["pid"]) == relay["started"]
    )


def refuse_others(namespaces):
    """Raise EmulationError if one of the namespaces is there and is not the testbed's.

    namespaces: name -> identity, None for one that a crash may have left half-made.
    """
    for name, made in namespaces.items():
        found = identity(name)
        if made and found and found != made:
            raise EmulationError(
                f"testbed: namespace {name!r} was not made by this testbed and is left "
                f"alone; remove it with `ip netns del {name}` if it is of no use"
            )


def take_down(state):
    """End every process in the testbed's namespaces and remove them; then forget the state."""
    refuse_others(state["namespaces"])
    there = [name for name in state["namespaces"] if identity(name)]
    processes = {int(pid) for name in there for pid in run("ip", "netns", "pids", name).split()}
    end_processes(processes - {os.getpid()})
    for name in there:
        run("ip", "netns", "del", name)
    state_path(state["name"]).unlink(missing_ok=True)


def end_processes(pids):
    """Ask processes to end, and make those end that do not."""
    started = {pid: process_started(pid) for pid in pids}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                if process_started(pid) == started[pid] is not None:
                    os.kill(pid, number)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (
            any(process_started(pid) == started[pid] is not None for pid in pids)
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
