"""When sites exchange, what, and what is made of it: one file a strategy.

To add one: a file beside `synchronous.py` with a frozen dataclass that fulfils `strategy.Strategy`, and
its name in `STRATEGIES`.
"""

from isthmus.training.strategies.buffered import Buffered
from isthmus.training.strategies.federated import Federated
from isthmus.training.strategies.local_steps import LocalSteps
from isthmus.training.strategies.streaming import Streaming
from isthmus.training.strategies.synchronous import Synchronous

STRATEGIES = {
    "synchronous": Synchronous,  # gradients, every step
    "local_steps": LocalSteps,  # the whole change, now and then
    "streaming": Streaming,  # its fragments in turn
    "buffered": Buffered,  # each site's change, as soon as it is there
    "federated": Federated,  # the change of some clients, every round
}
"""Name in a settings file -> class."""
