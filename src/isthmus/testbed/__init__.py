"""A cluster on one Linux machine: a network namespace a site, and links as slow as its file says.

Everything measured on a testbed is emulated, and is labelled so.
"""

from isthmus.testbed.launch import on_testbed, own_counters, run
from isthmus.testbed.namespaces import counters, describe, down, up

__all__ = ["counters", "describe", "down", "on_testbed", "own_counters", "run", "up"]
