"""A run's folder: how it is written, who has it, and how it is read."""
