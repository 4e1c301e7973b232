"""Train one model over machines on both sides of a narrow link: plan, run, check."""

import lazy_loader

__version__ = "0.1.0"

# The public names are those of `__init__.pyi`, loaded on first use: `import isthmus` stays light.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
