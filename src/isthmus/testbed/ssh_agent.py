"""Run a command on a host of the testbed as `ssh HOST COMMAND` would: mpirun starts its daemons with it.

    python -m isthmus.testbed.ssh_agent testbed=NAME HOST COMMAND ...

As with ssh, the words of COMMAND are joined and read by the shell of that host.
"""

import os
import sys

from isthmus.testbed.commands import inside
from isthmus.testbed.state import read_state


def main():
    """Become the command, in the host's namespace and under its name."""
    testbed, host, *command = sys.argv[1:]  # not NAME alone: mpirun loses an agent's words of one letter
    namespace = (read_state(testbed.removeprefix("testbed=")) or {"hosts": {}})["hosts"].get(host)
    if namespace is None:
        sys.exit(f"isthmus: testbed: no site has a host {host!r}")
    line = inside(namespace, host, "sh", "-c", " ".join(command))
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
