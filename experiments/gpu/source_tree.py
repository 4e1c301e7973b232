"""Importing this makes isthmus importable from its source tree, installed or not.

It is then its modules alone, without the public names: what loads those may not be installed.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]

if "isthmus" not in sys.modules:
    sys.modules["isthmus"] = ModuleType("isthmus")
    sys.modules["isthmus"].__path__ = [str(ROOT / "src/isthmus")]

if "isthmus.kernels" not in sys.modules:  # the top-level folder kernels/
    spec = importlib.util.spec_from_file_location(
        "isthmus.kernels",
        ROOT / "kernels/__init__.py",
        submodule_search_locations=[str(ROOT / "kernels")],
    )
    kernels = sys.modules["isthmus.kernels"] = importlib.util.module_from_spec(spec)
    sys.modules["isthmus"].kernels = kernels
    spec.loader.exec_module(kernels)
