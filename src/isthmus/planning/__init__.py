"""Which rank holds what, and how long that takes: numbers in, numbers out, no MPI."""
