"""Benchmarks that users run: `isthmus bench collectives | kernels | links`."""
