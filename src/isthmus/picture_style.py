"""How pictures look. Colours are Okabe and Ito's: told apart by everybody, and never alone."""

import os
from contextlib import contextmanager

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP"
HATCHES = ("", "///", "|||", "\\\\\\", "xxx", "---", "+++", "//")  # of lines: dots make large files
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isthmus",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


@contextmanager
def drawing(style, *inches):
    """Give a figure of so many inches to draw on, while all that is drawn is in `style`.

    No window is opened: what MPLBACKEND names for windows may not be known here, and is not asked for.
    """
    windows = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    finally:
        if windows is not None:
            os.environ["MPLBACKEND"] = windows
    with matplotlib.rc_context(style):
        yield Figure(figsize=inches, layout="constrained")
