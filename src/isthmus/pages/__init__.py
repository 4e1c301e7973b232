"""A run told on a page: its report, its timeline, and runs compared."""
