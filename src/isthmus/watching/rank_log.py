"""Each rank's own log in the folder of its run: `logs/rank0003.log`, by Python's logging."""

import logging
from contextlib import suppress
from logging.handlers import MemoryHandler

from isthmus.watching.failures import log_path

log = logging.getLogger("isthmus")
FORMAT = "%(asctime)s %(levelname)s %(message)s"
HELD = 10_000  # records, until the run has a folder


class RankLog:
    """Takes what the logger "isthmus" says from now on; `open` says where it goes. One a process."""

    def __init__(self):
        self.path = None
        self.level = log.level
        self.handler = MemoryHandler(HELD, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        log.addHandler(self.handler)
        log.setLevel(logging.INFO)

    def open(self, folder, rank, mode=None):
        """Write to `folder`/logs as `rank`, what was said so far first, where it was not open.

        A host that does not see the job's folder has one of its own there, of `mode` where that is not
        None; where none can be made
        the run goes on without this rank's log.
        """
        path = log_path(folder, rank)
        if path == self.path:
            return
        try:
            if mode is not None and not path.parents[1].exists():
                path.parents[1].mkdir(parents=True, exist_ok=True)
                path.parents[1].chmod(mode)
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _Quiet(path, encoding="utf-8")
        except OSError:
            return
        file.setFormatter(logging.Formatter(FORMAT))
        held, self.handler, self.path = self.handler, file, path
        log.addHandler(file)
        if isinstance(held, MemoryHandler):
            held.setTarget(file)
            held.flush()
        log.removeHandler(held)
        held.close()

    def close(self):
        log.removeHandler(self.handler)
        self.handler.close()
        log.setLevel(self.level)


class _Quiet(logging.FileHandler):
    """A disk that is full costs lines of the log, not the run."""

    def handleError(self, record):  # noqa: N802
        pass

    def close(self):
        with suppress(OSError):
            super().close()
