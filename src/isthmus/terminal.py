"""Where text reaches a terminal: results on standard output, everything else on standard error.

What is shown is data and never markup. Brackets stand as they are, and a character that would move the
cursor, colour what follows or turn its direction is written as Python writes it: "\\x1b".
"""

import re
import sys

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

INVISIBLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line breaks among them, marks of direction, and bytes that are no UTF-8."""
OVERWRITE = "\r\x1b[2K"


def visible(words):
    """Return `words` with each invisible character as Python writes it."""
    return INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], str(words))


def styled(*parts):
    """Return one line of text from (words, style) pairs; "" is the terminal's own style."""
    return Text.assemble(*((visible(words), style) for words, style in parts))


def table_of(columns, rows):
    """Return a table. columns: (title, "left" or "right"); rows: (texts, style) pairs."""
    made = Table()
    for title, justify in columns:
        made.add_column(styled((title, "")), justify=justify, overflow="fold")
    for texts, style in rows:
        made.add_row(*(styled((text, "")) for text in texts), style=style)
    return made


class Content(str):
    """What a file is to hold: shown exactly as it is where standard output is a file."""

    __slots__ = ()


class Terminal:
    """Standard output for results, standard error for progress, warnings and errors: one screen."""

    def __init__(self):
        self.passing = False

    @property
    def out(self):
        return Console(file=sys.stdout, highlight=False, soft_wrap=True)

    @property
    def err(self):
        return Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def result(self, part):
        """Show a part of a verb's answer: a line, a table in as much width as it wants, or Content."""
        self._end_passing()
        console = self.out
        if isinstance(part, Content):
            if not console.is_terminal:
                sys.stdout.write(part)
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
        console.print(styled((line, style)), end="" if self.passing else "\n")

    def _end_passing(self):
        if self.passing:
            sys.stderr.write(OVERWRITE)
            sys.stderr.flush()
            self.passing = False
