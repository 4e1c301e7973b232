"""How loops are compiled: by Numba, which keeps what it has compiled where there is a place for it."""

import hashlib
import os
import warnings
from functools import cached_property, partial
from pathlib import Path

from numba import config, njit
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.core.runtime import rtsys
from numba.core.sigutils import normalize_signature

from isthmus.cures import cure_of, reason_of

ANOTHER_FOLDER = "set NUMBA_CACHE_DIR to a folder that you may write in"
UNKEPT = "kernels are compiled anew in each process, which takes some seconds"


def compiled(loop=None, calls=(), **options):
    """Return `loop` as Numba compiles it, with the options of `numba.njit`; also as a decorator.

    calls: the modules of loops that this one calls; when one of them changes, it is compiled anew.
    Where what is compiled cannot be kept, or what was kept cannot be read, that is one warning: a loop
    without a cache gives the same numbers, later.
    """
    if loop is None:
        return partial(compiled, calls=calls, **options)
    dispatcher = njit(**options)(loop)
    if not config.DISABLE_JIT:
        _keep(dispatcher, loop, calls)
    return dispatcher


class ForC:
    """A loop of machine words, compiled as a C function when its address is asked for.

    signature: Numba's. calls: as `compiled` has it. Compiled code that knows the address only need not
    be compiled anew for every loop that it may call.
    """

    def __init__(self, loop, signature, calls=(), **options):
        self.loop, self.signature, self.calls, self.options = loop, signature, calls, options

    @cached_property
    def address(self):
        made = CFunc(self.loop, normalize_signature(self.signature), {}, self.options)
        _keep(made, self.loop, self.calls)
        made.compile()
        self.made = made  # or the code is freed
        return made.address


def _keep(made, loop, calls):
    """Let what Numba makes of `loop` be kept where there is a place for it."""
    try:
        made._cache = _Cache(loop)
        made._cache.versions = tuple(_version(module.__file__) for module in calls)
    except (RuntimeError, OSError) as problem:  # Numba finds no folder
        _warn(problem)


class _Cache(FunctionCache):
    """Numba's cache of one loop, which does without its files once they cannot be used.

    versions: of the files of what the loop calls, of which Numba's own knows nothing.
    """

    versions = ()

    def __init__(self, loop):
        super().__init__(loop)
        locator = self._impl.locator
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, locator.get_source_stamp())

    def _index_key(self, sig, codegen):
        return *super()._index_key(sig, codegen), *self.versions

    def load_overload(self, signature, target):
        """As Numba's own, but for what it needs to compile, which takes it half a second to load: it
        does so where there is nothing to be found here."""
        try:
            rtsys.initialize(target)
            with self._guard_against_spurious_io_errors():
                return self._load_overload(signature, target)
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


class _Files(IndexDataCacheFile):
    """What was compiled, each in a file that is named after all that it was compiled from.

    Numba numbers its files and keeps an index of them, which it writes first: a process that starts
    between the two reads what an older source or another signature has left under that number. Ranks
    that compile at once do.
    """

    def __init__(self, cache_path, filename_base, source_stamp):
        super().__init__(cache_path, filename_base, source_stamp)
        self._base = f"{filename_base}.{_digest(source_stamp, self._version)}"
        self._others = f"{filename_base}.*.nbc"

    def flush(self):
        """Nothing to do: a file that cannot be read is written anew."""

    def save(self, key, data):
        name = self._name(key)
        self._save_data(name, (key, data))
        for path in Path(self._cache_path).glob(self._others):  # of other sources
            if not path.name.startswith(self._base):
                path.unlink(missing_ok=True)

    def load(self, key):
        try:
            found, data = self._load_data(self._name(key))
        except FileNotFoundError:
            return None
        return data if found == key else None

    def _name(self, key):
        return f"{self._base}.{_digest(key)}.nbc"


def _digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _version(path):
    """Return what changes when a file is edited, and not when it is copied, as Numba's own does."""
    found = os.stat(path)
    return found.st_mtime, found.st_size


def _warn(problem):
    why = reason_of(problem) if isinstance(problem, OSError) else "no folder for them can be written"
    line = (
        f"compiled kernels cannot be kept ({why}): {UNKEPT}; "
        f"{cure_of(problem, elsewhere=ANOTHER_FOLDER)}"
    )
    if line not in _told:  # Python forgets what it has told wherever a library changes its filters
        _told.add(line)
        warnings.warn(line, RuntimeWarning, stacklevel=2)


_told: set[str] = set()
