"""What a run keeps count of, so that ranks may come and go: who made which steps with which samples."""
