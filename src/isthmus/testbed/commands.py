"""Run `ip` and `tc`, and say in one line what is missing where they cannot run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from isthmus.errors import EmulationError

ADMIN_PATH = "/usr/sbin:/sbin"  # where ip and tc are, also for those whose PATH leaves it out
TUN = Path("/dev/net/tun")


def require_tools():
    """Raise EmulationError with everything that this machine or user lacks for a testbed."""
    missing = []
    if sys.platform != "linux":
        missing.append("Linux (network namespaces are its own)")
    elif os.geteuid() != 0:
        missing.append("root (start it with sudo)")
    for program, package in (("ip", "iproute2"), ("tc", "iproute2"), ("unshare", "util-linux")):
        if program_path(program) is None:
            missing.append(f"the program `{program}` (apt-get install {package})")
    if missing:
        raise EmulationError(f"testbed: missing on this machine: {', '.join(missing)}")


def require_tun():
    """Raise EmulationError if latencies need a TUN device and there is none."""
    if not TUN.exists():
        raise EmulationError(
            f"testbed: missing on this machine: {TUN}, and netem, of which latencies "
            "need one (modprobe tun, or modprobe sch_netem; in a container: "
            "--device /dev/net/tun)"
        )


def program_path(name):
    """Return where a program is, or None."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{ADMIN_PATH}")


def run(program, *arguments, lines=()):
    """Run a program and return what it prints; `lines` go to its standard input."""
    done = subprocess.run(
        [program_path(program), *arguments],
        text=True,
        capture_output=True,
        input="".join(f"{line}\n" for line in lines),
    )
    if done.returncode:
        problem = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        cure = (
            "; in a container it needs --privileged, or CAP_SYS_ADMIN and CAP_NET_ADMIN"
            if "not permitted" in problem or "denied" in problem
            else "; `isthmus testbed down` removes what was made"
        )
        raise EmulationError(f"testbed: `{' '.join([program, *arguments])}` failed: {problem}{cure}")
    return done.stdout


def inside(namespace, host, *command):
    """Return the command that runs `command` in a namespace, on a machine that calls itself `host`."""
    return [
        program_path("ip"),
        "netns",
        "exec",
        namespace,
        program_path("unshare"),
        "--uts",
        "sh",
        "-c",
        'echo "$0" > /proc/sys/kernel/hostname && exec "$@"',
        host,
        *command,
    ]
