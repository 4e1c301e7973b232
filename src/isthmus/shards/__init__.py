"""Data in shards: files with checksums, their delivery by plan, and batches."""
