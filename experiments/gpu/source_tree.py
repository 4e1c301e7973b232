"""Importing this makes isthmus importable from its source tree, installed or not."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(ROOT / "src"))
import isthmus  # noqa: E402

if "isthmus.kernels" not in sys.modules:  # the top-level folder kernels/
    spec = importlib.util.spec_from_file_location("isthmus.kernels", ROOT / "kernels/__init__.py",
                                                  submodule_search_locations=[str(ROOT / "kernels")])
    isthmus.kernels = sys.modules["isthmus.kernels"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(isthmus.kernels)
