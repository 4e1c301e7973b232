"""Sums over ranks: what travels, between whom, in which order."""
