"""How a step changes the parameters, once all ranks have the mean gradient: one file a family.

To add one: a file beside `sgd.py` with a frozen dataclass that is an `optimiser.Optimiser`, and its name
in `OPTIMISERS`.
"""

from collections.abc import Mapping
from typing import Any

from isthmus.training.optimisers.adam import Adam, AdamW
from isthmus.training.optimisers.of_torch import PREFIX, OfTorch
from isthmus.training.optimisers.optimiser import Optimiser
from isthmus.training.optimisers.sgd import SGD

OPTIMISERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""Name in a settings file -> class."""


def optimiser_of(kind: str, arguments: Mapping[str, Any]) -> Optimiser | OfTorch:
    """Return the optimiser of that name: one of `OPTIMISERS`, or of PyTorch, as "torch.optim.AdamW"."""
    return OfTorch(kind, arguments) if kind.startswith(PREFIX) else OPTIMISERS[kind](**arguments)
