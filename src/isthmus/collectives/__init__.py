"""Sums over ranks: what travels, between whom, in which order."""

from isthmus.collectives.ring import (
    ring_all_gather,
    ring_inbox_entries,
    ring_part,
    ring_reduce,
    ring_reduce_scatter,
)

__all__ = ["ring_all_gather", "ring_inbox_entries", "ring_part", "ring_reduce", "ring_reduce_scatter"]
