"""What a trained model may tell of one sample: clipping, noise, sampling, and the account of it."""
