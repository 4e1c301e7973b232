"""Data that is read once: divisible load on stars and trees."""
