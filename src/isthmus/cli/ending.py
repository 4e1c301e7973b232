"""How a process of isthmus ends: its last words, said once for the job, and its exit code."""

import logging
import os
import signal
import sys
import time
import traceback
import warnings as python_warnings
from contextlib import suppress

from isthmus.cli.progress import mpirun_stderr
from isthmus.mpirun import Loss
from isthmus.terminal import OVERWRITE, leave_unsaid, visible
from isthmus.watching.failures import (
    all_interrupted,
    failure_of,
    failures_of_all,
    interrupted_lines,
    last_words,
    told_by_another,
)
from isthmus.watching.interruption import (
    SIGNALS,
    Interrupted,
    Watchman,
    keep,
    note_ending,
    place_now,
    ranks_are_gone,
)

SECONDS_TO_NOTE = 0.05  # for signals to reach the other ranks of a host, which note them


class Ending:
    """The end of a process: every error becomes one line, printed once, and a numbered exit code.

    terminal: a `Terminal`. world(): the communicator of all ranks; None where MPI was not started.
    speaks(): whether this process says what all ranks have to say. debug: show tracebacks.
    """

    def __init__(self, terminal, world, speaks):
        self.terminal, self.world, self.speaks = terminal, world, speaks
        self.debug = False
        self._told = set()  # the warnings that were

    def run(self, command, wrong_arguments):
        """Call command(), which returns an exit code; leave the process with that or an error's.

        wrong_arguments: the class of what it raises where the command line is wrong.
        """
        python_warnings.showwarning = self._warn
        log, handler = logging.getLogger("isthmus"), _Warnings(self.terminal)
        log.addHandler(handler)
        try:
            with Watchman(self._interrupted, self._in_ranks) as watchman:
                code, together = self._call(command, wrong_arguments, watchman)
        finally:
            keep(None)
            log.removeHandler(handler)
        self._leave(code, together)

    def _call(self, command, wrong_arguments, watchman):
        """Return the exit code, and whether all ranks end with it together."""
        try:
            return command() or 0, True
        except wrong_arguments as problem:
            self._say(usage_lines(problem) * self.speaks())
            return problem.exit_code, True
        except Interrupted as problem:
            if told_by_another(self.world()):  # mpirun ends all ranks because one of them has failed
                signal.raise_signal(problem.number)
            watchman.say(problem.number)
            if self._in_ranks() and all_interrupted(place_now()):
                sys.stderr.flush()
                os._exit(problem.exit_code)  # mpirun ends the job already: an abort is more words of it
            return problem.exit_code, False
        except Exception as problem:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            self._say(last_words(problem, self.world(), self.speaks()))
            return failure_of(problem)["code"], getattr(problem, "everywhere", False)

    def _interrupted(self, number, raised):
        """Say the last words of a process that the signal `number` ends.

        raised: in the main thread, which may use MPI; else it may be inside MPI.
        """
        if not ranks_are_gone():
            time.sleep(SECONDS_TO_NOTE)
        place = place_now()
        comm, speaks, named = self.world(), self.speaks(), ""
        if place is None and raised and comm is not None and comm.size > 1:
            together = failures_of_all(comm, {}, comm.rank, SECONDS_TO_NOTE)
            speaks = together is not None
            named = f"rank {comm.rank}: " if speaks and len(together) == 1 else ""
        lines = [
            line.replace("isthmus: ", f"isthmus: {named}", 1)
            for line in interrupted_lines(number, place, speaks)
        ]
        if lines and place is not None and not all_interrupted(place):
            note_ending(signalled=False)  # the others are ended because of this rank, which tells why
        over = OVERWRITE if self.terminal.columns else ""
        if not (all_interrupted(place) and tell_past_mpirun(lines, over)):
            self._say(lines)

    def _in_ranks(self):
        comm = self.world()
        return comm is not None and comm.size > 1

    def _say(self, lines):
        """Print what ends the job, with the traceback where that is wanted."""
        if lines and self.debug:
            for line in traceback.format_exc().rstrip().splitlines():
                self.terminal.tell(line)
        for line in lines:
            self.terminal.tell(line, "red" if line.startswith("isthmus:") else "")

    def _warn(self, message, *_):
        """Print a warning as one line, once, from one rank."""
        line = f"warning: {' '.join(str(message).split())}"
        if self.speaks() and line not in self._told:
            self._told.add(line)
            self.terminal.tell(line, "yellow")

    def _leave(self, code, together):
        """Leave with `code`; one rank that fails alone takes the others with it."""
        comm = self.world()
        if comm is None and not self.speaks() and code != Interrupted.exit_code:
            code = 0  # a code here would have mpirun end rank 0 before it has told what is wrong
        if Loss.leaves_at_once and together and not self.speaks():
            code = 0  # as well
        if code and not together and comm is not None and comm.size > 1:
            sys.stderr.flush()
            time.sleep(0.1)  # what is said on standard error comes before mpirun's own words
            if not Loss.leaves_at_once:  # after a loss mpirun would give the code 0 for an abort
                comm.Abort(code)
        if Loss.leaves_at_once:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(code)
        for name in ("stdout", "stderr"):  # Python's own last try would change the code
            try:
                if getattr(sys, name) is not None:
                    getattr(sys, name).flush()
            except OSError:
                leave_unsaid(name)
        sys.exit(code)


def usage_lines(problem):
    """Return the line that says what is wrong with the arguments; none where help was shown instead."""
    context = getattr(problem, "ctx", None)
    verb = context.command_path if context else "isthmus"
    words = problem.format_message().rstrip(".").replace("Input should", "must")
    return [f"isthmus: {words[0].lower()}{words[1:]}; see `{verb} --help`"] if words.strip() else []


def tell_past_mpirun(lines, over=""):
    """Write lines to the standard error of the mpirun that started this rank; return whether they went.

    over: what takes away the line that is there. Once it is told to end, mpirun forwards nothing of its
    ranks any more.
    """
    with mpirun_stderr() as number:
        if number is None or not lines:
            return False
        text = over + "".join(f"{visible(line)}\n" for line in lines)
        try:
            os.write(number, text.encode(errors="backslashreplace"))
        except OSError:
            return False
    return True


class _Warnings(logging.Handler):
    """Prints what any rank warns of, a step that stalls."""

    def __init__(self, terminal):
        super().__init__(logging.WARNING)
        self.terminal = terminal

    def emit(self, record):
        if record.levelno == logging.WARNING:
            self.terminal.tell(record.getMessage(), "yellow")
