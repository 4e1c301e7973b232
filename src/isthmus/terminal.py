"""Where text reaches a terminal: results on standard output, everything else on standard error.

What is shown is data and never markup. Brackets stand as they are, and a character that would move the
cursor, colour what follows or turn its direction is written as Python writes it: "\\x1b".
"""

import io
import re
import sys
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from isthmus.cures import explained
from isthmus.errors import OutputError

INVISIBLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line breaks among them, marks of direction, and bytes that are no UTF-8."""
OVERWRITE = "\r\x1b[2K"


def visible(words):
    """Return `words` with each invisible character as Python writes it."""
    return INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], str(words))


def styled(*parts):
    """Return one line of text from (words, style) pairs; "" is the terminal's own style."""
    return Text.assemble(*((visible(words), style) for words, style in parts))


def duration(seconds):
    """Return seconds as people say them, in two units at most: "45 s", "3 min 20 s", "2 d 4 h"."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    counts = [(hours // 24, "d"), (hours % 24, "h"), (minutes, "min"), (left, "s")]
    first = next((place for place, (count, _) in enumerate(counts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in counts[first : first + 2] if count) or "0 s"


def table_of(columns, rows):
    """Return a table. columns: (title, "left" or "right"); rows: (texts, style) pairs."""
    made = Table()
    for title, justify in columns:
        made.add_column(styled((title, "")), justify=justify, overflow="fold")
    for texts, style in rows:
        made.add_row(*(styled((text, "")) for text in texts), style=style)
    return made


def bar_of(done, total, columns):
    """Return a bar for `Terminal.draw` of which the share done / total is full."""
    return ProgressBar(total, done, width=columns)


class Content(str):
    """What a file is to hold: shown exactly as it is where standard output is a file."""

    __slots__ = ()


class _Screen(Console):
    """Where text goes; nowhere if that stream is closed. What cannot be written is an OSError."""

    def __init__(self, stream, columns=None):
        super().__init__(
            file=io.StringIO() if stream is None else stream,
            highlight=False,
            soft_wrap=True,
            width=columns,
            force_terminal=True if columns else None,
        )

    def on_broken_pipe(self):
        raise  # rich calls this where it has caught the error, and would end the process


class Terminal:
    """Standard output for results, standard error for progress, warnings and errors: one screen.

    A result that cannot be written is an OutputError, but for a reader that wants no more of them. A
    job goes on without the lines beside them that cannot be written.

    columns: set where a line at the bottom is drawn again and again, by this process or by another rank
    of the job: how wide the terminal is on which standard error ends. Other lines go above it.
    """

    def __init__(self):
        self.passing, self.columns = False, None

    @property
    def out(self):
        return _Screen(sys.stdout)

    @property
    def err(self):
        return _Screen(sys.stderr, self.columns)

    def result(self, part):
        """Show a part of a verb's answer: a line, a table in as much width as it wants, or Content."""
        self._end_passing()
        with written():
            self._show(part)

    def _show(self, part):
        console = self.out
        if isinstance(part, Content):
            if not console.is_terminal:
                console.file.write(part)
                console.file.flush()
                return
            part = Text("\n").join(styled((line, "")) for line in part.splitlines())
        if isinstance(part, Table) and not console.is_terminal:  # a file has no right edge
            everything = console.options.update(max_width=10_000)
            console.width = max(console.width, Measurement.get(console, everything, part).maximum)
        console.print(styled((part, "")) if isinstance(part, str) else part)

    def tell(self, line, style="", passing=False):
        """Show a line beside the results; on a terminal the next one replaces a passing one."""
        console = self.err
        self._end_passing()
        self.passing = passing and console.is_terminal
        with suppress(OSError):
            console.print(styled((line, style)), end="" if self.passing else "\n")

    def draw(self, *parts):
        """Show one line of texts and of what rich can draw, in the place of the last one."""
        console = self.err
        with suppress(OSError), console:  # which writes all at its end
            console.file.write(OVERWRITE)
            for part in parts:
                console.print(styled((part, "")) if isinstance(part, str) else part, end="")
        self.passing = True

    def end_drawing(self):
        """Take away what `draw` has drawn, by whichever rank; lines are lines again."""
        self._end_passing()
        self.columns = None

    def _end_passing(self):
        if self.passing or self.columns:
            with suppress(OSError):
                sys.stderr.write(OVERWRITE)
                sys.stderr.flush()
            self.passing = False


@contextmanager
def written():
    """Have what cannot be written to standard output as an OutputError, if anybody wants to read it."""
    try:
        yield
    except BrokenPipeError:
        leave_unsaid("stdout")
    except OSError as problem:
        leave_unsaid("stdout")
        raise OutputError(
            f"standard output: cannot be written: {explained(problem, 'let it go elsewhere')}"
        ) from problem


def leave_unsaid(name):
    """Let nothing more be written to the stream sys.`name`, nor what is still held for it."""
    setattr(sys, name, io.StringIO())
