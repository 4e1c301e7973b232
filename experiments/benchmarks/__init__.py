"""asv's folder: `make bench` runs it here and now, `asv run` on every commit."""
