"""How long things take: formulas, what was measured, and steps that are simulated; numbers, no MPI."""
