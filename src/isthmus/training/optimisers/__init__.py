"""How a step changes the parameters, once all ranks have the mean gradient: one file a family.

To add one: a file beside `sgd.py` with a frozen dataclass that is an `optimiser.Optimiser`, and its name
in `OPTIMISERS`.
"""

from isthmus.training.optimisers.adam import Adam, AdamW
from isthmus.training.optimisers.sgd import SGD

OPTIMISERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""Name in a settings file -> class."""
