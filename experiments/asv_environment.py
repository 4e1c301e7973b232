"""asv's environment (asv.conf.json names it): a commit's own isthmus on top of this Python's packages.

Both sides of a comparison have the same NumPy, Numba and MPI, and nothing is downloaded. asv builds a
wheel of each commit and puts it here; where this Python has isthmus too, that one is not seen.
"""

import sys
import sysconfig
import venv
from pathlib import Path

from asv.plugins.virtualenv import Virtualenv

PROGRAMS = ("pip", "mpirun")


class OnTopOfThisPython(Virtualenv):
    """An empty virtual environment that goes on looking in this Python's packages."""

    tool_name = "on_top_of_this_python"

    def _setup(self):
        venv.create(self._path)
        own = Path(sysconfig.get_path("purelib", "venv", {"base": self._path}))
        beneath = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (own / "beneath.pth").write_text("".join(f"{path}\n" for path in beneath))
        for program in PROGRAMS:
            Path(self._path, "bin", program).symlink_to(Path(sys.executable).with_name(program))
