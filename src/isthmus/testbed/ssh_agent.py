"""Run a command on a host of the testbed as `ssh HOST COMMAND` would: mpirun starts its daemons with it.

    python -m isthmus.testbed.ssh_agent TESTBED HOST COMMAND ...

As with ssh, the words of COMMAND are joined and read by the shell of that host.
"""

import os
import sys

from isthmus.testbed.commands import inside
from isthmus.testbed.state import read_state


def main():
    """Become the command, in the host's namespace and under its name."""
    name, host, *command = sys.argv[1:]
    namespace = (read_state(name) or {"hosts": {}})["hosts"].get(host)
    if namespace is None:
        sys.exit(f"isthmus: testbed: no site has a host {host!r}")
    line = inside(namespace, host, "sh", "-c", " ".join(command))
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
