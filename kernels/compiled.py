"""How loops are compiled: by Numba, which keeps what it has compiled where there is a place for it."""

import warnings
from functools import partial

from numba import config, njit
from numba.core.caching import FunctionCache

from isthmus.cures import cure_of, reason_of

ANOTHER_FOLDER = "set NUMBA_CACHE_DIR to a folder that you may write in"
UNKEPT = "kernels are compiled anew in each process, which takes some seconds"


def compiled(loop=None, **options):
    """Return `loop` as Numba compiles it, with the options of `numba.njit`; also as a decorator.

    Where what is compiled cannot be kept, or what was kept cannot be read, that is one warning: a loop
    without a cache gives the same numbers, later.
    """
    if loop is None:
        return partial(compiled, **options)
    dispatcher = njit(**options)(loop)
    if config.DISABLE_JIT:
        return dispatcher
    try:
        dispatcher._cache = _Cache(loop)
    except (RuntimeError, OSError) as problem:  # Numba finds no folder
        _warn(problem)
    return dispatcher


class _Cache(FunctionCache):
    """Numba's cache of one loop, which does without its files once they cannot be used."""

    def load_overload(self, *arguments):
        try:
            return super().load_overload(*arguments)
        except OSError as problem:
            self._do_without(problem)
        except Exception:  # what unpickling a damaged file raises: it is written anew
            self.flush()
        return None

    def save_overload(self, *arguments):
        try:
            super().save_overload(*arguments)
        except OSError as problem:
            self._do_without(problem)

    def flush(self):
        try:
            super().flush()
        except OSError as problem:
            self._do_without(problem)

    def _do_without(self, problem):
        self.disable()
        _warn(problem)


def _warn(problem):
    why = reason_of(problem) if isinstance(problem, OSError) else "no folder for them can be written"
    warnings.warn(
        f"compiled kernels cannot be kept ({why}): {UNKEPT}; "
        f"{cure_of(problem, elsewhere=ANOTHER_FOLDER)}",
        RuntimeWarning,
        stacklevel=2,
    )
