"""Runs as jobs of Slurm: what is written, submitted, and started inside."""
