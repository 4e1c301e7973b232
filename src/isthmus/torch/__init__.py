"""A user's own PyTorch model and loop, on all ranks: what `isthmus.torch` offers.

PyTorch is loaded when the first of these names is asked for: `import isthmus` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isthmus.errors import NoDeviceError
from isthmus.extras import how_to_install

if TYPE_CHECKING:
    from isthmus.torch.local_steps import LocalSteps as LocalSteps
    from isthmus.torch.own_samples import batches as batches
    from isthmus.torch.shared import Shared as Shared

_HOME = {"LocalSteps": "local_steps", "Shared": "shared", "batches": "own_samples"}
"""Public name -> the module of this folder that has it."""
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import torch  # noqa: F401
    except ImportError as problem:
        raise NoDeviceError(
            f"isthmus.torch.{name} needs PyTorch, isthmus[torch]: it cannot be imported ({problem}); "
            f"{how_to_install('torch')}"
        ) from problem
    value = globals()[name] = getattr(import_module(f"isthmus.torch.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
