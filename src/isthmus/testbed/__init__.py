"""A cluster on one Linux machine: a network namespace a site, and links that are as slow as its file says.

Everything measured on a testbed is emulated, and is labelled so.
"""

from isthmus.testbed.namespaces import counters, down, up

__all__ = ["counters", "down", "up"]
