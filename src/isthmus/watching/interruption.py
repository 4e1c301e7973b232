"""How SIGINT and SIGTERM end a process: in a second, also where it waits for a message.

Python runs a handler in the main thread, between two of its own steps. There it raises `Interrupted`,
which closes what is open on its way. A thread that waits inside MPI comes to no such step; another one,
which the signal itself wakes, then says the last words and ends the process.
"""

import os
import signal
import sys
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FIRST_SIGN = signal.SIGCONT
"""What mpirun sends first to the ranks that it ends; a quarter of a second later follows SIGTERM."""
SECONDS_TO_SPEAK = 0.08
"""For the main thread. mpirun kills ranks a quarter of a second after it has sent them SIGTERM."""
SECONDS_TO_END = 1.2
SECONDS_UNTIL_AGAIN = 0.01
"""After which it is raised anew, where Python could not pass it on."""


class Interrupted(BaseException):
    """This process was told to end. No Exception: nothing that mends errors takes it for one."""

    exit_code = 130

    def __init__(self, number):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Watchman:
    """Kept by `with` in the main thread: raises Interrupted there, or ends the process without it.

    speak(number, raised): says the last words of a process that got the signal `number`; called once,
    by `say` in the main thread, which has raised, or in the second one. must_end(): whether the process
    has to end in any case, as a rank for which others wait.
    """

    def __init__(self, speak, must_end):
        self.speak, self.must_end = speak, must_end
        self.raised = threading.Event()
        self._first = threading.Lock()

    def __enter__(self):
        self._before = {number: signal.signal(number, self._raise) for number in SIGNALS}
        self._before[FIRST_SIGN] = signal.signal(FIRST_SIGN, lambda *_: None)  # for the thread alone
        self._pipe, self._signals = os.pipe()
        os.set_blocking(self._signals, False)
        self._wakes = signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        self._usual_hook, sys.unraisablehook = sys.unraisablehook, self._not_raised
        self._thread = threading.Thread(target=self._watch, name="isthmus-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        sys.unraisablehook = self._usual_hook
        signal.set_wakeup_fd(self._wakes)
        os.close(self._signals)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not self.raised.is_set():  # else the thread waits for the end, and more signals may come
            self._thread.join()
            os.close(self._pipe)

    def say(self, number, raised=True):
        """Say the last words, unless the other thread has begun to."""
        if self._first.acquire(blocking=False):
            self.speak(number, raised)

    def _raise(self, number, _):
        self.raised.set()
        for each in SIGNALS:  # whoever asks twice means at once
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(number)

    def _not_raised(self, unraisable):
        """Raise anew what came in a finaliser or a callback, which can pass nothing on."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._usual_hook(unraisable)
            return
        number, main = unraisable.exc_value.number, threading.main_thread().ident
        signal.signal(number, self._raise)
        threading.Timer(SECONDS_UNTIL_AGAIN, signal.pthread_kill, (main, number)).start()

    def _watch(self):
        number = None
        while number not in SIGNALS and not (number == FIRST_SIGN and ranks_are_gone()):
            told = os.read(self._pipe, 1)
            if not told:
                return
            number = told[0]
        note_ending(signalled=True)
        began = time.monotonic()
        if ranks_are_gone() or not self.raised.wait(SECONDS_TO_SPEAK):
            self.say(number, raised=False)
        time.sleep(max(0.0, began + SECONDS_TO_END - time.monotonic()))
        if self.must_end() or not self.raised.is_set():
            self.say(number, raised=False)  # if the main thread has not come to it
            os._exit(Interrupted.exit_code)


_journal = None


def keep(journal):
    """Let interruptions know of the journal of a run under way; None: there is none any more."""
    global _journal
    _journal = journal


def note_ending(signalled):
    """Note for the other ranks of a run under way that this one ends: by a signal, or as it tells."""
    if _journal is not None:
        _journal.progress.note_ending(signalled)


def ranks_are_gone():
    """Whether another rank of this host has been killed: then mpirun ends this one, and soon."""
    return _journal is not None and bool(_journal.progress.ranks_gone())


def place_now():
    """Return the `Place` of this rank in a run under way, None where none is."""
    return None if _journal is None else _journal.place()
