"""asv's folder: `make bench` runs it here and now, `make bench-compare` on two commits.

asv takes less for better: what is better when it is more stands here as its inverse.
"""
