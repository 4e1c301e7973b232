"""Bytes that the interfaces of a testbed have carried: the one place that asks a testbed for them."""

import importlib
import os

from isthmus.errors import SettingsError


def interface_nbytes():
    """Return "SOURCE>TARGET" -> bytes, headers included, that have crossed each way since it was made.

    None off a testbed, that is, where the environment variable ISTHMUS_TESTBED is not set. What
    `isthmus.testbed.counters()` gives is passed on as it is.
    """
    if "ISTHMUS_TESTBED" not in os.environ:
        return None
    try:
        testbed = importlib.import_module("isthmus.testbed")
    except ImportError:
        raise SettingsError("ISTHMUS_TESTBED is set, but this version has no testbed; "
                            "unset it to count without interfaces") from None
    return testbed.counters()
