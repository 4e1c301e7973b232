"""Open MPI without its component for a fast network that this host has not: it would sleep a second."""

import os
import re
import shutil
import sys
from pathlib import Path

DEVICES = (Path("/sys/class/infiniband"), Path("/sys/class/cxi"))
"""Where Linux lists the devices of fast networks: of InfiniBand, Omni-Path and EFA; of Slingshot."""
CHOSEN = "OMPI_MCA_btl"
"""In the environment: which components Open MPI moves bytes with."""


def leave_out_fabric(devices=DEVICES, files=None):
    """Have an Open MPI that this process starts not try libfabric where there is no device for it.

    Open MPI 5 tries its component `ofi` everywhere, and that sleeps for a second when it closes again.
    Nothing is changed where anybody has chosen components: in the environment, in which mpirun puts
    what its command line says, or in one of Open MPI's `files`; None: those of this user and host.
    """
    files = parameter_files() if files is None else files
    if CHOSEN in os.environ or any(any(_entries(device)) for device in devices):
        return
    if not any(re.search(r"(?m)^\s*btl\s*=", _text(file)) for file in files):
        os.environ[CHOSEN] = "^ofi"


def parameter_files():
    """Return where Open MPI may read parameters from, whether there is a file or not."""
    mpirun = shutil.which("mpirun")
    prefixes = [sys.prefix, *([Path(mpirun).resolve().parents[1]] if mpirun else [])]
    folders = [*(Path(prefix, "etc") for prefix in prefixes), Path("/etc/openmpi")]
    own = Path(os.path.expanduser("~"), ".openmpi/mca-params.conf")
    return [own, *(folder / "openmpi-mca-params.conf" for folder in folders)]


def _entries(folder):
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(file):
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
